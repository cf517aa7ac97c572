"""An encoder's initial weights from a local file, each checked by name and shape."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.errors import InputError
from segpipe.models.encoders import check_file

PREFIXES = ("", "encoder.", "network.encoder.")
NESTED = ("state_dict", "model")
HEADS = ("fc.", "classifier.", "head.", "head_dist.", "last_linear.")
COUNTER = "num_batches_tracked"


def load(path: str, encoder: nn.Module, complete: Collection[str]) -> None:
    """Load the weights of a file into an encoder. They may be those of

    - the encoder alone, as smp, torchvision or timm name them,
    - a whole network or a segpipe model (`encoder.` or `network.encoder.` before each name),
    - either under DistributedDataParallel (`module.` before each name).

    `complete` names the weights of the encoder before unused parts were dropped: the file may hold them or not. Heads
    of classification networks and batch counters are ignored.

    Raises InputError where the file can't be read, or lacks, adds or reshapes a weight.
    """
    wanted = encoder.state_dict()
    found = _aligned(_read(path), wanted)
    missing = [n for n in wanted if n not in found and not n.endswith(COUNTER)]
    ignored = [n for n in found if n.endswith(COUNTER) or n.removeprefix("model.").startswith(HEADS)]
    unexpected = [n for n in found if n not in complete and n not in ignored]
    reshaped = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    faults = [
        f"{len(names)} {fault} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for fault, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ] + _reshaped_faults(reshaped, found, wanted)
    if faults:
        raise InputError(
            f"model.encoder_weights={path}: not the weights of this encoder: {'; '.join(faults)};"
            " give a file made for model.encoder, or none"
        )
    with torch.no_grad():
        for name in wanted.keys() & found.keys():
            wanted[name].copy_(found[name])


def _read(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name. Pickled code is never run."""
    import safetensors.torch

    check_file(path)
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes make an unpickler raise anything
        raise InputError(
            f"model.encoder_weights={path}: not readable as .safetensors or as a torch state dict of tensors alone"
        ) from None
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"model.encoder_weights={path}: holds no state dict; save network.encoder.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _aligned(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The encoder's part of a file, under the encoder's own names, by the prefix that matches most of them."""
    readings = [{n.removeprefix(p): v for n, v in state.items() if n.startswith(p)} for p in PREFIXES]
    readings.append({f"model.{n}": v for n, v in state.items()})  # smp keeps a timm network under this name
    return max(readings, key=lambda reading: len(set(wanted) & reading.keys()))


def _reshaped_faults(names: list[str], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    if not names:
        return []
    name = names[0]
    theirs, ours = tuple(found[name].shape), tuple(wanted[name].shape)
    if len(names) == 1 and len(ours) == 4 and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:
        return [f"{name} takes {theirs[1]} image channels, the data has {ours[1]}"]
    return [f"{len(names)} of another shape ({name}: {theirs}, needs {ours})"]
