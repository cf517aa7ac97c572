"""From command lines and recipes to a Config, and back to text.

Order of precedence: the defaults in `config` < a YAML recipe < the command line.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from segpipe.config.sections import Config
from segpipe.errors import InputError, nearest, one_line


class Knob(NamedTuple):
    """One knob as `--help` shows it."""

    name: str
    default: str
    allowed: str
    description: str


LONGEST_SHOWN = 60
# A knob that is given, and those of a plan that would no longer fit to it.
OUTDATES: Mapping[str, tuple[str, ...]] = {
    "train.epochs": ("train.minutes",),
    "model.encoder": ("model.encoder_weights",),
    "compare.encoders": ("model.encoder_weights",),
    "preprocess.fit": ("preprocess.longest", "preprocess.spacing"),
    "preprocess.longest": ("preprocess.spacing",),
    "preprocess.spacing": ("preprocess.longest",),
    "preprocess.normalise": ("preprocess.window",),
}


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(str(v) for v in value)
    if isinstance(value, dict):
        return ",".join(f"{name}={json.dumps(v) if isinstance(v, list) else _text(v)}" for name, v in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(annotation: Any, metadata: Iterable[Any]) -> str:
    """What values a field takes, e.g. `int >=16 <=4096` or `resize|crop`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(arguments)
    if origin is Annotated:
        inner = [m for given in arguments[1:] for m in getattr(given, "metadata", [given])]
        return _allowed(arguments[0], inner)
    if origin in (Union, UnionType):
        return "|".join(_allowed(one, ()) for one in arguments)
    if annotation is bool:
        return "true|false"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{signs[k]}{getattr(m, k)}" for m in metadata for k in signs if getattr(m, k, None) is not None]
    kinds = {dict: "name=value,...", tuple: "list"}
    kind = kinds[origin] if origin in kinds else str(annotation.__name__)
    return " ".join([kind, *limits])


def knobs() -> dict[str, Knob]:
    """Every knob by its dotted name, in the order of declaration."""
    found = {}
    for section, field in Config.model_fields.items():
        inner: dict[str, FieldInfo] = getattr(field.annotation, "model_fields", {})
        fields = {f"{section}.{key}": knob for key, knob in inner.items()} or {section: field}
        for name, knob in fields.items():
            allowed = _allowed(knob.annotation, knob.metadata)
            found[name] = Knob(name, _text(knob.default), allowed, knob.description or "")
    return found


def _fault(error: ValidationError) -> str:
    """The first fault that was found, with the knob's name, value and what is allowed."""
    first = error.errors()[0]
    parts = [part for part in first["loc"] if isinstance(part, str)]
    name = next((known for n in (2, 1) if (known := ".".join(parts[:n])) in knobs()), ".".join(parts))
    if first["type"] == "extra_forbidden":
        return f"unknown knob '{name}'{nearest(name, list(knobs()))}"
    knob = knobs().get(name)
    if knob is None:
        return _message(first)
    faults = " or ".join(dict.fromkeys(_message(one) for one in error.errors() if one["loc"][:2] == first["loc"][:2]))
    return f"{name}={_shown(first['input'])}: {faults} (allowed: {knob.allowed}; default {knob.default or 'empty'})"


def _message(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _shown(value: object) -> str:
    """A value as part of a line: short, and without control characters."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _text(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def build(values: Mapping[str, Any]) -> Config:
    """A Config from a recipe's nested values. Raises InputError naming the knob, its value and what is allowed."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(_fault(error)) from None


def load(recipe: str | Path | None, overrides: Mapping[str, str], plan: str | Path | None = None) -> Config:
    """Defaults, then the YAML file `plan`, then `recipe`, then dotted `overrides`.

    For real data an empty data.root becomes $SEGPIPE_DATA.

    Raises InputError for a missing or malformed recipe, an unknown knob, and a value that is out of range or would have
    no effect.
    """
    config = unplanned(recipe, overrides, plan)
    check(config)
    return config


def check(config: Config) -> None:
    """Raise InputError for a knob that would have no effect beside the others."""
    fit, defaults = config.preprocess.fit, Config().train
    if fit == "crop":
        raise InputError("preprocess.fit=crop trained on the centre alone; give patch, which draws windows everywhere")
    for name in ("empty_share", "oversample") if fit == "patch" else ("patches", "foreground"):
        if getattr(config.train, name) != getattr(defaults, name):
            raise InputError(f"train.{name} has no effect with preprocess.fit={fit}; leave it out")
    for name in ("spacing", "longest"):
        if fit != "patch" and getattr(config.preprocess, name):
            raise InputError(f"preprocess.{name} has no effect with preprocess.fit={fit}; leave it out or give patch")
    if config.preprocess.normalise == "ct" and config.preprocess.clahe:
        raise InputError("preprocess.clahe has no effect with preprocess.normalise=ct; leave it out")
    if config.train.minutes and config.train.epochs != defaults.epochs:
        raise InputError("train.epochs has no effect with train.minutes; leave out one of them")


def unplanned(recipe: str | Path | None, overrides: Mapping[str, str], plan: str | Path | None = None) -> Config:
    """As `load`, but knobs may still be without effect: those that a plan is going to set are not there yet."""
    values = _read_recipe(Path(recipe)) if recipe else {}
    if plan:
        values = _completed(values, overrides, _read_recipe(Path(plan)))
    for name, value in overrides.items():
        if name not in knobs():
            raise InputError(f"unknown knob '{name}'{nearest(name, list(knobs()))}")
        section, _, key = name.partition(".")
        values[section] = {**values.get(section, {}), key: value} if key else value
    config = build(values)
    root = config.data.root or (os.environ.get("SEGPIPE_DATA", "") if config.data.format != "phantom" else "")
    weights = config.model.encoder_weights
    paths = {
        "data": {"root": _absolute(root)},
        "model": {"encoder_weights": _absolute(weights) if config.model.initialisation == "file" else weights},
        "tracking": {"outputs": _absolute(config.tracking.outputs)},
    }
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=changed) for name, changed in paths.items()}
    )


def _completed(values: dict[str, Any], overrides: Mapping[str, str], plan: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with those of a plan where neither it nor the overrides say something else."""
    outdated = outdated_by({*overrides, *_names(values)})
    sections = {*values, *plan} - {"seed"}
    found = {
        section: {
            **{k: v for k, v in plan.get(section, {}).items() if f"{section}.{k}" not in outdated},
            **values.get(section, {}),
        }
        for section in sections
    }
    return values | found


def outdated_by(given: Iterable[str]) -> set[str]:
    """The knobs that a plan must leave alone beside those that are given."""
    return {other for knob in given for other in OUTDATES.get(knob, ())}


def _names(values: Mapping[str, Any]) -> set[str]:
    return {f"{section}.{knob}" for section, content in values.items() if isinstance(content, dict) for knob in content}


def names(recipe: str | Path | None) -> set[str]:
    """The dotted names of the knobs that a recipe sets. Raises InputError as `load` does for its file."""
    return _names(_read_recipe(Path(recipe))) if recipe else set()


def recorded(recipe: Path, overrides: Mapping[str, str]) -> Config:
    """The config of a run, as by `load`, with what earlier versions took, but without that run's name: versions up to
    0.5.0 took any text for one.
    """
    return unplanned(recipe, {"tracking.run_name": "", **overrides})


def completed(config: Config, recorded: Config, sections: Collection[str], given: Collection[str]) -> Config:
    """A config whose sections are those of another one, but for the knobs that are given."""
    update: dict[str, object] = {}
    for name in set(sections) - set(given):
        theirs, ours = getattr(recorded, name), getattr(config, name)
        knobs = [knob.partition(".")[2] for knob in given if knob.startswith(f"{name}.")]
        update[name] = theirs.model_copy(update={knob: getattr(ours, knob) for knob in knobs}) if knobs else theirs
    return config.model_copy(update=update)


def _absolute(path: str) -> str:
    """A path that means the same wherever a step runs; empty stays empty."""
    return str(Path(path).expanduser().resolve()) if path else ""


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not valid YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"config {path}: expected sections such as 'train:', found {type(values).__name__}")
    for section, content in values.items():
        if section != "seed" and not isinstance(content, dict | None):
            raise InputError(f"config {path}: section '{section}' holds {content!r}, expected knobs and values")
    return {section: content for section, content in values.items() if content is not None}


def dump(config: Config) -> str:
    """The resolved config as YAML, which `load` reads back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat(config: Config) -> dict[str, str]:
    """The dotted name of every knob in the config's sections, and its value as text."""
    values = config.model_dump()
    pairs: dict[str, str] = {}
    for name in knobs():
        section, _, key = name.partition(".")
        if section in values:
            pairs[name] = _text(values[section][key] if key else values[section])
    return pairs
