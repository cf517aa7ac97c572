"""From a file's bytes to an array and, for a mask, back."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.data.codecs import nifti, pictures
from segpipe.data.codecs.decoded import MAX_PIXELS, Decoded
from segpipe.data.codecs.nifti import encode_like, encode_nifti, resample
from segpipe.data.codecs.pictures import PICTURES, encode_picture
from segpipe.errors import InputError

# Beside what is defined here.
__all__ = ["PICTURES", "Decoded", "encode_like", "encode_nifti", "encode_picture", "resample"]

SUFFIXES = (*PICTURES, ".dcm", ".nii", ".nii.gz")
CORNER_TOLERANCE_MM = 0.1
GROUP_LENGTH = b"\x02\0\0\0"  # what a DICOM file without its preamble begins with

Value = TypeVar("Value", bound=np.generic)


def decode(data: bytes, where: str, raw_labels: bool = False, most: int = MAX_PIXELS) -> Decoded:
    """Decode PNG, JPEG, TIFF, BMP, NIfTI (.nii, .nii.gz) or single-frame DICOM by its content.

    With `raw_labels` a palette picture gives its indices rather than its colours, as masks need. A file that claims
    more than `most` pixels or voxels is refused by its header, before anything is decompressed.
    Raises InputError, beginning with `where`, for anything else or anything cut short.
    """
    if not data:
        raise InputError(f"{where}: empty file")
    if data[128:132] == b"DICM" or data[:4] == GROUP_LENGTH:
        from segpipe.data.codecs import dicom

        whole = data if data[128:132] == b"DICM" else bytes(128) + b"DICM" + data
        return dicom.decode(whole, where, most)
    if nifti.recognised(data):
        return nifti.decode(data, where, most)
    return pictures.decode(data, where, raw_labels, most)


def as_channels(image: NDArray[np.float32], channels: int, where: str) -> NDArray[np.float32]:
    """A picture C,D,H,W with the wanted number of channels: colour to luminance (ITU-R BT.601), grey repeated.

    Raises InputError, beginning with `where`, for other numbers of channels.
    """
    if len(image) == channels:
        return image
    if channels == 1 and len(image) == 3:
        return np.tensordot(np.array([0.299, 0.587, 0.114], dtype=np.float32), image, axes=1)[None].astype(np.float32)
    if len(image) == 1:
        return np.repeat(image, channels, axis=0)
    raise InputError(f"{where}: {len(image)} channels, the model takes {channels}")


def same_grid(one: Decoded, other: Decoded) -> bool:
    """Whether two files have one shape and, if NIfTI, however stored, their corner voxels within 0.1 mm."""
    if one.array.shape[1:] != other.array.shape[1:]:
        return False
    if one.affine is None or other.affine is None:
        return one.affine is other.affine
    depth, height, width = one.array.shape[1:]
    corners = np.array([[x, y, z, 1] for x in (0, width - 1) for y in (0, height - 1) for z in (0, depth - 1)])
    apart = corners @ (one.affine - other.affine).T
    return bool(np.linalg.norm(apart[:, :3], axis=1).max() < CORNER_TOLERANCE_MM)


def stack(files: Sequence[Decoded]) -> tuple[NDArray[np.float32], list[int]]:
    """NIfTI files of one case as the channels C,D,H,W of one image on the grid of the first, and the indices of those
    that had to be resampled from a different grid.
    """
    elsewhere = [n for n, file in enumerate(files) if not same_grid(files[0], file)]
    onto = [resample(file, files[0]) if n in elsewhere else file for n, file in enumerate(files)]
    return np.concatenate([file.array for file in onto]), elsewhere


def as_stored(values: NDArray[Value], like: Decoded) -> NDArray[Value]:
    """Values D,H,W as the file they belong to stores them: X,Y,Z of a NIfTI; H,W,1 of a picture or DICOM."""
    return values.transpose(1, 2, 0) if like.nifti is None else nifti.reoriented(values, like)


def encode_mask(mask: NDArray[np.uint8], like: Decoded, classes: int) -> bytes:
    """A mask D,H,W uint8 in the geometry of the file it belongs to.

    NIfTI in: .nii.gz with the same shape and geometry, as its header states it. Picture or DICOM in: 8-bit grey PNG, a
    single foreground class as 255 and several classes as their numbers.
    """
    if like.nifti is None:
        return encode_picture(mask[0] * np.uint8(255 if classes == 1 else 1))
    return encode_like(as_stored(mask, like), like)
