"""The chain as a table, and the key that decides whether a step has to run."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segpipe import journal, settings, sources
from segpipe.config import Config
from segpipe.data import raw
from segpipe.errors import InputError

# Where things are and how many work on them: the result is the same.
WITHOUT_EFFECT = ("data.root", "train.resume", "train.processes", "train.max_restarts")


@dataclass(frozen=True)
class Step:
    """One row: its name is its entry point and its module; `sections` are the config it reads, `output` the artifact
    that shows it is whole.
    """

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str


STEPS = {
    step.name: step
    for step in (
        Step("preprocess", ("data", "preprocess", "split", "seed"), (), "dataset/manifest.json"),
        Step("train", ("model", "loss", "augment", "train", "seed"), ("preprocess",), journal.HISTORY),
        Step("evaluate", ("evaluate", "registry", "card", "seed"), ("preprocess", "train"), "evaluation/summary.json"),
        Step("register", ("gate", "registry"), ("preprocess", "evaluate"), "register/decision.json"),
    )
}


@dataclass(frozen=True)
class Key:
    """What a step's result depends on, part by part."""

    parts: dict[str, str]

    @property
    def digest(self) -> str:
        return settings.digest(self.parts)

    def text(self) -> str:
        return json.dumps(self.parts)


def key(name: str, config: Config, inputs: Mapping[str, str]) -> Key:
    """The key of a step for a config and the keys of its inputs.

    Raises InputError where raw data, or a file of weights, is missing, for the step that reads it.
    """
    step = STEPS[name]
    values = config.model_dump(mode="json", include=set(step.sections))
    for knob in WITHOUT_EFFECT:
        section, _, field = knob.partition(".")
        values.get(section, {}).pop(field, None)
    if "model" in values:
        values["model"]["encoder_weights"] = config.model.initialisation
    parts = {f"config {section}": settings.digest(values[section])[:16] for section in step.sections}
    parts |= made_with(name)
    parts |= {f"result of {upstream}": digest[:16] for upstream, digest in inputs.items()}
    if "data" in step.sections:
        parts["raw data"] = raw.digest(config.data)
    if "model" in step.sections and config.model.initialisation == "file":
        parts["initial weights"] = _file(Path(config.model.encoder_weights))
    return Key(parts)


def made_with(name: str) -> dict[str, str]:
    """The parts of a step's key that are this checkout's and this interpreter's, whatever the config."""
    return {
        "code": sources.digest(sources.closure([f"steps.{name}"]))[:16],
        "requirements": sources.digest([sources.PROJECT / "requirements.txt"])[:16],
        "python": platform.python_version(),
    }


def _file(path: Path) -> str:
    try:
        return sources.sha256(path)[:16]
    except OSError as error:
        raise InputError(f"model.encoder_weights={path}: {error.strerror}; give none, imagenet or a file") from None
