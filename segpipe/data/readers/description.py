"""What a folder was taken for, as a line."""

import numpy as np

from segpipe.config.sections import Config
from segpipe.data.codecs import Decoded
from segpipe.data.readers import all_cases, channel_names, checks, open_reader
from segpipe.data.volume import Case

VALUES = 4  # of a mask that are named


def describe(config: Config) -> str:
    """The layout of a folder, its cases with the form of the first, and what counts as a patient. Raises InputError as
    the reader does.
    """
    cases = all_cases(open_reader(config))
    form, counted = _form(cases[0], config), _count(len(cases), "case")
    return f"{config.data.root}: {config.data.format}, {counted} with masks, {form}, {_patients(cases)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _form(case: Case, config: Config) -> str:
    """What the files of a case are, and the values of its mask."""
    images, mask, _ = checks.read_files(case)
    found = np.unique(mask.array)
    values = "/".join(f"{value:g}" for value in found[:VALUES]) + ("/..." if len(found) > VALUES else "")
    channels = "colour" if len(images[0].array) > 1 else "grey"
    several = "+".join(channel_names(config.data)) if len(images) > 1 else channels
    return f"the first {_size(images[0])} {several}, mask values {values}"


def _size(image: Decoded) -> str:
    """Width by height, and the slices of a volume."""
    depth, height, width = image.array.shape[1:]
    return f"{width}x{height}x{depth}" if image.geometry.volume else f"{width}x{height}"


def _patients(cases: list[Case]) -> str:
    patients, sites = {case.patient for case in cases}, {case.site for case in cases}
    told = _count(len(patients), "patient")
    if len(sites) > 1:
        told += f" of {len(sites)} sites ({', '.join(sorted(sites))})"
    if len(patients) == len(cases):
        told += "; every case counts as a patient of its own, unless a table says otherwise"
    return told
