"""From a fingerprint to a recipe: pure rules, each with its reason."""

import json
import math
from typing import Any, NamedTuple

from segpipe.planning.fingerprint import COLOUR, Fingerprint

WHOLE, WINDOW = 320, 256  # pixels: the longest side that is seen whole, and what is seen of a longer one
THINNEST = 6.0  # pixels: what structures must still measure in a picture that is resized
FINE = 10.0  # pixels: thinner structures need resolution rather than a wide view
FEWEST_CELLS = 8  # along a side of the deepest feature map
PIXELS, LARGEST_BATCH = 4 * WHOLE * WHOLE, 16  # of a batch


class Setting(NamedTuple):
    """A knob, its value and the reason for it."""

    knob: str
    value: Any
    reason: str


class Input(NamedTuple):
    """What the network sees at once: height and width, in pixels of the resized picture or of a window."""

    size: tuple[int, int]
    windows: bool
    depth: int
    reason: str


def plan(found: Fingerprint, minutes: float) -> list[Setting]:
    """The knobs that follow from what a data set is like and from the minutes a training may take."""
    seen = _seen(found)
    batch = max(2, min(LARGEST_BATCH, round(PIXELS / (seen.size[0] * seen.size[1]))))
    return [
        *_data(found),
        Setting("preprocess.size", list(seen.size), f"{seen.reason}, to a multiple of {2**seen.depth}"),
        Setting("preprocess.fit", "patch" if seen.windows else "resize", _fit_reason(found, seen)),
        Setting("model.encoder_depth", seen.depth, _depth_reason(found, seen)),
        *_augmentation(found),
        *_training(seen, batch, minutes),
        Setting("evaluate.tta", "auto", "flips are averaged if validation cases show that it helps"),
        Setting("evaluate.postprocess", "auto", "components are dropped if validation cases show that it helps"),
    ]


def _data(found: Fingerprint) -> list[Setting]:
    if found.kind == "volume":
        return []
    if found.coloured < 0.5:
        return [Setting("data.channels", ["grey"], f"{found.coloured:.0%} of the pictures are coloured")]
    return [Setting("data.channels", list(COLOUR), f"{found.coloured:.0%} of the pictures are coloured")]


def _seen(found: Fingerprint) -> Input:
    """Whole planes up to 320 pixels; larger pictures resized where structures stay thick enough, else in windows."""
    longest = max(found.largest)
    if longest <= WHOLE:
        side, windows = found.largest, True
        reason = f"no plane is larger than {found.largest[0]} x {found.largest[1]}"
    elif found.thickness * WHOLE / longest >= THINNEST:
        share = WHOLE / max(found.plane)
        side, windows = (round(found.plane[0] * share), round(found.plane[1] * share)), False
        reason = f"the aspect ratio of {found.plane[0]} x {found.plane[1]}, the longer side {WHOLE}"
    else:
        side, windows = (min(WINDOW, found.largest[0]), min(WINDOW, found.largest[1])), True
        reason = f"windows of {WINDOW}, as planes reach {found.largest[0]} x {found.largest[1]}"
    wanted = 4 if found.thickness < FINE else 5
    depth = max(3, min(wanted, int(math.log2(min(side) / FEWEST_CELLS))))
    multiple = 2**depth
    height, width = (max(32, math.ceil(n / multiple) * multiple) for n in side)
    return Input((height, width), windows, depth, reason)


def _fit_reason(found: Fingerprint, seen: Input) -> str:
    if seen.windows:
        return f"structures are {found.thickness:.1f} pixels thick: the scale is kept"
    share = max(seen.size) / max(found.largest)
    return f"structures are {found.thickness:.0f} pixels thick, {found.thickness * share:.0f} when resized"


def _depth_reason(found: Fingerprint, seen: Input) -> str:
    cells = min(seen.size) // 2**seen.depth
    fine = f"structures below {FINE:g} pixels" if found.thickness < FINE else "coarse structures"
    return f"{fine}; {cells} cells along the deepest feature map"


def _augmentation(found: Fingerprint) -> list[Setting]:
    fine = found.thickness < FINE
    why = "fine structures look alike any way round" if fine else "coarse structures have a way up"
    return [
        Setting("augment.flip_vertical", 0.5 if fine else 0.0, why),
        Setting("augment.rotation", 180.0 if fine else 30.0, why),
        Setting("augment.scale", 0.2, "sizes vary between subjects and cameras"),
    ]


def _training(seen: Input, batch: int, minutes: float) -> list[Setting]:
    pixels = f"{seen.size[0]} x {seen.size[1]}"
    return [
        Setting("train.minutes", minutes, "as asked for"),
        Setting("train.batch_size", batch, f"about {PIXELS / 1e6:.1f} million pixels of {pixels}"),
        Setting("train.lr", 0.002, "AdamW from random weights, clipped gradients"),
        Setting("train.weight_decay", 0.0001, "few parameters for many windows"),
        Setting("train.clip_norm", 1.0, "a batch without foreground can't throw the network off"),
        Setting("train.warmup_epochs", 2.0, "the first steps set batch statistics"),
    ]


def recipe(settings: list[Setting], found: Fingerprint) -> str:
    """A recipe as YAML, what was found as comments above, each knob with its reason beside it."""
    lines, section = [f"# {line}" for line in _describe(found)], ""
    for setting in settings:
        named, _, name = setting.knob.partition(".")
        if name and named != section:
            lines.append(f"{named}:")
        section = named
        indent = "  " if name else ""
        lines.append(f"{indent}{name or named}: {json.dumps(setting.value)}  # {setting.reason}")
    return "\n".join(lines) + "\n"


def _describe(found: Fingerprint) -> list[str]:
    height, width = found.plane
    spacing = f", {' x '.join(f'{side:.3g}' for side in found.spacing)} mm" if found.spacing else ""
    depth = f"{found.depth} slices of " if found.kind == "volume" else ""
    return [
        f"{found.cases} training cases of {found.patients} patients: {depth}{height} x {width} pixels{spacing}, "
        f"at most {found.largest[0]} x {found.largest[1]}",
        f"foreground: {found.foreground:.1%} of the pixels, in {found.filled:.0%} of the slices, "
        f"{found.thickness:.1f} pixels thick",
    ]
