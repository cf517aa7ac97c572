"""The chain as a table, and the key that decides whether a step has to run."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segpipe.config.sections import Config
from segpipe.data import raw
from segpipe.errors import InputError
from segpipe.files import code_closure, hashes, project
from steps import command

MADE_OF = "config/made_of.json"
SECTION, RESULT = "config ", "result of "
CODE, REQUIREMENTS, PYTHON, RAW = "code", "requirements", "python", "raw data"

# Where things are and how many work on them: the result is the same.
WITHOUT_EFFECT = ("data.root", "train.resume", "train.processes", "train.max_restarts")
# What finds, reuses, starts, watches and logs steps: the result is the same.
AROUND = (
    "segpipe.orchestration.chain",
    "segpipe.orchestration.keys",
    "segpipe.runtime.signals",
    "segpipe.orchestration.step_log",
    "segpipe.orchestration.orphans",
)


@dataclass(frozen=True)
class Step:
    """One row: its name is its entry point and its module; `sections` are the config it reads, `output` the folder of
    artifacts that must be whole for its run to be reused.
    """

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str


STEPS = {
    step.name: step
    for step in (
        Step("preprocess", ("data", "preprocess", "split", "seed"), (), "dataset"),
        Step("train", ("model", "loss", "augment", "train", "seed"), ("preprocess",), "final_model"),
        Step("evaluate", ("evaluate", "registry", "card", "seed"), ("preprocess", "train"), "evaluation"),
        Step("register", ("gate", "registry"), ("preprocess", "evaluate"), "register"),
    )
}


@dataclass(frozen=True)
class Key:
    """What a step's result depends on, part by part."""

    parts: dict[str, str]

    @property
    def digest(self) -> str:
        return hashes.of_json(self.parts)

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
    parts = {SECTION + section: hashes.of_json(values[section])[:16] for section in step.sections}
    parts |= made_with(name)
    parts |= {RESULT + upstream: digest[:16] for upstream, digest in inputs.items()}
    if "data" in step.sections:
        parts[RAW] = raw.digest(_raw_files(config))
    if "model" in step.sections and config.model.initialisation == "file":
        parts["initial weights"] = _file(Path(config.model.encoder_weights))
    return Key(parts)


def made_with(name: str) -> dict[str, str]:
    """The parts of a step's key that are this checkout's and this interpreter's, whatever the config."""
    return {
        CODE: hashes.digest(code(name))[:16],
        REQUIREMENTS: hashes.digest([project.REQUIREMENTS])[:16],
        PYTHON: ".".join(platform.python_version_tuple()[:2]),
    }


def code(name: str) -> list[Path]:
    """The project's files that a step can import to do its work."""
    return code_closure.closure([f"steps.{name}"], AROUND)


def made_of(name: str, config: Config) -> str:
    """What stands behind the digests in a step's key, as JSON: each source file and raw file with its SHA-256, each
    requirement with its version.
    """
    files = {path.relative_to(project.PROJECT).as_posix(): hashes.sha256(path) for path in code(name)}
    raw_files = _raw_files(config) if "data" in STEPS[name].sections else {}
    return json.dumps({CODE: files, REQUIREMENTS: project.requirements(), RAW: raw_files}, indent=1)


def _raw_files(config: Config) -> dict[str, str]:
    return raw.files(config.data, command.progress("raw data"))


def _file(path: Path) -> str:
    try:
        return hashes.sha256(path)[:16]
    except OSError as error:
        raise InputError(f"model.encoder_weights={path}: {error.strerror}; give none, imagenet or a file") from None
