"""From a file's bytes to an array and, for a mask, back: the same for reading, evaluating and serving."""

import gzip
import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segpipe.data.volume import Spacing
from segpipe.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
AFFINE_TOLERANCE_MM = 1e-2


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    `array` is C,D,H,W float32 (a grey picture 1,1,H,W; a NIfTI in RAS+ orientation, D from inferior to superior),
    `spacing` mm along D,H,W or None, `nifti` the original image for NIfTI files.
    """

    array: NDArray[np.float32]
    spacing: Spacing | None
    nifti: Any = None


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
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(data))
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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{where}: damaged or cut short ({error})") from None
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(channels_first[:, None]), None)


def _decode_nifti(data: bytes, where: str) -> Decoded:
    import nibabel as nib

    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        image = nib.Nifti1Image.from_bytes(raw)
        canonical = nib.as_closest_canonical(image)
        values = np.asarray(canonical.dataobj, dtype=np.float32)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: not a whole NIfTI file ({reason})") from None
    values = values.reshape(values.shape[:3] + (1,) * (3 - values.ndim) + values.shape[3:])
    if values.ndim > 4 or 0 in values.shape:
        raise InputError(f"{where}: shape {values.shape}, expected a 3-D volume or a 4-D stack of channels")
    values = values[..., None] if values.ndim == 3 else values
    zooms = [float(z) for z in canonical.header.get_zooms()[:3]]
    if len(zooms) < 3 or not all(np.isfinite(z) and z > 0 for z in zooms):
        raise InputError(f"{where}: voxel size {zooms} mm in the header, expected three positive numbers")
    array = np.ascontiguousarray(values.transpose(3, 2, 1, 0))
    return Decoded(array, (zooms[2], zooms[1], zooms[0]), image)


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
    """Whether two files have the same shape and, for NIfTI, the same affine to 0.01 mm."""
    if one.array.shape[1:] != other.array.shape[1:]:
        return False
    if one.nifti is None or other.nifti is None:
        return one.nifti is other.nifti
    return bool(np.allclose(one.nifti.affine, other.nifti.affine, atol=AFFINE_TOLERANCE_MM))


def resample(moving: Decoded, fixed: Decoded) -> Decoded:
    """Bring one NIfTI onto another's grid by linear interpolation; outside its field of view it is 0."""
    import nibabel as nib
    from nibabel.processing import resample_from_to

    onto = resample_from_to(moving.nifti, (fixed.nifti.shape[:3], fixed.nifti.affine), order=1)
    canonical = nib.as_closest_canonical(onto)
    values = np.asarray(canonical.dataobj, dtype=np.float32)
    return Decoded(np.ascontiguousarray(values.transpose(2, 1, 0))[None], fixed.spacing, onto)


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
