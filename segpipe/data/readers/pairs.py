"""Which mask belongs to which image, by their names."""

from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path


def matched(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Both by the name of their case: without what all images, or all masks, end with, such as `_mask`, where they
    match so and not as they are.
    """
    if images.keys() != masks.keys():
        ends = common_end(images), common_end(masks)
        for image_end, mask_end in (("", ends[1]), (ends[0], ""), ends):
            bare = without(images, image_end), without(masks, mask_end)
            if bare[0].keys() == bare[1].keys():
                return bare
    return dict(images), dict(masks)


def common_end(stems: Iterable[str]) -> str:
    """What all names end with, from the last sign on that is neither a letter nor a digit; empty for a single name."""
    every = list(stems)
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*(reversed(stem) for stem in every), strict=False))
    end = "".join(letters[0] for letters in shared)[::-1] if len(every) > 1 else ""
    signs = [place for place, character in enumerate(end) if not character.isalnum()]
    return end[signs[0] :] if signs else ""


def without(named: Mapping[str, Path], end: str) -> dict[str, Path]:
    """The same files by names without that end."""
    return {stem.removesuffix(end): path for stem, path in named.items()}
