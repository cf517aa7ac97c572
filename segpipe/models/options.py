"""`model.options`: an architecture's own options, by the names its constructor declares."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from segpipe.errors import InputError, nearest

KNOBS = {
    "encoder_name": "model.encoder",
    "encoder_depth": "model.encoder_depth",
    "encoder_weights": "model.encoder_weights",
    "in_channels": "data.channels",
    "classes": "data.classes",
}
REFUSED = ("activation", "aux_params")


def check(arch: str, constructor: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise InputError for an option that `constructor` does not declare, that has a knob of its own or that would
    change what a network answers. What is passed on as **kwargs is no option: encoders ignore misspelt names there.
    """
    known = [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in (*KNOBS, *REFUSED)
    ]
    for name in options:
        if name in KNOBS:
            raise InputError(f"model.options: {name} is a knob of its own; set {KNOBS[name]}")
        if name in REFUSED:
            raise InputError(f"model.options: {name} can't be set, losses and metrics need plain logits; leave it out")
        if name not in known:
            hint = nearest(name, known) or f" (it has: {', '.join(known)})"
            raise InputError(f"model.options: {arch} has no option '{name}'{hint}")
