"""PNG, JPEG, TIFF and BMP."""

import io
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from segpipe.data.codecs.decoded import MOST_SCANS, SCAN, Decoded, Metered, limit
from segpipe.errors import InputError, one_line

# For the whole process: Pillow warns of odd metadata that nobody reads here, once for each text of it.
warnings.filterwarnings("ignore", module=r"PIL\.\w+ImagePlugin")

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# The plugins themselves: Image.open has a limit of its own for all threads, and tries dozens of formats.
OPENERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
}
PLAIN_DEEP = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
PLAIN = ("1", "L", "P", "RGB", *PLAIN_DEEP)
PNG_DEEP = ("RGB;16B", "LA;16B", "RGBA;16B")
TILE_WIDTH, TILE_LENGTH = 322, 323


def decode(data: bytes, where: str, raw_labels: bool, most: int) -> Decoded:
    """Decode a picture; with `raw_labels` a palette gives its indices. Raises InputError beginning with `where`."""
    opener = next((opener for start, opener in OPENERS.items() if data.startswith(start)), None)
    if opener is None:
        raise InputError(f"{where}: not a PNG, JPEG, TIFF, BMP, NIfTI or DICOM file")
    if opener is JpegImagePlugin.JpegImageFile and data.count(SCAN) > MOST_SCANS:
        raise InputError(f"{where}: over {MOST_SCANS} scans in one JPEG, save it again with fewer")
    try:
        # Pillow reads a packed BMP byte by byte; it has no parts.
        opened = opener(io.BytesIO(data) if opener is BmpImagePlugin.BmpImageFile else Metered(data))
        _check(opened, where, most)
        opened.load()
        pixels = np.asarray(_plain(opened, raw_labels))
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"{where}: damaged or cut short ({one_line(error)})") from None
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(channels_first[:, None], dtype=np.float32), None)


def _check(picture: ImageFile.ImageFile, where: str, most: int) -> None:
    """Raise InputError where an opened picture's header says what is not supported."""
    tags: Any = getattr(picture, "tag_v2", {})  # of a TIFF
    for grid in ((picture.height, picture.width), (tags.get(TILE_LENGTH, 1), tags.get(TILE_WIDTH, 1))):
        limit(where, grid, most, "pixels")
    if getattr(picture, "is_animated", False):
        raise InputError(f"{where}: several pages or frames in one file, expected one picture")
    deep = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) > 8 or any(t.args in PNG_DEEP for t in picture.tile)
    if deep and picture.mode not in PLAIN_DEEP:
        raise InputError(
            f"{where}: 16 bits per colour, of which 8 would be lost; save it as 16-bit grey or 8-bit colour"
        )


def _plain(picture: Image.Image, raw_labels: bool) -> Image.Image:
    if picture.mode in ("P", "PA") and not raw_labels:
        picture.info.pop("transparency", None)  # Pillow would warn that it gets lost
        return picture.convert("RGB")
    if picture.mode in ("LA", "La"):
        return picture.convert("L")
    return picture if picture.mode in PLAIN else picture.convert("RGB")


def encode_picture(plane: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """An 8-bit or 16-bit grey PNG of H,W; the same bytes for the same values."""
    buffer = io.BytesIO()
    # Run lengths alone: of a 512 x 512 mask a smaller file than at the default level, in a third of its time.
    Image.fromarray(plane).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()
