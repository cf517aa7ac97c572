"""A plan under a run: the fingerprint and the recipe as artifacts, and the recipe in a file to edit."""

import json
from collections.abc import Collection
from pathlib import Path

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.orchestration.session import Session
from segpipe.planning import fingerprint, rules
from segpipe.planning.rules import Setting
from segpipe.tracking import runs

RECIPE, FINGERPRINT = "plan/plan.yaml", "plan/fingerprint.json"
MINUTES = 30.0
ELSEWHERE = ("data.root", "tracking.", "driver.")  # knobs of a place rather than of a recipe


def plan(session: Session, config: Config, given: Collection[str], target: Path) -> str:
    """Measure the data set, log the recipe that follows and write it to `target`; knobs that are `given` stay as they
    are. Returns what was planned, in a phrase. Raises InputError as the reader does, and where `target` holds something
    else.
    """
    found = fingerprint.measure(config, session.screen.progress("plan"))
    kept = {name: _value(config, name) for name in given if not name.startswith(ELSEWHERE)}
    fixed = [Setting(name, value, "as given") for name, value in kept.items()]
    planned = [one for one in rules.plan(found, config.train.minutes or MINUTES) if one.knob not in kept]
    order = list(settings.knobs())
    recipe = rules.recipe(sorted([*fixed, *planned], key=lambda one: order.index(one.knob)), found)
    if target.is_file() and target.read_text(encoding="utf-8") != recipe:
        raise InputError(f"{target}: is there already, with other content; give another --output or remove it")
    runs.log_text(recipe, RECIPE)
    runs.log_text(json.dumps(found.model_dump(mode="json"), indent=1), FINGERPRINT)
    target.write_text(recipe, encoding="utf-8")
    session.screen.answer(recipe.rstrip("\n"))
    return f"planned from {found.cases} cases: python pipeline.py --config {target}"


def _value(config: Config, knob: str) -> object:
    section, _, name = knob.partition(".")
    value = config.model_dump(mode="json")[section]
    return value[name] if name else value
