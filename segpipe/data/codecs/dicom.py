"""Single-frame DICOM."""

import logging
import math
import struct
import warnings

import numpy as np
import pydicom.config
from numpy.typing import NDArray
from PIL import Jpeg2KImagePlugin, JpegImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag

from segpipe.data.codecs.decoded import MOST_SCANS, SCAN, Decoded, Metered, limit
from segpipe.data.volume import Spacing
from segpipe.errors import InputError, one_line

# Files are often a little odd. Silenced once for the whole process: to do so for each file is not safe in threads.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
PICTURES = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000Lossless, uid.JPEG2000)
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREYS = ("MONOCHROME1", "MONOCHROME2")
PIXELS = Tag("PixelData")
LONGEST_TEXT = 120
ITEM, MOST_ITEMS = b"\xfe\xff\x00\xe0", 1 << 12  # pieces of a frame
WANTED = [
    Tag(keyword)
    for keyword in (
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
        *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
        *("PixelSpacing", "ImagerPixelSpacing", "SliceThickness"),
    )
]


def decode(data: bytes, where: str, most: int) -> Decoded:
    """Decode a DICOM file of one frame: grey after rescaling and as displayed (MONOCHROME1 inverted), or RGB.

    Raises InputError, beginning with `where`.
    """
    try:
        header, syntax = _read(data, where)
        _check(header, syntax, where, most)
        pixels, _ = get_decoder(syntax).as_array(header, index=0)
        array = _grey(pixels, header)[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        spacing = _spacing(header, where)
    except (AttributeError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"{where}: not a complete DICOM file ({one_line(error)})") from None
    return Decoded(np.ascontiguousarray(array[:, None], dtype=np.float32), spacing)


def _read(data: bytes, where: str) -> tuple[Dataset, uid.UID]:
    """The attributes that concern the pixels, and the transfer syntax."""
    file = Metered(data)
    file.seek(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    syntax = uid.UID(str(meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian))
    if syntax not in (*NATIVE, *PICTURES, uid.RLELossless):
        raise _unreadable(syntax, where)
    implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
    header = read_dataset(file, implicit, little, stop_when=lambda tag, *_: tag > PIXELS, specific_tags=[*WANTED])
    return header, syntax


def _unreadable(syntax: uid.UID, where: str) -> InputError:
    return InputError(
        f"{where}: pixels as {_shown(syntax.name)} can't be read; save them uncompressed (gdcmconv --raw)"
    )


def _shown(text: str) -> str:
    """A text from the file, cut and cleaned to fit into a line."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST_TEXT])


def _check(header: Dataset, syntax: uid.UID, where: str, most: int) -> None:
    """Raise InputError for what is not supported, ValueError for pixels that decode to more than their header says."""
    if not header.get("PixelData"):
        raise InputError(f"{where}: no pixel data, expected an image")
    grid = (int(header.Rows), int(header.Columns))
    limit(where, grid, most, "pixels")
    frames, kind = int(header.get("NumberOfFrames") or 1), header.get("PhotometricInterpretation")
    if frames > 1:
        raise InputError(f"{where}: {frames} frames in one file, expected one; save each as a file of its own")
    if kind not in (*GREYS, *COLOURS):
        raise InputError(
            f"{where}: photometric interpretation {_shown(str(kind))}, expected one of {', '.join(GREYS + COLOURS)}"
        )
    if "ModalityLUTSequence" in header:
        raise InputError(f"{where}: a modality look-up table; save it with rescale slope and intercept")
    if syntax == uid.JPEGExtended12Bit and header.BitsStored > 8:
        raise _unreadable(syntax, where)
    if syntax not in NATIVE:
        if header.PixelData.count(ITEM) > MOST_ITEMS:
            raise ValueError(f"over {MOST_ITEMS:,} pieces of a frame")
        check_frame = _check_rle if syntax == uid.RLELossless else _check_jpeg
        check_frame(get_frame(header.PixelData, 0, number_of_frames=1), grid)


def _check_jpeg(frame: bytes, grid: tuple[int, int]) -> None:
    if frame.count(SCAN) > MOST_SCANS:
        raise ValueError(f"over {MOST_SCANS} scans in one JPEG")
    opener = JpegImagePlugin.JpegImageFile if frame[:2] == b"\xff\xd8" else Jpeg2KImagePlugin.Jpeg2KImageFile
    width, height = opener(Metered(frame)).size
    if (height, width) != grid:
        raise ValueError(f"{height} x {width} pixels, by its header {grid[0]} x {grid[1]}")


def _check_rle(frame: bytes, grid: tuple[int, int]) -> None:
    """Raise ValueError where a segment (PS3.5 annex G) would decode to more than two bytes for each pixel."""
    most = 2 * math.prod(grid)
    count, *offsets = struct.unpack("<16L", frame[:64])
    for start, end in zip(offsets[:count], [*offsets[1:count], len(frame)], strict=False):
        segment, at, size = frame[start:end], 0, 0
        while at < len(segment) and size <= most:
            run = segment[at]
            size += run + 1 if run < 128 else 257 - run
            at += run + 2 if run < 128 else 2
        if size > most:
            raise ValueError("run lengths of more pixels than its header says")


def _grey(pixels: NDArray[np.generic], header: Dataset) -> NDArray[np.float32]:
    """Stored values H,W to those of the modality; what is displayed bright is high."""
    values = pixels.astype(np.float32)
    if header.PhotometricInterpretation == "MONOCHROME1":
        lowest_and_highest = -1 if header.PixelRepresentation else 2**header.BitsStored - 1
        values = np.float32(lowest_and_highest) - values
    slope, intercept = (header.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    with np.errstate(over="ignore", invalid="ignore"):
        return values * np.float32(1 if slope is None else float(slope)) + np.float32(float(intercept or 0))


def _spacing(header: Dataset, where: str) -> Spacing | None:
    """Slice thickness (1 where it is missing), row and column spacing in mm; None where the latter are missing."""
    in_plane = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not in_plane:
        return None
    row, column = (float(value) for value in in_plane)
    thickness = float(header.get("SliceThickness") or 1)
    if not all(math.isfinite(value) and value > 0 for value in (thickness, row, column)):
        raise InputError(f"{where}: voxel size {[thickness, row, column]} mm in the header, expected positive numbers")
    return thickness, row, column
