"""Every knob, declared once: type, bounds, default and a one-line description.

Order of precedence: the defaults below < a YAML recipe < the command line.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from segpipe.errors import InputError, one_line


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _square(value: object) -> object:
    parts = _split(value) if isinstance(value, str) else value
    if isinstance(parts, int):
        return (parts, parts)
    if isinstance(parts, tuple | list) and len(parts) == 1:
        return (parts[0], parts[0])
    return parts


Architecture = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet",
    "segformer",
]  # fmt: skip
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Side = Annotated[int, Field(ge=16, le=4096)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_square)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of knobs; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """What is read."""

    format: Literal["phantom", "nifti", "folder"] = Field("phantom", description="how the raw data lies on disk")
    root: str = Field("", description="folder with the raw data (default: $SEGPIPE_DATA; the phantom writes to data/)")
    channels: Names = Field(
        (), description="nifti: file suffixes, default dwi,adc; folder: 'grey' (default) or 'red,green,blue'"
    )
    classes: Names = Field((), description="names of mask values 1,2,...; empty: binary masks of any two values")
    mask_suffix: str = Field("msk", min_length=1, description="nifti: suffix of the mask files under derivatives/")
    patients: int = Field(40, ge=3, le=10_000, description="phantom: how many patients to simulate")

    @model_validator(mode="after")
    def _known_channels(self) -> "DataConfig":
        if self.format == "folder" and self.channels not in ((), ("grey",), ("red", "green", "blue")):
            raise ValueError("data.channels for a folder is 'grey' or 'red,green,blue'")
        if self.format == "phantom" and set(self.channels) - {"dwi", "adc"}:
            raise ValueError("data.channels for the phantom are 'dwi' and 'adc'")
        if len(set(self.classes)) < len(self.classes) or len(set(self.channels)) < len(self.channels):
            raise ValueError("data.channels and data.classes must not name anything twice")
        return self

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels read, with the format's default filled in."""
        return self.channels or (("grey",) if self.format == "folder" else ("dwi", "adc"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The foreground classes; one named `foreground` for binary masks."""
        return self.classes or ("foreground",)


class PreprocessConfig(Section):
    """From raw intensities and any size to what the network sees."""

    size: Size = Field((96, 96), description="height,width the network sees (one number: square)")
    fit: Literal["resize", "crop"] = Field(
        "resize", description="resize keeps the aspect ratio and pads; crop cuts or pads around the centre"
    )
    clip_low: float = Field(0.5, ge=0, lt=50, description="lower percentile at which a channel is clipped")
    clip_high: float = Field(99.5, gt=50, le=100, description="upper percentile at which a channel is clipped")
    normalise: Literal["zscore", "minmax"] = Field("zscore", description="intensity scale, per case and channel")
    clahe: bool = Field(False, description="contrast-limited adaptive histogram equalisation, slice by slice")


class SplitConfig(Section):
    """Who is trained on, chosen on and tested on: by patient, balanced over sites."""

    val: Fraction = Field(0.15, description="share of patients for validation")
    test: Fraction = Field(0.25, description="share of patients for the test set")
    min_patients: int = Field(3, ge=1, description="fewer patients than this are refused")

    @model_validator(mode="after")
    def _room_for_training(self) -> "SplitConfig":
        if self.val + self.test >= 1:
            raise ValueError("split.val + split.test must leave patients to train on: below 1")
        return self


class ModelConfig(Section):
    """The network."""

    arch: Architecture = Field("unet", description="architecture; 'unet++' and 'deeplabv3+' mean the same as ...plus")
    encoder: str = Field("resnet18", min_length=1, description="encoder, any name segmentation-models-pytorch knows")
    encoder_depth: int = Field(5, ge=3, le=5, description="encoder stages, where the architecture allows a choice")
    encoder_weights: Literal["none", "imagenet"] = Field(
        "none", description="start from random weights or from downloaded ImageNet weights"
    )

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("arch"), str):
            arch = values["arch"].lower().replace("++", "plusplus").replace("v3+", "v3plus")
            return {**values, "arch": arch}
        return values


class LossConfig(Section):
    """Weighted sum of soft Dice and cross-entropy."""

    dice_weight: float = Field(1.0, ge=0, description="weight of the soft Dice term")
    bce_weight: float = Field(1.0, ge=0, description="weight of the (binary) cross-entropy term")

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossConfig":
        if self.dice_weight + self.bce_weight == 0:
            raise ValueError("loss.dice_weight and loss.bce_weight must not both be 0")
        return self


class AugmentConfig(Section):
    """Random changes of the training images, drawn from (seed, epoch, sample)."""

    enabled: bool = Field(True, description="augment the training images")
    flip_horizontal: Fraction = Field(0.5, description="probability of a left-right flip")
    flip_vertical: Fraction = Field(0.0, description="probability of an up-down flip")
    affine: Fraction = Field(0.75, description="probability of a rotation and scaling")
    rotation: float = Field(15.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.15, ge=0, lt=1, description="largest relative change of size")
    intensity: Fraction = Field(0.5, description="probability of a change of brightness, contrast and gamma")
    brightness: float = Field(0.2, ge=0, description="largest shift, in standard deviations of the image")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest relative change of contrast")
    gamma: float = Field(0.2, ge=0, lt=1, description="largest relative change of the exponent")


class TrainConfig(Section):
    """Optimisation."""

    epochs: int = Field(50, ge=1, le=100_000, description="passes over the training set")
    batch_size: int = Field(16, ge=1, le=4096, description="slices or images a step")
    empty_share: Fraction = Field(1.0, description="share of the slices without foreground drawn anew for each epoch")
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate of AdamW")
    weight_decay: float = Field(1e-2, ge=0, le=10, description="decoupled weight decay of AdamW")
    warmup_epochs: float = Field(1.0, ge=0, description="linear warm-up, then a cosine to zero")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 on a GPU that has it")


class EvaluateConfig(Section):
    """How the test set is measured."""

    threshold: float = Field(0.5, gt=0, lt=1, description="foreground probability from which a voxel is foreground")
    bootstrap_samples: int = Field(2000, ge=100, le=1_000_000, description="resamples behind a confidence interval")


class GateConfig(Section):
    """What a model must show before it becomes champion."""

    min_dice: Fraction = Field(0.0, description="floor on the mean test Dice")
    min_improvement: float = Field(0.0, ge=0, le=1, description="mean Dice a challenger must gain over the champion")


class RegistryConfig(Section):
    """Where a model is promoted."""

    model_name: str = Field(
        "segpipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$", description="name in the Model Registry"
    )


class TrackingConfig(Section):
    """Where runs are recorded; the server itself comes from $MLFLOW_TRACKING_URI."""

    experiment: str = Field("segpipe", min_length=1, description="MLflow experiment, unless MLflow has set one")


class Config(Section):
    """All sections."""

    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig = RegistryConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random draw")


class Knob(NamedTuple):
    """One knob as `--help` shows it."""

    name: str
    default: str
    allowed: str
    description: str


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(str(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(field: FieldInfo) -> str:
    """What values a field takes, e.g. `16..4096` or `resize|crop`."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if annotation is bool:
        return "true|false"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{signs[k]}{getattr(m, k)}" for m in field.metadata for k in signs if getattr(m, k, None) is not None]
    origin = get_origin(annotation)
    kind = annotation.__name__ if isinstance(annotation, type) and origin is None else "list"
    return " ".join([kind, *limits])


def knobs() -> dict[str, Knob]:
    """Every knob by its dotted name, in the order of declaration."""
    found = {}
    for section, field in Config.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            found[section] = Knob(section, _text(field.default), _bounds(field), field.description or "")
            continue
        for name, sub in field.annotation.model_fields.items():
            dotted = f"{section}.{name}"
            found[dotted] = Knob(dotted, _text(sub.default), _bounds(sub), sub.description or "")
    return found


def nearest(name: str, known: list[str]) -> str:
    """` (nearest: X)` for a misspelt name, or nothing where none is near."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (nearest: {match[0]})" if match else ""


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return f"unknown knob '{name}'{nearest(name, list(knobs()))}"
    knob = knobs().get(name)
    if knob is None:
        return str(first["msg"]).removeprefix("Value error, ")
    return (
        f"{name}={_text(first['input'])}: {first['msg']} (allowed: {knob.allowed}; default {knob.default or 'empty'})"
    )


def build(values: Mapping[str, Any]) -> Config:
    """A Config from nested values, as they stand in a recipe.

    Raises InputError naming the knob, its value and what is allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(_told(error)) from None


def load(recipe: str | Path | None, overrides: Mapping[str, str]) -> Config:
    """Defaults, then the YAML file `recipe`, then dotted `overrides`.

    For real data an empty data.root becomes $SEGPIPE_DATA.

    Raises InputError for a missing or malformed recipe, an unknown knob or a value out of range.
    """
    values = _read_recipe(Path(recipe)) if recipe else {}
    for name, value in overrides.items():
        if name not in knobs():
            raise InputError(f"unknown knob '{name}'{nearest(name, list(knobs()))}")
        section, _, key = name.partition(".")
        if key:
            values[section] = {**values.get(section, {}), key: value}
        else:
            values[section] = value
    config = build(values)
    root = config.data.root or (os.environ.get("SEGPIPE_DATA", "") if config.data.format != "phantom" else "")
    absolute = str(Path(root).expanduser().resolve()) if root else ""
    return config.model_copy(update={"data": config.data.model_copy(update={"root": absolute})})


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
    """Every knob's dotted name and its value as text."""
    values = config.model_dump()
    pairs: dict[str, str] = {}
    for name in knobs():
        section, _, key = name.partition(".")
        pairs[name] = _text(values[section][key] if key else values[section])
    return pairs


def digest(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
