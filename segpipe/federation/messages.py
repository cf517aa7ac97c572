"""What a server and its sites send each other: weights in a safetensors file, a few figures in its header.

A header holds no more than the fields of `Task` and `Reply`: they are all that leaves a site beside its weights.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import safetensors
import safetensors.torch
from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from segpipe.config.sections import Section
from segpipe.errors import InputError, one_line

Weights = dict[str, Tensor]
FIELD = "segpipe"


class Header(Section):
    """Figures that are written as JSON, those that are not finite as text."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")


class Task(Header):
    """What sites are asked for: `train` validates the weights that come with it, but for the first round's, and trains
    for `epochs` from there; `validate` only validates them, `confirm` does so without any layers of a site's own.
    """

    kind: Literal["train", "validate", "confirm"]
    round: int
    epochs: int = 0


class Figures(Header):
    """Mean loss over so many samples and mean Dice over so many cases, those without a Dice left out."""

    loss: float
    samples: int
    dice: float
    cases: int


class Reply(Header):
    """What a site answers: how many samples it trains on in an epoch, what training and, before it, the weights it got
    showed there, its last learning rate, its seconds, of which it waited for data so many. `cases` is the Dice of each
    validation case, which only sites on the server's own machine tell.
    """

    site: str
    round: int
    examples: int
    seconds: float
    waited: float = 0.0
    learning_rate: float = 0.0
    trained: Figures | None = None
    received: Figures | None = None
    cases: tuple[float | None, ...] = ()


Kind = TypeVar("Kind", bound=Header)


def write(path: Path, header: Header, weights: Mapping[str, Tensor]) -> None:
    """Write a message; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    stored = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    safetensors.torch.save_file(stored, partial, {FIELD: header.model_dump_json()})
    partial.replace(path)


def header(path: Path, kind: type[Kind]) -> Kind:
    """The figures of a message. Raises InputError where it is no such message."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(FIELD, "")
        return kind.model_validate_json(text)
    except (OSError, SafetensorError, ValidationError) as error:
        raise InputError(f"{path.name}: not a message of a federation ({one_line(error)})") from None


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a message with its name, one at a time. Raises InputError where it is no such message."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path.name}: not a message of a federation ({one_line(error)})") from None
