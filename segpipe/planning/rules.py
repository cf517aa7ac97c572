"""From a fingerprint to a recipe: pure rules, each with its reason."""

import json
import math
from typing import Any, NamedTuple

from segpipe.planning.fingerprint import COLOUR, Fingerprint

WINDOW, RESIZED = 256, 320  # pixels: the longest side that is seen as it is, else a window's; that of a resized plane
SURVIVAL = 0.98  # Dice that masks must keep at the scale of the encoder's finest features, half of the images'
FINEST = 2
LITTLE = 1.1  # ratio of spacings that is not worth resampling
WORTH = 4 / 3  # ratio of scales that is: windows then see nearly twice the area
PRETRAINED = "tu-tf_efficientnet_lite0"  # the encoder whose weights are bundled
BELOW_AIR = -500.0  # no intensity of MRI is as low, any CT of a whole body part is
FINE = 10.0  # pixels: thinner structures need resolution rather than a wide view
FEWEST_CELLS = 8  # along a side of the deepest feature map
PIXELS, LARGEST_BATCH = 4 * WINDOW * WINDOW, 16  # of a batch


class Setting(NamedTuple):
    """A knob, its value and the reason for it."""

    knob: str
    value: Any
    reason: str


class Input(NamedTuple):
    """What the network sees at once: height and width in pixels, of windows or of a whole resized plane, at what share
    of the cases' own scale; the knob for that scale, if there is one; how often the encoder halves it, and why.
    """

    size: tuple[int, int]
    windows: bool
    scale: float
    resampling: list[Setting]
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
        *seen.resampling,
        *_intensities(found),
        *_weights(found),
        Setting("model.encoder_depth", seen.depth, _depth_reason(found, seen)),
        *_augmentation(found.thickness * seen.scale < FINE),
        *_training(found, seen, batch, minutes),
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
    """Planes up to 256 pixels whole; larger ones at the smallest scale at which an encoder can still see their masks:
    whole where that is 320 pixels, else in windows.
    """
    longest = max(found.largest)
    kept = FINEST * min((side for side, dice in found.survival.items() if dice >= SURVIVAL), default=longest)
    if longest <= WINDOW:
        sides, windows, scale, resampling = found.largest, True, 1.0, _spacing(found, 1.0)
        reason = f"no plane is larger than {found.largest[0]} x {found.largest[1]}"
    elif kept <= RESIZED < longest:
        scale = RESIZED / longest
        share = RESIZED / max(found.plane)
        sides, windows, resampling = (round(found.plane[0] * share), round(found.plane[1] * share)), False, []
        reason = f"the aspect ratio of {found.plane[0]} x {found.plane[1]}, the longer side {RESIZED}"
    else:
        scale = kept / longest if longest >= WORTH * kept else 1.0
        resampling = _spacing(found, scale) if found.spacing else _longest(found, kept, scale)
        sides, windows = (min(WINDOW, found.largest[0]), min(WINDOW, found.largest[1])), True
        reason = f"windows of {WINDOW}, as planes reach {found.largest[0]} x {found.largest[1]}"
    wanted = 4 if found.thickness * scale < FINE else 5
    depth = max(3, min(wanted, int(math.log2(min(sides) / FEWEST_CELLS))))
    multiple = 2**depth
    height, width = (max(32, math.ceil(n / multiple) * multiple) for n in sides)
    return Input((height, width), windows, scale, resampling, depth, reason)


def _longest(found: Fingerprint, kept: int, scale: float) -> list[Setting]:
    if scale == 1:
        return []
    why = f"at half of it masks keep a Dice of {found.survival[kept // FINEST]:.3f}, and windows see more"
    return [Setting("preprocess.longest", kept, why)]


def _spacing(found: Fingerprint, scale: float) -> list[Setting]:
    """The median spacing where pixels differ in size, or are to be larger."""
    if not found.spacing or not found.pixels:
        return []
    low, high = found.pixels
    if scale == 1 and high <= LITTLE * low:
        return []
    wanted = [round(side / scale, 3) for side in found.spacing[1:]]
    why = (
        "masks survive half of it, and windows see more"
        if scale < 1
        else f"the median; pixels are {low:.3g} to {high:.3g} mm"
    )
    return [Setting("preprocess.spacing", wanted, why)]


def _fit_reason(found: Fingerprint, seen: Input) -> str:
    thick = f"structures are {found.thickness * seen.scale:.1f} pixels thick"
    return f"{thick} at this scale" if seen.windows else f"{thick} when resized, and masks survive half of it"


def _intensities(found: Fingerprint) -> list[Setting]:
    """Hounsfield units mean the same in every case: the window of the foreground for all."""
    if found.kind == "picture" or found.lowest > BELOW_AIR:
        return []
    window = [round(side, 1) for side in found.window]
    return [
        Setting("preprocess.normalise", "ct", f"intensities reach down to {found.lowest:.0f}, as Hounsfield units do"),
        Setting("preprocess.window", window, "99 % of the foreground lies within"),
    ]


def _weights(found: Fingerprint) -> list[Setting]:
    if found.kind == "volume":
        return []
    return [
        Setting("model.encoder", PRETRAINED, "the encoder whose ImageNet weights are at hand"),
        Setting("model.encoder_weights", "bundled", "pretrained on photographs: fewer cases and steps are enough"),
    ]


def _depth_reason(found: Fingerprint, seen: Input) -> str:
    cells = min(seen.size) // 2**seen.depth
    fine = f"structures below {FINE:g} pixels" if found.thickness * seen.scale < FINE else "coarse structures"
    return f"{fine}; {cells} cells along the deepest feature map"


def _augmentation(fine: bool) -> list[Setting]:
    why = "fine structures look alike any way round" if fine else "coarse structures have a way up"
    return [
        Setting("augment.flip_vertical", 0.5 if fine else 0.0, why),
        Setting("augment.rotation", 180.0 if fine else 30.0, why),
        Setting("augment.scale", 0.2, "sizes vary between subjects and cameras"),
    ]


def _training(found: Fingerprint, seen: Input, batch: int, minutes: float) -> list[Setting]:
    pixels = f"{seen.size[0]} x {seen.size[1]}"
    rate, why = (0.001, "pretrained") if _weights(found) else (0.002, "random")
    return [
        Setting("train.minutes", minutes, "of training, on the machine that trains; more often helps"),
        Setting("train.batch_size", batch, f"about {PIXELS / 1e6:.1f} million pixels of {pixels}"),
        Setting("train.lr", rate, f"AdamW from {why} weights, clipped gradients, one cycle"),
        Setting("train.weight_decay", 0.0001, "few parameters for many windows"),
        Setting("train.clip_norm", 1.0, "a batch without foreground can't throw the network off"),
        Setting("train.schedule", "onecycle", "the budget is known, and short"),
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
