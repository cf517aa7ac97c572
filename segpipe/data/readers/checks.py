"""What all readers share: a case's files and their checks, and the table of patients."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs
from segpipe.data.codecs import Decoded
from segpipe.data.volume import IGNORE, Case, Kind
from segpipe.errors import InputError

OURS = ("case", "participant_id", "patient", "site", "split")
ALMOST = 1e-4  # within this a label is a whole number


def case_of(row: dict[str, str], name: str, subject: str, images: tuple[Path, ...], mask: Path) -> Case:
    """A case with what its row of `table` says of it; the patient is `subject` unless the row names another."""
    patient, site, split = row.get("patient") or subject, row.get("site") or "site", row.get("split") or None
    more = {column: value for column, value in row.items() if column not in OURS}
    return Case(name, patient, site, split, images, mask, more)


def read_files(case: Case) -> tuple[list[Decoded], Decoded, str]:
    """A case's images, its mask, and the SHA-256 (64 hex digits) of their bytes. Raises InputError naming the file."""
    total, files = hashlib.sha256(), []
    for path in (*case.images, case.mask):
        data = path.read_bytes()
        total.update(data)
        files.append(codecs.decode(data, str(path), raw_labels=path == case.mask))
    return files[:-1], files[-1], total.hexdigest()


def finite(image: NDArray[np.float32], where: str) -> None:
    """Raise InputError if voxels are NaN or infinite."""
    bad = int(np.size(image) - np.count_nonzero(np.isfinite(image)))
    if bad:
        raise InputError(f"{where}: {bad} NaN or infinite voxels; repair or remove the case")


def check_mask(mask: Decoded, where: str, image: Decoded, image_name: str, kind: Kind) -> None:
    """Raise InputError, beginning with `where`, unless a mask has one value per voxel and the grid of its image. The
    mask of a picture only needs the same size.
    """
    if kind == "picture" and mask.array.shape[1:] != image.array.shape[1:]:
        raise InputError(f"{where}: {_size(mask)} pixels, its image {_size(image)}")
    if kind == "volume" and not codecs.same_grid(image, mask):
        raise InputError(f"{where}: shape or affine disagrees with {image_name}; resample the mask")
    if len(mask.array) > 1 and not (mask.array == mask.array[:1]).all():
        raise InputError(f"{where}: a colour picture; a mask has one grey value per class")


def _size(file: Decoded) -> str:
    return "x".join(str(n) for n in file.array.shape[1:] if n > 1)


def labels(
    mask: NDArray[np.float32], classes: Sequence[str], ignore: int, where: str
) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """A mask as uint8 labels, 0 background, 1..K the classes, IGNORE for the value `ignore`, and its other values.

    Without declared classes a mask is binary: of two values the higher is foreground; of one value, 0 is background and
    255 foreground. Raises InputError for other values, and for classes that `ignore` or IGNORE would hide.
    """
    if len(classes) >= IGNORE:
        raise InputError(f"data.classes: {len(classes)} names; at most {IGNORE - 1} fit into a mask")
    if classes and 0 <= ignore <= len(classes):
        raise InputError(f"data.ignore_label={ignore}: the value of the background or a class; choose an unused value")
    mask = _rounded(mask)
    ignored = (mask == ignore) & (ignore >= 0)
    values = np.unique(mask[~ignored])
    if classes:
        unknown = [v for v in values if v not in range(len(classes) + 1)]
        if unknown:
            raise InputError(
                f"{where}: unknown label value {unknown[0]:g}; data.classes declares 1..{len(classes)}, "
                "data.ignore_label the value to exclude"
            )
        found = mask.astype(np.uint8)
    else:
        found = np.asarray(mask == _foreground(values, where), dtype=np.uint8)
    found[ignored] = IGNORE
    return found, tuple(float(value) for value in values)


def _rounded(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Labels that were saved as real numbers, such as 0.99999994, as what they stand for."""
    whole = np.rint(mask)
    return whole if np.abs(mask - whole).max(initial=0) < ALMOST else mask


def _foreground(values: NDArray[np.float32], where: str) -> np.float32:
    """Which of a binary mask's values is the foreground."""
    shown = ", ".join(f"{v:g}" for v in values[:8]) + (", ..." if len(values) > 8 else "")
    if len(values) > 2:
        raise InputError(
            f"{where}: label values {shown}; a binary mask has two: declare data.classes or data.ignore_label, "
            "or save masks losslessly"
        )
    if len(values) == 1 and values[0] not in (0, 255):
        raise InputError(f"{where}: a single value ({shown}), foreground or background? use 0/255 or data.classes")
    return values[1] if len(values) == 2 else np.float32(255)
