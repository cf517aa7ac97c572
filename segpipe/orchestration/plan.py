"""Which part of the chain is asked for, and what would become of it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.orchestration import chain, explain, pages, site_models
from segpipe.orchestration.keys import MADE_HERE, Key
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import STEPS
from segpipe.registry import champions
from segpipe.tracking import run_tags, runs

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


def plan(session: Session, config: Config, asked: Asked) -> Iterator[tuple[str, chain.Choice]]:
    """What would become of each step; nothing is run. Raises InputError as `taken` does."""
    known: dict[str, chain.Choice] = {}
    kept = taken(session, config, asked.start)
    for step in asked.names:
        if step in kept:
            choice = kept[step]
        else:
            upstream = {i: known[i].key for i in STEPS[step].inputs}
            there = [made.run.info.run_id for made in known.values() if made.run]
            choice = chain.choose(
                session, step, config, upstream, validity(session, step, config), asked.anew(step), there
            )
        known[step] = choice
        yield step, choice


def validity(session: Session, step: str, config: Config) -> chain.Valid:
    """What may speak against a whole run of a step with the right key: of register that the champion is another one, or
    that sites have other models of their own.
    """

    def still_champion(run: "Run") -> str:
        holder = champions.holder(config.registry.model_name)
        was, now = run.data.tags.get("segpipe.champion", ""), str(holder.version) if holder else ""
        if was != now:
            return f"the champion was version {was or 'none'}, now it is {now or 'none'}"
        judged = json.loads(run.data.tags.get(run_tags.SITE_MODELS, "{}"))
        try:
            known = site_models.evaluations(session.keys, run.data.tags[f"{run_tags.INPUT}evaluate"])
        except InputError as error:
            return str(error)
        return "" if judged == known else "sites have other models of their own"

    return still_champion if step == "register" else chain.always


def taken(session: Session, config: Config, start: str) -> dict[str, chain.Choice]:
    """The runs that the steps before `start` are taken from as they are: the newest that fit together, are whole and
    were made with this config from this raw data, whatever became of the code since. Raises InputError where there are
    none.
    """
    earlier = before(start) if start else ()
    made = session.keys
    wanted = [_Wanted(step, made.key(step, config, {}), json.loads(made.made_of(step, config))) for step in earlier]
    faults = []
    for last in runs.finished(earlier[-1], most=explain.COMPARED) if earlier else ():
        kept, fault = _together(session, last, config, wanted)
        if not fault:
            return kept
        faults.append(f" ({fault})")
    if earlier:
        why = "".join(faults[:1])
        raise InputError(f"--from {start}: no finished run of {earlier[-1]} fits{why}; leave out --from")
    return {}


class _Wanted(NamedTuple):
    """A step's key, and what stands behind it (`keys.made_of`)."""

    step: str
    key: Key
    now: "Mapping[str, explain.Files]"


def _together(
    session: Session, last: "Run", config: Config, wanted: list[_Wanted]
) -> tuple[dict[str, chain.Choice], str]:
    """A run of the last of some steps, with those of the others that it was built on; and what speaks against one, in
    words.
    """
    kept: dict[str, chain.Choice] = {}
    for step, key, now in reversed(wanted):
        try:
            run = runs.upstream(last.data.tags.get(run_tags.INPUT + step, ""), step) if kept else last
        except InputError as error:
            return {}, str(error)
        essential = {part: key.parts[part] for part in explain.changed(run, key) if part not in MADE_HERE}
        fault = ", ".join(explain.differences(run, config, Key(essential), now)) or chain.damage(step, run)
        if fault:
            return {}, f"{step} run {run.info.run_id}: {fault}"
        although = ", ".join(explain.differences(run, config, key, now))
        paged = "" if although else pages.describe(session.keys, step, run, config)
        kept[step] = chain.Choice(key, run, although, paged)
    return kept, ""
