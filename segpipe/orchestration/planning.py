"""A plan under a run: the fingerprint and the recipe as artifacts, and what follows from them for a chain."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.data.readers import READERS
from segpipe.errors import InputError
from segpipe.files import project
from segpipe.orchestration import chain
from segpipe.orchestration.launch import Launcher
from segpipe.orchestration.plan import ALL, Asked
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import PLAN
from segpipe.planning import fingerprint, rules
from segpipe.planning.rules import Setting
from segpipe.tracking import artifacts, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

RECIPE, COMPLETED, FINGERPRINT = "plan.yaml", "recipe.yaml", "fingerprint.json"  # the second with what was given
GIVEN = "config/given.yaml"
MINUTES = 10.0
ELSEWHERE = ("data.root", "tracking.", "driver.", "plan.")  # knobs of a place, or of planning, rather than of a recipe


class Given(NamedTuple):
    """What a command line says: a recipe on this machine, or none, and knobs by their dotted names."""

    recipe: Path | None
    knobs: Mapping[str, str]

    @property
    def planned(self) -> bool:
        """Whether a chain plans first what is not given."""
        config = settings.unplanned(self.recipe, self.knobs)
        real = not READERS[config.data.format].simulated
        return config.plan.auto and real and (self.recipe is None or "plan.auto" in self.knobs)

    def unplanned(self) -> Config:
        """The config as far as it is known before a plan: whole where there is none. Raises InputError as
        `settings.load` does.
        """
        load = settings.unplanned if self.planned else settings.load
        return load(self.recipe, self.knobs)

    def on(self, plan: "Run") -> Config:
        """The config of a chain that follows a plan. Raises InputError as `settings.load` does."""
        recipe = artifacts.local(f"runs:/{plan.info.run_id}/{PLAN.output}") / RECIPE
        return settings.load(self.recipe, self.knobs, recipe)


def plan(session: Session, config: Config, given: Collection[str], target: Path | None) -> str:
    """Measure the data set and log the recipe that follows, alone and with the `given` knobs as they are; the latter is
    written to the `target` too, if there is one. Returns what was planned, in a phrase.

    Raises InputError as the reader does, and where the target holds something else.
    """
    found = fingerprint.measure(config, session.screen.progress("plan"))
    planned = rules.plan(found, config.train.minutes or MINUTES)
    recipe = rules.recipe(completed(planned, config, given), found)
    if target and target.is_file() and target.read_text(encoding="utf-8") != recipe:
        raise InputError(f"{target}: is there already, with other content; give another --output or remove it")
    with artifacts.folder(PLAN.output) as folder:
        (folder / RECIPE).write_text(rules.recipe(planned, found), encoding="utf-8")
        (folder / COMPLETED).write_text(recipe, encoding="utf-8")
        (folder / FINGERPRINT).write_text(json.dumps(found.model_dump(mode="json"), indent=1), encoding="utf-8")
    figure = f"planned from {found.cases} cases"
    if target:
        target.write_text(recipe, encoding="utf-8")
        session.screen.answer(recipe.rstrip("\n"))
        session.say(f"{figure}: {project.called('pipeline')} --config {target}")
    return figure


def completed(planned: list[Setting], config: Config, given: Collection[str]) -> list[Setting]:
    """A plan with the given knobs in it, in the order of their declaration."""
    kept = [name for name in given if not name.startswith(ELSEWHERE)]
    fixed = [Setting(name, _value(config, name), "as given") for name in kept]
    order, left_out = list(settings.knobs()), {*kept, *settings.outdated_by(kept)}
    return sorted(
        [*fixed, *(one for one in planned if one.knob not in left_out)], key=lambda one: order.index(one.knob)
    )


def _value(config: Config, knob: str) -> object:
    section, _, name = knob.partition(".")
    value = config.model_dump(mode="json")[section]
    return value[name] if name else value


def choose(session: Session, config: Config, asked: Asked) -> chain.Choice:
    """The finished plan of this data, or why it has to be made."""
    return chain.choose(session, PLAN.name, config, {}, fresh=asked.fresh == ALL)


def follow(choice: chain.Choice, given: Given) -> Config:
    """The config of a chain on a plan that is chosen; as far as it is known where the plan has to be made."""
    return given.on(choice.run) if choice.run else given.unplanned()


def obtain(launcher: Launcher, config: Config, given: Given, asked: Asked) -> tuple[chain.Result, Config]:
    """Reuse a plan or make it, below the launcher's run, on which the config that follows is logged.

    Raises InputError where the plan and what is given do not go together, StepError where planning fails.
    """
    runs.log_text(settings.dump(config), GIVEN)
    mine, fresh = replace(launcher, recipe=GIVEN), asked.fresh == ALL
    result = chain.obtain(PLAN.name, config, {}, mine, fresh=fresh, more={"output": ""})
    planned = given.on(result.run)
    runs.log_config(planned)
    return result, planned
