"""The key that decides whether a step has to run."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.data import raw
from segpipe.errors import InputError
from segpipe.files import hashes, project
from segpipe.files.code_closure import Code
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.step_table import ROWS

MADE_OF = "config/made_of.json"
SECTION, RESULT = "config ", "result of "
CODE, REQUIREMENTS, PYTHON, RAW = "code", "requirements", "python", "raw data"
FEDERATION = "code of federations"  # of a training that averages sites, beside its code
FORMAT, CURRENT = "key format", "2"  # keys of segpipe 0.5 name none: they are of the bytes of more files
# This checkout's and this interpreter's parts of a key.
MADE_HERE = (FORMAT, CODE, FEDERATION, REQUIREMENTS, PYTHON)

# Where things are and how many work on them: the result is the same.
WITHOUT_EFFECT = ("data.root", "train.resume", "train.processes", "train.max_restarts")
# Knobs that came after keys had been made, with the value at which all is as before: a key leaves them out then.
AS_BEFORE: Mapping[str, object] = {
    "data.site_gap": 1.0,
    "preprocess.spacing": [],
    "preprocess.longest": 0,
    "preprocess.window": [],
    "preprocess.context": 0,
    **{f"augment.{name}_p": 0.0 for name in ("stretch", "colour", "coarse")},
    "augment.stretch": 0.2,
    "augment.colour": 0.2,
    "augment.coarse": 0.5,
    "augment.gamma_inverted": 0.0,
    "train.minutes": 0.0,
    "train.patches": 0,
    "train.foreground": 0.33,
    "federate.strategy": "central",
    "federate.sites": [],
    "federate.rounds": 0,
    "federate.local_epochs": 1,
    "federate.mu": 0.01,
    "federate.quorum": 0,
    "federate.deadline": 0.0,
    "federate.first_deadline": 0.0,
    "federate.optimizer": "keep",
    "gate.site_margin": 0.05,
    "evaluate.tta": False,
    "evaluate.postprocess": "none",
    "evaluate.precision": "auto",
}
# What the pages of an evaluation are made from beside what it keeps: sections of the config, and code.
PAGES_SECTIONS, PAGES_CODE = ("card", "registry"), "segpipe.evaluation.pages"
# What only words, shows, finds, starts and records: the result is the same. What a config says is in the key itself.
WITHOUT_EFFECT_ON_RESULTS = (
    *("segpipe.errors", "segpipe.config", "segpipe.files", "segpipe.plots", "segpipe.tracking", "segpipe.recording"),
    *("segpipe.serving", "segpipe.registry", "segpipe.server", "segpipe.prediction", "segpipe.orchestration"),
    *("segpipe.runtime.processes", "segpipe.runtime.signals", "segpipe.evaluation.report", "segpipe.evaluation.card"),
)


@dataclass(frozen=True)
class Key:
    """What a step's result depends on, part by part."""

    parts: dict[str, str]

    @property
    def digest(self) -> str:
        return hashes.of_json(self.parts)

    def text(self) -> str:
        return json.dumps(self.parts)


class Keys:
    """Makes the keys of a command's steps: the code is parsed once, and `screen` shows the reading of raw data."""

    def __init__(self, screen: Screen, code: Code | None = None) -> None:
        self.screen, self.code = screen, code or Code()

    def key(self, name: str, config: Config, inputs: Mapping[str, str]) -> Key:
        """The key of a step for a config and the keys of its inputs.

        Raises InputError where raw data, or a file of weights, is missing, for the step that reads it.
        """
        step = ROWS[name]
        parts = {SECTION + section: digest for section, digest in section_digests(step.sections, config).items()}
        parts |= self.made_with(name)
        parts |= {RESULT + upstream: digest[:16] for upstream, digest in inputs.items()}
        if "data" in step.sections:
            parts[RAW] = raw.digest(self._raw_files(config))
        if _averages(name, config):
            parts[FEDERATION] = hashes.of_json(self._federation())[:16]
        if "model" in step.sections and config.model.initialisation == "file":
            parts["initial weights"] = _hash_weights(Path(config.model.encoder_weights))
        return Key(parts)

    def made_with(self, name: str) -> dict[str, str]:
        """The parts of a step's key that are this checkout's and this interpreter's, whatever the config."""
        return {
            FORMAT: CURRENT,
            CODE: hashes.of_json(self.deciding(name))[:16],
            REQUIREMENTS: hashes.of_json(project.pins())[:16],
            PYTHON: ".".join(platform.python_version_tuple()[:2]),
        }

    def deciding(self, name: str) -> dict[str, str]:
        """The project's files that decide a step's result, each with a digest of what it does."""
        return self.code.meanings(self.code.closure(ROWS[name].code, WITHOUT_EFFECT_ON_RESULTS))

    def _federation(self) -> dict[str, str]:
        """Those files that decide the result of a training which averages sites, and of no other."""
        others = self.deciding("train")
        files = self.code.closure(["segpipe.federation.federated"], WITHOUT_EFFECT_ON_RESULTS)
        return {name: meaning for name, meaning in self.code.meanings(files).items() if name not in others}

    def pages(self, config: Config) -> dict[str, str]:
        """What the pages of an evaluation are made from, each knob and file with a digest (8 hex digits) of it."""
        files = self.code.meanings(
            self.code.closure([PAGES_CODE], ("segpipe.errors", "segpipe.config", "segpipe.files"))
        )
        values = settings.flat(config.narrowed(PAGES_SECTIONS)) | files
        return {name: hashes.of_json(value)[:8] for name, value in values.items()}

    def made_of(self, name: str, config: Config) -> str:
        """What stands behind the digests in a step's key, as JSON: each source file with a digest of what it does, each
        raw file with its SHA-256, each requirement with its version.
        """
        raw_files = self._raw_files(config) if "data" in ROWS[name].sections else {}
        parts = {CODE: self.deciding(name), REQUIREMENTS: project.requirements(), RAW: raw_files}
        if _averages(name, config):
            parts[FEDERATION] = self._federation()
        return json.dumps(parts, indent=1)

    def _raw_files(self, config: Config) -> dict[str, str]:
        return raw.files(config.data, self.screen.progress("raw data"))


def _averages(name: str, config: Config) -> bool:
    """Whether a step is a training of sites whose weights are averaged."""
    return "federate" in ROWS[name].sections and config.federate.averages


def section_digests(
    sections: tuple[str, ...], config: Config, as_before: Mapping[str, object] = AS_BEFORE
) -> dict[str, str]:
    """A digest (16 hex digits) for each section of a config, or single knob, of what has an effect. A section has none
    if all its knobs are `as_before`.
    """
    values = config.model_dump(mode="json", include={name.partition(".")[0] for name in sections})
    if "model" in values:
        values["model"]["encoder_weights"] = config.model.initialisation
    digests = {}
    for name in sections:
        section, _, single = name.partition(".")
        found = values[section]
        if single:
            found = {single: found[single]}
        elif isinstance(found, dict):
            found = {knob: value for knob, value in found.items() if _counts(f"{section}.{knob}", value, as_before)}
        if found != {}:
            digests[name] = hashes.of_json(found)[:16]
    return digests


def _counts(knob: str, value: object, as_before: Mapping[str, object]) -> bool:
    return knob not in WITHOUT_EFFECT and not (knob in as_before and as_before[knob] == value)


def _hash_weights(path: Path) -> str:
    try:
        return hashes.sha256(path)[:16]
    except OSError as error:
        raise InputError(f"model.encoder_weights={path}: {error.strerror}; give none, imagenet or a file") from None
