"""An encoder's initial weights from a local file, each checked by name and shape."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.errors import InputError
from segpipe.models import encoders

PREFIXES = ("", "encoder.", "network.encoder.")
NESTED = ("state_dict", "model")
HEADS = ("fc.", "classifier.", "head.", "head_dist.", "last_linear.")
COUNTER = "num_batches_tracked"


def load(path: str, encoder: nn.Module, complete: Collection[str]) -> None:
    """Load the weights of a file into an encoder. They may be those of

    - the encoder alone, or the classification network around it, as smp, torchvision or timm name them,
    - a whole network or a segpipe model (`encoder.` or `network.encoder.` before each name),
    - either under DistributedDataParallel (`module.` before each name).

    `complete` names the weights of the encoder, or of the network it is of, before unused parts were dropped: the file
    may hold them or not. Heads of classification networks and batch counters are ignored. A first convolution for
    another number of image channels is adapted to this one's.

    Raises InputError where the file can't be read, or lacks, adds or reshapes a weight.
    """
    wanted = encoder.state_dict()
    found = _adapted(_aligned(_read(path), wanted), wanted)
    _fill(f"model.encoder_weights={path}", wanted, found, complete)


def load_bundled(name: str, encoder: nn.Module, complete: Collection[str]) -> None:
    """Load the weights that an installed package ships for an encoder of that name.

    Raises InputError where there is no such package, or its file is another one.
    """
    path = encoders.bundled(name)
    state, theirs = _read(str(path)), _timm_names(name.rpartition("-")[2])
    if len(state) != len(theirs):
        raise InputError(f"model.encoder_weights=bundled: {path} holds {len(state)} weights, not {len(theirs)}")
    wanted = encoder.state_dict()
    renamed = dict(zip(theirs, state.values(), strict=True))  # the package's names are older, the order is the same
    _fill("model.encoder_weights=bundled", wanted, _adapted(_aligned(renamed, wanted), wanted), complete)


def _timm_names(name: str) -> list[str]:
    import timm

    return list(timm.create_model(name, pretrained=False).state_dict())


def _fill(knob: str, wanted: dict[str, Tensor], found: Mapping[str, Tensor], complete: Collection[str]) -> None:
    """Copy the weights that are found into those that are wanted. Raises InputError where they don't fit."""
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
            f"{knob}: not the weights of this encoder: {'; '.join(faults)}; give a file made for model.encoder, or none"
        )
    with torch.no_grad():
        for name in wanted.keys() & found.keys():
            wanted[name].copy_(found[name])


def _read(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name. Pickled code is never run."""
    import safetensors.torch

    encoders.check_file(path)
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
    flat = {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", n): v for n, v in state.items()}  # as timm names stages it takes out
    readings.append({f"model.{n}": v for n, v in flat.items()})
    return max(readings, key=lambda reading: len(set(wanted) & reading.keys()))


def _adapted(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a first convolution, if that is all that differs in shape, for the image channels wanted: an
    image that is the same in every channel is answered as before.
    """
    names = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    if len(names) != 1 or found[names[0]].ndim != 4:
        return found
    theirs, channels = found[names[0]], wanted[names[0]].shape[1]
    if theirs[:, :1].shape != wanted[names[0]][:, :1].shape:
        return found
    before = theirs.shape[1]
    if channels < before:
        parts = [theirs[:, n::channels].sum(dim=1, keepdim=True) for n in range(channels)]
        return found | {names[0]: torch.cat(parts, dim=1)}
    repeated = theirs.repeat(1, -(-channels // before), 1, 1)[:, :channels]
    shown = torch.bincount(torch.arange(channels) % before)  # how often each of theirs is repeated
    return found | {names[0]: repeated / shown[torch.arange(channels) % before][:, None, None]}


def _reshaped_faults(names: list[str], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    if not names:
        return []
    name = names[0]
    theirs, ours = tuple(found[name].shape), tuple(wanted[name].shape)
    return [f"{len(names)} of another shape ({name}: {theirs}, needs {ours})"]
