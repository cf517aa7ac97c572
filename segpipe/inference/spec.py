"""The file that describes a model."""

import json
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from segpipe.config.sections import ModelConfig, PreprocessConfig, Section
from segpipe.data.volume import KIND_OF_READER, Kind
from segpipe.errors import InputError, one_line

FORMAT = 2
SPEC, WEIGHTS = "spec.json", "weights.safetensors"


class ModelSpec(Section):
    """How to build the network, what to feed it and how to read its answer."""

    format: int = FORMAT
    model: ModelConfig
    preprocess: PreprocessConfig
    kind: Kind
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    threshold: float = 0.5

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
