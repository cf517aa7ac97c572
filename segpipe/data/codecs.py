"""From a file's bytes to an array and, for a mask, back: the same for reading, evaluating and serving."""

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segpipe.data.volume import Spacing
from segpipe.errors import InputError, one_line

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
CORNER_TOLERANCE_MM = 0.1
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    `array` is C,D,H,W float32 (a grey picture 1,1,H,W; a NIfTI in RAS+ orientation, D from inferior to superior),
    `spacing` mm along D,H,W or None; for NIfTI files `nifti` is the original image and `affine` takes W,H,D indices of
    `array` to mm.
    """

    array: NDArray[np.float32]
    spacing: Spacing | None
    nifti: Any = None
    affine: NDArray[np.float64] | None = None


def decode(data: bytes, where: str, raw_labels: bool = False) -> Decoded:
    """Decode PNG, JPEG, TIFF, BMP or NIfTI (.nii, .nii.gz) by its content.

    With `raw_labels` a palette picture gives its indices rather than its colours, as masks need.
    Raises InputError, beginning with `where`, for anything else or anything cut short.
    """
    if not data:
        raise InputError(f"{where}: empty file")
    if data[:2] == b"\x1f\x8b" or data[344:347] in (b"n+1", b"ni1"):
        return _decode_nifti(data, where)
    return _decode_picture(data, where, raw_labels)


def _decode_picture(data: bytes, where: str, raw_labels: bool) -> Decoded:
    try:
        picture: Image.Image = Image.open(io.BytesIO(data))
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise InputError(f"{where}: {frames} pages or frames in one file, expected one picture")
        picture.load()
        if picture.mode in ("P", "PA") and not raw_labels:
            picture = picture.convert("RGB")
        elif picture.mode in ("LA", "La"):
            picture = picture.convert("L")
        elif picture.mode not in ("1", "L", "P", "RGB", "F", "I", "I;16", "I;16B", "I;16L", "I;16N"):
            picture = picture.convert("RGB")
        pixels = np.asarray(picture).astype(np.float32)
    except UnidentifiedImageError:
        raise InputError(f"{where}: not a PNG, JPEG, TIFF, BMP or NIfTI file") from None
    except Image.DecompressionBombError:
        raise InputError(f"{where}: too large, over {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{where}: damaged or cut short ({error})") from None
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(channels_first[:, None]), None)


def _decode_nifti(data: bytes, where: str) -> Decoded:
    import nibabel as nib

    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        image = nib.Nifti1Image.from_bytes(raw)
        if image.ndim not in (3, 4) or 0 in image.shape:
            raise InputError(f"{where}: shape {image.shape}, expected a 3-D volume or a 4-D stack of channels")
        if image.get_data_dtype().kind not in "iuf":
            raise InputError(f"{where}: voxels of type {image.get_data_dtype()}, expected integers or real numbers")
        canonical = nib.as_closest_canonical(image)
        values = np.asarray(canonical.dataobj, dtype=np.float32)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        nib.filebasedimages.ImageFileError,
        nib.orientations.OrientationError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        raise InputError(f"{where}: not a whole NIfTI file ({one_line(error)})") from None
    zooms = [float(z) for z in canonical.header.get_zooms()[:3]]
    if not all(np.isfinite(z) and z > 0 for z in zooms):
        raise InputError(f"{where}: voxel size {zooms} mm in the header, expected three positive numbers")
    channels = values[..., None] if values.ndim == 3 else values
    array = np.ascontiguousarray(channels.transpose(3, 2, 1, 0))
    return Decoded(array, (zooms[2], zooms[1], zooms[0]), image, canonical.affine)


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
    """Whether two files have the same shape and, for NIfTI, their corner voxels in the same place to 0.1 mm, however
    they are stored.
    """
    if one.array.shape[1:] != other.array.shape[1:]:
        return False
    if one.affine is None or other.affine is None:
        return one.affine is other.affine
    depth, height, width = one.array.shape[1:]
    corners = np.array([[x, y, z, 1] for x in (0, width - 1) for y in (0, height - 1) for z in (0, depth - 1)])
    apart = corners @ (one.affine - other.affine).T
    return bool(np.linalg.norm(apart[:, :3], axis=1).max() < CORNER_TOLERANCE_MM)


def resample(moving: Decoded, fixed: Decoded) -> Decoded:
    """Bring one NIfTI onto another's grid by linear interpolation; outside its field of view it is 0."""
    import nibabel as nib
    from nibabel.processing import resample_from_to

    onto = resample_from_to(moving.nifti, (fixed.nifti.shape[:3], fixed.nifti.affine), order=1)
    canonical = nib.as_closest_canonical(onto)
    values = np.asarray(canonical.dataobj, dtype=np.float32)
    return Decoded(np.ascontiguousarray(values.transpose(2, 1, 0))[None], fixed.spacing, onto, fixed.affine)


def encode_mask(mask: NDArray[np.uint8], like: Decoded, classes: int) -> bytes:
    """A mask D,H,W uint8 in the geometry of the file it belongs to.

    NIfTI in: .nii.gz with the same shape, affine and orientation. Picture in: 8-bit grey PNG, a single foreground
    class as 255 and several classes as their numbers.
    """
    if like.nifti is None:
        return encode_picture(mask[0] * np.uint8(255 if classes == 1 else 1))
    import nibabel as nib

    orientation = nib.io_orientation(like.nifti.affine)
    to_original = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
    values = nib.orientations.apply_orientation(mask.transpose(2, 1, 0), to_original)
    return encode_nifti(values, like.nifti.affine)


def encode_picture(plane: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey PNG of H,W."""
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_nifti(values: NDArray[np.generic], affine: NDArray[np.float64]) -> bytes:
    """A .nii.gz of X,Y,Z; the same bytes for the same values."""
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), mtime=0)
