"""Colours that mean the same in every picture, chart and page."""

from collections.abc import Sequence

HIT, MISSED, FALSE, IGNORED = "#2ca25f", "#3182bd", "#de2d26", "#bdbdbd"
INK, FAINT = "#374151", "#9ca3af"
# Of the classes, in their order: twenty of maximum contrast (Kelly 1965), without black and white.
CLASSES = (
    "#f3c300", "#875692", "#f38400", "#a1caf1", "#be0032", "#c2b280", "#848482", "#008856", "#e68fac", "#0067a5",
    "#f99379", "#604e97", "#f6a600", "#b3446c", "#dcd300", "#882d17", "#8db600", "#654522", "#e25822", "#2b3d26",
)  # fmt: skip


def class_colours(classes: Sequence[str]) -> tuple[str, ...]:
    """The colour of each class; red where there is a single one."""
    return (FALSE,) if len(classes) == 1 else tuple(CLASSES[k % len(CLASSES)] for k in range(len(classes)))
