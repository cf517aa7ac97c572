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


def checked(arch: str, constructor: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as keyword arguments of `constructor`.

    What a constructor passes on as **kwargs is no option: encoders take misspelt names there in silence.
    Raises InputError for an option that doesn't exist, has a knob of its own or would change what a network answers.
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
    return dict(options)
