"""Which part of the chain is asked for, and what would become of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segpipe import registry, tracking
from segpipe.config import Config
from segpipe.errors import InputError
from steps import chain, explain, keys
from steps.keys import STEPS, Key

if TYPE_CHECKING:
    from mlflow.entities import Run

ALL = "all"


@dataclass(frozen=True)
class Asked:
    """Which part of the chain: the first step that may run, the last one, and the step from which on nothing is reused
    (or `all`); empty for none.
    """

    start: str = ""
    until: str = ""
    fresh: str = ""

    def __post_init__(self) -> None:
        order = [name for name in (self.start, self.fresh, self.until) if name in STEPS]
        if order != sorted(order, key=list(STEPS).index):
            raise InputError(f"--from, --fresh and --until must come in the order {', '.join(STEPS)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The steps, up to the last one."""
        return (*before(self.until), self.until) if self.until else tuple(STEPS)

    def anew(self, step: str) -> bool:
        """Whether a step has to run although it may have finished before."""
        return self.fresh == ALL or (bool(self.fresh) and step not in before(self.fresh))


def before(step: str) -> tuple[str, ...]:
    """The steps before one."""
    return tuple(STEPS)[: list(STEPS).index(step)]


def plan(config: Config, asked: Asked) -> Iterator[tuple[str, chain.Choice]]:
    """What would become of each step; nothing is run. Raises InputError as `taken` does."""
    known: dict[str, str] = {}
    kept = taken(config, asked.start)
    for step in asked.names:
        upstream = {i: known[i] for i in STEPS[step].inputs}
        if step in kept:
            choice = kept[step]
        else:
            choice = chain.choose(step, config, upstream, validity(step, config), asked.anew(step))
        known[step] = choice.key
        yield step, choice


def validity(step: str, config: Config) -> chain.Valid:
    """What may speak against a whole run of a step with the right key: of register that the champion is another one."""

    def still_champion(run: "Run") -> str:
        holder = registry.holder(config.registry.model_name)
        was, now = run.data.tags.get("segpipe.champion", ""), str(holder.version) if holder else ""
        return "" if was == now else f"the champion was version {was or 'none'}, now it is {now or 'none'}"

    return still_champion if step == "register" else chain.always


def taken(config: Config, start: str) -> dict[str, chain.Choice]:
    """The runs that the steps before `start` are taken from as they are, the newest whole ones of this config and raw
    data that fit together, whatever became of the code since. Raises InputError where there are none.
    """
    kept: dict[str, chain.Choice] = {}
    for step in reversed(before(start) if start else ()):
        built_on = next(
            (c.run.data.tags.get(tracking.INPUT + step) for s, c in kept.items() if c.run and step in STEPS[s].inputs),
            None,
        )
        known = [tracking.upstream(built_on, step)] if built_on else tracking.finished(step, most=explain.COMPARED)
        kept[step] = as_it_is(step, config, known, start)
    return kept


def as_it_is(name: str, config: Config, runs: "list[Run]", start: str) -> chain.Choice:
    """The first of some finished runs of a step that is whole and made with this config from this raw data, whatever
    became of the code since. Raises InputError where there is none.
    """
    parts = keys.key(name, config, {}).parts
    now, faults = json.loads(keys.made_of(name, config)), []
    for run in runs:
        differing = explain.changed(run, Key(parts))
        essential = {part: parts[part] for part in differing if part not in keys.made_with(name)}
        fault = ", ".join(explain.differences(run, config, Key(essential), now)) or chain.damage(name, run)
        if not fault:
            return chain.Choice(Key(parts), run, ", ".join(explain.differences(run, config, Key(parts), now)))
        faults.append(f" ({run.info.run_id}: {fault})")
    raise InputError(f"--from {start}: no finished run of {name} fits{''.join(faults[:1])}; leave out --from")
