"""From a file's bytes to an array and, for a mask, back."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from segpipe.data.codecs import nifti, pictures
from segpipe.data.codecs.decoded import MAX_PIXELS, Decoded
from segpipe.data.codecs.geometry import Stack, encode_picture
from segpipe.data.codecs.nifti import Grid, encode_nifti
from segpipe.data.codecs.pictures import PICTURES
from segpipe.errors import InputError

# Beside what is defined here.
__all__ = ["PICTURES", "Decoded", "Grid", "Stack", "encode_nifti", "encode_picture"]

VOLUMES, STACKS = (".nii.gz", ".nii"), (".tif", ".tiff")
SEVERAL_PAGES = "several pages in one file, expected one picture; save each as a file of its own"
SUFFIXES = (*PICTURES, ".dcm", *VOLUMES)
CORNER_TOLERANCE_MM = 0.1
GROUP_LENGTH = b"\x02\0\0\0"  # what a DICOM file without its preamble begins with


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
    if not isinstance(one.geometry, Grid) or not isinstance(other.geometry, Grid):
        return one.geometry.form == other.geometry.form
    depth, height, width = one.array.shape[1:]
    corners = np.array([[x, y, z, 1] for x in (0, width - 1) for y in (0, height - 1) for z in (0, depth - 1)])
    apart = corners @ (one.geometry.affine - other.geometry.affine).T
    return bool(np.linalg.norm(apart[:, :3], axis=1).max() < CORNER_TOLERANCE_MM)


def stack(files: Mapping[str, Decoded]) -> tuple[NDArray[np.float32], list[str]]:
    """NIfTI files of one case as the channels C,D,H,W of one image on the grid of the first, and the names of those
    that had to be resampled from a different grid. Raises InputError beginning with the name of another file.
    """
    first, elsewhere, channels = next(iter(files.values())), list[str](), list[NDArray[np.float32]]()
    for name, file in files.items():
        if not isinstance(file.geometry, Grid) or not isinstance(first.geometry, Grid) or len(file.array) != 1:
            raise InputError(f"{name}: expected a NIfTI file with one volume")
        if same_grid(first, file):
            channels.append(file.array)
        else:
            elsewhere.append(name)
            channels.append(nifti.resample(file.geometry, first.geometry))
    return np.concatenate(channels), elsewhere


def encode_mask(mask: NDArray[np.uint8], like: Decoded, classes: int) -> bytes:
    """A mask D,H,W uint8 in the form and geometry of the file it belongs to: see `geometry`."""
    return like.geometry.encode_labels(mask, single=classes == 1)
