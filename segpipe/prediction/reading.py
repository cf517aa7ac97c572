"""Read and decode the files of a case: its image and its reference."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs
from segpipe.data.codecs import Decoded
from segpipe.data.readers import checks
from segpipe.data.volume import Kind
from segpipe.errors import InputError
from segpipe.inference.input_assembly import gathered, unlike
from segpipe.inference.spec import ModelSpec
from segpipe.prediction.inputs import Item


class Contents(NamedTuple):
    """The bytes of a case's files; `sha256` is over those of the images, one after the other, `parts` of each image,
    and of images and reference together, as a data set's manifest has it.
    """

    images: tuple[bytes, ...]
    reference: bytes | None
    sha256: str
    reference_sha256: str | None
    parts: tuple[str, ...]


class Case(NamedTuple):
    """A decoded case: the file that gives its geometry, image C,D,H,W float32, reference D,H,W uint8 or None;
    whether a warning says that it is unlike the training data; the digests of `Contents`.
    """

    item: Item
    first: Decoded
    image: NDArray[np.float32]
    reference: NDArray[np.uint8] | None
    warnings: tuple[str, ...]
    unlike: bool
    sha256: str
    reference_sha256: str | None
    parts: tuple[str, ...]


def read(item: Item) -> Contents:
    """Read a case's files. Raises InputError for its `fault`, and for a file that can't be read."""
    if item.fault:
        raise InputError(item.fault)
    images = tuple(_read_bytes(path) for path in item.files)
    reference = _read_bytes(item.reference) if item.reference else None
    digest = hashlib.sha256()
    for image in images:
        digest.update(image)
    known, whole = None if reference is None else hashlib.sha256(reference).hexdigest(), digest.copy()
    whole.update(reference or b"")
    parts = (*(hashlib.sha256(image).hexdigest() for image in images), whole.hexdigest())
    return Contents(images, reference, digest.hexdigest(), known, parts)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def decode(item: Item, contents: Contents, spec: ModelSpec, ignore: int) -> Case:
    """Decode a case. `ignore` is the value of the reference's pixels that are not counted, -1 for none.

    Raises InputError naming the file that is damaged or does not fit the model, or the reference that does not fit it.
    """
    files = {str(path): codecs.decode(data, str(path)) for data, path in zip(contents.images, item.files, strict=True)}
    first = files[str(item.files[0])]
    image, warnings = gathered(files, spec)
    reference = None if contents.reference is None else _labels(contents.reference, item, first, spec, ignore)
    strange = unlike(image, first.spacing, spec)
    return Case(
        item,
        first,
        image,
        reference,
        (*warnings, *strange),
        bool(strange),
        contents.sha256,
        contents.reference_sha256,
        contents.parts,
    )


def _labels(data: bytes, item: Item, first: Decoded, spec: ModelSpec, ignore: int) -> NDArray[np.uint8]:
    """The reference's labels on the case's grid; a picture only has to have its size."""
    where = str(item.reference)
    mask = codecs.decode(data, where, raw_labels=True)
    kind: Kind = "volume" if first.geometry.volume and mask.geometry.volume else "picture"
    checks.check_mask(mask, where, first, item.files[0].name, kind)
    classes = () if spec.classes == ("foreground",) else spec.classes
    return checks.labels(mask.array[0], classes, ignore, where)[0]
