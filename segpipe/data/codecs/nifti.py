"""NIfTI-1 and NIfTI-2 in one file, compressed or not."""

import io
import logging
import math
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpipe.data.codecs.decoded import CHANNELS, Decoded, limit
from segpipe.errors import InputError, one_line

GZIP = b"\x1f\x8b"
LARGEST_OFFSET = 1 << 24  # extensions before the voxels take kilobytes
LONGEST_AXIS = 32_767  # of NIfTI-1, which masks are written in
CHUNK = 1 << 16
MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
SAME_SIZE = 0.01  # by how much the sizes of a voxel that a file states may differ
MEMBERS = 1 << 15  # of 64 KiB each, as bgzip has them, they make 2 GiB
QUIET = logging.Logger("quiet", logging.CRITICAL + 1)  # nibabel reports on stderr what it mends in a header

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Grid:
    """The grid of a NIfTI: nibabel's `image` as it was stored, and the `affine` that takes indices W,H,D of the array
    to mm. Masks are .nii.gz with the same shape and geometry, as the header states it.
    """

    image: Any
    affine: NDArray[np.float64]
    form: ClassVar[str] = "nifti"
    suffix: ClassVar[str] = ".nii.gz"
    volume: ClassVar[bool] = True
    sided: ClassVar[bool] = True

    def as_stored(self, values: NDArray[Value]) -> NDArray[Value]:
        """Values D,H,W as X,Y,Z in the orientation in which the file stores them."""
        import nibabel as nib

        orientation = nib.io_orientation(self.image.affine)
        to_original = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
        stored: NDArray[Value] = nib.orientations.apply_orientation(values.transpose(2, 1, 0), to_original)
        return stored

    def encode_labels(self, labels: NDArray[np.uint8], single: bool) -> bytes:  # noqa: ARG002  # of all geometries
        return self._encode(labels)

    def encode_probabilities(self, foreground: NDArray[np.float32]) -> bytes:
        return self._encode(foreground)

    def _encode(self, values: NDArray[np.generic]) -> bytes:
        """A .nii.gz with the geometry copied: both forms with their codes, voxel sizes and unit; nothing else of the
        header. The same bytes for the same values.
        """
        import nibabel as nib

        source, array = self.image.header, np.ascontiguousarray(self.as_stored(values))
        image = nib.Nifti1Image(array, None)
        header = image.header
        for form in ("sform", "qform"):
            affine, code = getattr(source, f"get_{form}")(coded=True)
            if code:
                getattr(image, f"set_{form}")(affine, int(code))
        header["pixdim"][:4] = source["pixdim"][:4]
        header.set_xyzt_units(source.get_xyzt_units()[0])
        return _packed(image)


def recognised(data: bytes) -> bool:
    """Whether a file begins like a gzip or a NIfTI file."""
    return data[:2] == GZIP or data[344:347] in (b"n+1", b"ni1") or data[4:8] == b"n+2\0"


def decode(data: bytes, where: str, most: int) -> Decoded:
    """Decode a NIfTI; of a gzip no more than the header announces. Raises InputError, beginning with `where`."""
    import nibabel as nib

    try:
        with np.errstate(all="ignore"):
            image = _image(data, where, most)
            canonical = nib.as_closest_canonical(image)
            values = np.asarray(canonical.dataobj, dtype=np.float32)
            affine = _in_mm(canonical).affine
            zooms = [float(size) for size in nib.affines.voxel_sizes(affine)]
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        zlib.error,
        nib.filebasedimages.ImageFileError,
        nib.orientations.OrientationError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        raise InputError(f"{where}: not a complete NIfTI file ({one_line(error)})") from None
    channels = values[..., None] if values.ndim == 3 else values
    array = np.ascontiguousarray(channels.transpose(3, 2, 1, 0))
    return Decoded(array, (zooms[2], zooms[1], zooms[0]), Grid(image, affine))


def _image(data: bytes, where: str, most: int) -> Any:
    """The file as nibabel's image, its voxels still as they are stored."""
    import nibabel as nib

    kind = nib.Nifti2Image if first(data, 8)[4:] == b"n+2\0" else nib.Nifti1Image
    header = kind.header_class(first(data, kind.header_class.sizeof_hdr), check=False)
    stated = np.abs(header["pixdim"][1:4].astype(float))
    header.check_fix(QUIET)
    if not header["magic"].item().startswith(b"n+"):
        raise InputError(f"{where}: a header without its voxels (.hdr and .img); save both as one .nii")
    length = _length(header, where, most)
    raw = first(data, length)
    if len(raw) < length:
        raise EOFError(f"{len(raw):,} bytes, by its header {length:,}")
    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        raise ValueError("its affine is not finite")
    if np.linalg.matrix_rank(affine) < 4:
        raise InputError(f"{where}: its affine has no inverse")
    _check_sizes(stated, nib.affines.voxel_sizes(affine), where)
    voxels = kind.ImageArrayProxy(io.BytesIO(raw), header)
    header.set_data_offset(0)
    return kind(voxels, affine, header)


def _check_sizes(stated: NDArray[np.float64], sizes: NDArray[np.float64], where: str) -> None:
    """Raise InputError unless `pixdim` and the affine state one size of a voxel: amounts and distances rest on it."""
    if not (np.isfinite(stated).all() and (stated > 0).all()):
        raise InputError(f"{where}: voxel size {_sizes(stated)} in pixdim, expected three positive numbers")
    if (np.abs(stated - sizes) > SAME_SIZE * sizes).any():
        told = f"voxels of {_sizes(sizes)} by its affine, of {_sizes(stated)} by pixdim"
        raise InputError(f"{where}: {told}; correct the header, nobody can tell which is right")


def _in_mm(image: Any) -> Any:
    """An image whose affine is in mm, whatever the unit of its header; one that is not known is taken for mm."""
    try:
        factor = MILLIMETRES[image.header.get_xyzt_units()[0]]
    except KeyError:
        factor = 1.0
    return image if factor == 1 else type(image)(image.dataobj, np.diag([*[factor] * 3, 1.0]) @ image.affine)


def _sizes(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _length(header: Any, where: str, most: int) -> int:
    """Bytes of a file by its header. Raises InputError for shapes and voxel types that are not supported."""
    shape: tuple[int, ...] = header.get_data_shape()
    dtype, offset = np.dtype(header.get_data_dtype()), header.get_data_offset()
    if len(shape) not in (3, 4):
        raise InputError(f"{where}: shape {shape}, expected a 3-D volume or a 4-D stack of channels")
    limit(where, shape[:3], most, "voxels")
    limit(where, shape, CHANNELS * most, "voxels")
    if max(shape) > LONGEST_AXIS:
        raise InputError(f"{where}: shape {shape}, at most {LONGEST_AXIS:,} along an axis")
    if dtype.kind not in "iuf":
        raise InputError(f"{where}: voxels of type {dtype}, expected integers or real numbers")
    if not 0 <= offset <= LARGEST_OFFSET:
        raise InputError(f"{where}: voxels from byte {offset:,} on, expected them within {LARGEST_OFFSET:,}")
    return int(offset) + math.prod(shape) * int(dtype.itemsize)


def first(data: bytes, size: int) -> bytes:
    """The first `size` bytes of a file, or of the content of a gzip with one or several members; fewer if it has fewer.

    Raises zlib.error for a damaged member, EOFError for one that is cut short, ValueError for too many of them.
    """
    if data[:2] != GZIP:
        return data[:size]
    view, start, found, members = memoryview(data), 0, io.BytesIO(), 0
    while start < len(view) and found.tell() < size:
        member = zlib.decompressobj(wbits=31)
        members += 1
        if members > MEMBERS:
            raise ValueError(f"over {MEMBERS:,} gzip members")
        # One byte more than wanted makes zlib check the checksum of a member that ends there.
        while not member.eof and found.tell() <= size:
            chunk = view[start : start + CHUNK]
            if not chunk:
                raise EOFError("the file ends within a gzip member")
            found.write(member.decompress(chunk, size + 1 - found.tell()))
            start += len(chunk) - len(member.unused_data) - len(member.unconsumed_tail)
    found.truncate(size)
    return found.getvalue()


def resample(moving: Grid, fixed: Grid) -> NDArray[np.float32]:
    """The voxels 1,D,H,W of one file on another's grid, by linear interpolation; outside its field of view 0."""
    import nibabel as nib
    from nibabel.processing import resample_from_to

    onto = resample_from_to(_in_mm(moving.image), (fixed.image.shape[:3], _in_mm(fixed.image).affine), order=1)
    values = np.asarray(nib.as_closest_canonical(onto).dataobj, dtype=np.float32)
    return np.ascontiguousarray(values.transpose(2, 1, 0))[None]


def encode_nifti(values: NDArray[np.generic], affine: NDArray[np.float64]) -> bytes:
    """A .nii.gz of X,Y,Z; the same bytes for the same values."""
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header.set_xyzt_units("mm")
    return _packed(image)


def _packed(image: Any) -> bytes:
    # Run lengths alone: of a mask about the size of level 9, in a tenth of its time.
    gzip = zlib.compressobj(level=6, wbits=31, strategy=zlib.Z_RLE)
    return gzip.compress(image.to_bytes()) + gzip.flush()
