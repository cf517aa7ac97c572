"""What differs between how a run was made and what is wanted now, in words."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.orchestration import keys
from segpipe.orchestration.keys import Key, Keys
from segpipe.tracking import artifacts, run_tags, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

NAMED = 3
COMPARED = 50  # finished runs of which the nearest is looked for
NEVER, ASKED, EARLIER = "it has not run before", "it was asked for", "an earlier segpipe made its runs"
Files = Mapping[str, str]


def reason(made: Keys, runs: "list[Run]", name: str, config: Config, wanted: Key) -> str:
    """Why a step runs although it has finished `runs`: what differs from the one that comes nearest."""
    if not runs:
        return NEVER
    nearest = min(runs, key=lambda run: distance(run, config, wanted))
    return ", ".join(differences(nearest, config, wanted, json.loads(made.made_of(name, config)))) or ASKED


def recorded(run: "Run") -> dict[str, str]:
    """The parts of a run's key."""
    return dict(json.loads(run.data.tags.get(run_tags.PARTS, "{}")))


def changed(run: "Run", wanted: Key) -> list[str]:
    """The parts of a key that a run's has otherwise."""
    known = recorded(run)
    return [part for part in wanted.parts if known.get(part) != wanted.parts[part]]


def distance(run: "Run", config: Config, wanted: Key) -> tuple[int, int]:
    """How far a run is from what is wanted: by parts of the key, then by knobs."""
    parts = changed(run, wanted)
    return len(parts), sum(len(_knobs(run, part, config)) for part in parts)


def differences(run: "Run", config: Config, wanted: Key, now: Mapping[str, Files]) -> list[str]:
    """What differs, each as a phrase; `now` is what stands behind the wanted key (`keys.made_of`)."""
    parts = changed(run, wanted)
    if keys.FORMAT in parts:
        return [EARLIER]
    detailed = {keys.CODE, keys.FEDERATION, keys.REQUIREMENTS, keys.RAW} & set(parts)
    before = _made_of(run) if detailed else {}
    said = []
    for part in parts:
        if part in before:
            found = pins(before[part], now[part]) if part == keys.REQUIREMENTS else files(part, before[part], now[part])
        elif part == keys.PYTHON:
            found = [f"Python {recorded(run).get(part)} -> {wanted.parts[part]}"]
        else:
            found = _knobs(run, part, config)
        said += found or [f"{part.removeprefix(keys.RESULT)} changed"]
    return said


def _knobs(run: "Run", part: str, config: Config) -> list[str]:
    """The knobs of a section of the config that differ, each as a phrase."""
    section, now, params = part.removeprefix(keys.SECTION), settings.flat(config), run.data.params
    if section == part:
        return []
    own = [knob for knob in now if section in (knob, knob.partition(".")[0])]
    knobs = [knob for knob in own if knob not in keys.WITHOUT_EFFECT]
    before = {knob: params.get(f"cfg.{knob}", "") for knob in knobs}
    differing = [knob for knob in knobs if before[knob] != now[knob][: runs.LONGEST_PARAM]]
    return [f"{knob} {_short(before[knob])} -> {_short(now[knob])}" for knob in differing]


def _short(value: str) -> str:
    return (value if len(value) <= 40 else f"{value[:37]}...") or "empty"


def _made_of(run: "Run") -> dict[str, Files]:
    """What stood behind a run's key; nothing where that is no longer in the store."""
    if not artifacts.has(run.info.run_id, keys.MADE_OF):
        return {}
    text = artifacts.local(f"runs:/{run.info.run_id}/{keys.MADE_OF}").read_text(encoding="utf-8")
    return dict(json.loads(text))


def pins(before: Files, now: Files) -> list[str]:
    """The pinned packages that differ."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    said = [f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}" for name in names]
    return _few(said) or ["requirements.txt changed"]


def files(part: str, before: Files, now: Files) -> list[str]:
    """The files that were changed, added and removed: source files by name, raw files by number and name."""
    kinds = {
        "changed": [name for name in now if name in before and before[name] != now[name]],
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
    }
    if part in (keys.CODE, keys.FEDERATION):
        return _few([f"{name} {kind}" for kind, names in kinds.items() for name in sorted(names)])
    return [
        f"{len(names)} raw file{'s' * (len(names) != 1)} {kind}: {', '.join(_few(sorted(names)))}"
        for kind, names in kinds.items()
        if names
    ]


def _few(said: list[str]) -> list[str]:
    """The first three, and how many there are more."""
    return said[:NAMED] + ([f"and {len(said) - NAMED} more"] if len(said) > NAMED else [])
