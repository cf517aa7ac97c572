"""The file that describes a model."""

import json
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import ValidationError

from segpipe.config.sections import ModelConfig, PreprocessConfig, Section
from segpipe.data.profiles import Profile
from segpipe.data.volume import KIND_OF_READER, Kind
from segpipe.errors import InputError, one_line

FORMAT = 2
SPEC, WEIGHTS = "spec.json", "weights.safetensors"


class Labelling(NamedTuple):
    """How probabilities become labels: the foreground's threshold, whether flips are averaged, and which components of
    a class are kept: the largest one alone, or those of at least so many voxels.
    """

    threshold: float
    tta: bool = False
    largest_component: bool = False
    min_area: int = 0

    @classmethod
    def of(cls, holder: object) -> Self:
        """That of a model's spec or of a request, which have its fields among others."""
        return cls(*(getattr(holder, name) for name in cls._fields))

    def less_than(self, own: Self) -> list[str]:
        """What is left out of the labelling that a model was measured with, each as a phrase."""
        left_out = [name for name in ("tta", "largest_component") if getattr(own, name) and not getattr(self, name)]
        said = [f"{name} is off, the model was measured with it" for name in left_out]
        if self.min_area < own.min_area and not self.largest_component:
            said.append(f"min_area is {self.min_area}, the model was measured with {own.min_area}")
        return said


class ModelSpec(Section):
    """How to build the network, what to feed it and how to read its answer; `sites` are those of the data set that it
    was trained at, where those were not all.
    """

    format: int = FORMAT
    model: ModelConfig
    preprocess: PreprocessConfig
    kind: Kind
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    threshold: float = 0.5
    tta: bool = False
    largest_component: bool = False
    min_area: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    profile: Profile | None = None
    sites: tuple[str, ...] = ()

    @property
    def labelling(self) -> Labelling:
        """How the model was measured."""
        return Labelling.of(self)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a spec of this version or 0.5.0 (format 1). Raises InputError for a damaged one or another format."""
        try:
            values = json.loads((folder / SPEC).read_text(encoding="utf-8"))
            if values.get("format") == 1:
                values |= {"format": FORMAT, "kind": KIND_OF_READER.get(values.pop("reader", ""))}
            if values.get("format") != FORMAT:
                raise InputError(f"{folder / SPEC}: format {values.get('format')}, this version reads 1 and {FORMAT}")
            return cls.model_validate(values)
        except (OSError, json.JSONDecodeError, ValidationError) as error:
            raise InputError(f"{folder}: not a whole segpipe model ({one_line(error)})") from None
