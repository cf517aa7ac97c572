"""PNG, JPEG, TIFF and BMP, as a viewer shows them: turned as they say, min-is-white inverted, without transparency."""

import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from segpipe.data.codecs import stacks
from segpipe.data.codecs.decoded import MOST_SCANS, SCAN, Decoded, Metered, limit
from segpipe.data.codecs.geometry import Stack
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
    b"II+\0": TiffImagePlugin.TiffImageFile,  # BigTIFF
    b"MM\0+": TiffImagePlugin.TiffImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
}
READ = "PNG, JPEG, TIFF, BMP, NIfTI or DICOM"
NOT_READ = {
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"gimp xcf": "GIMP",
}
PLAIN_DEEP = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
PLAIN = ("1", "L", "P", "RGB", *PLAIN_DEEP)
TRANSPARENT = ("LA", "La", "RGBA", "RGBa", "PA")
MIN_IS_WHITE, WHOLE_NUMBERS = 0, ("I;16", "I;16B", "I;16L", "I;16N")
OPAQUE = 255
PNG_DEEP = ("RGB;16B", "LA;16B", "RGBA;16B")
TILE_WIDTH, TILE_LENGTH = 322, 323
UNEQUAL = "pages of different sizes or kinds; save one picture, or a stack of equal ones"
BMP_BITS = 28  # where a BMP has its bits per pixel


def decode(data: bytes, where: str, raw_labels: bool, most: int) -> Decoded:
    """Decode a picture; with `raw_labels`, as masks need, a palette gives its indices, and what is transparent is
    background, as index 0 is. Raises InputError beginning with `where`.
    """
    opener = next((opener for start, opener in OPENERS.items() if data.startswith(start)), None)
    if opener is None:
        found = next((name for start, name in NOT_READ.items() if data.startswith(start)), "")
        what = f"a {found} file, which is not read; save it as PNG" if found else f"not a {READ} file"
        raise InputError(f"{where}: {what}")
    if opener is JpegImagePlugin.JpegImageFile and data.count(SCAN) > MOST_SCANS:
        raise InputError(f"{where}: over {MOST_SCANS} scans in one JPEG, save it again with fewer")
    try:
        # Pillow reads a packed BMP byte by byte; it has no parts.
        opened = opener(io.BytesIO(data) if opener is BmpImagePlugin.BmpImageFile else Metered(data))
        if getattr(opened, "is_animated", False) and opener is not TiffImagePlugin.TiffImageFile:
            raise InputError(f"{where}: several frames in one file, expected one picture")
        if opener is BmpImagePlugin.BmpImageFile and opened.mode == "1" and data[BMP_BITS] != 1:
            raise InputError(
                f"{where}: two colours in {data[BMP_BITS]} bits a pixel, which Pillow misreads; save it as PNG"
            )
        pages = [_shown(page, raw_labels, where) for page in _pages(opened, where, most)]
    except (OSError, SyntaxError, TypeError, ValueError, struct.error) as error:
        if "unknown pixel mode" in str(error):
            kinds = "8- or 16-bit grey, 32-bit real numbers or 8-bit colour"
            raise InputError(f"{where}: pixels of a kind that is not read; save it as {kinds}") from None
        raise InputError(f"{where}: damaged or cut short ({one_line(error)})") from None
    if len({page.shape for page in pages}) > 1:
        raise InputError(f"{where}: {UNEQUAL}")
    array = np.stack([page[None] if page.ndim == 2 else page.transpose(2, 0, 1) for page in pages], axis=1)
    if len(pages) == 1:
        return Decoded(np.ascontiguousarray(array, dtype=np.float32), None)
    spacing, tags = stacks.described(opened, len(pages), where)
    return Decoded(np.ascontiguousarray(array[:, :, ::-1], dtype=np.float32), spacing, Stack(tags))


def _pages(opened: ImageFile.ImageFile, where: str, most: int) -> Iterator[ImageFile.ImageFile]:
    """A picture, or each page of a TIFF, with its pixels. Raises InputError for pages of several sizes."""
    size, number = opened.size, getattr(opened, "n_frames", 1)
    if number > 1:
        limit(where, (number, opened.height, opened.width), most, "pixels")
    for page in range(number):
        opened.seek(page)
        if opened.size != size:
            raise InputError(f"{where}: {UNEQUAL}")
        _check(opened, where, most)
        opened.load()
        yield opened


def _shown(opened: Image.Image, raw_labels: bool, where: str) -> NDArray[Any]:
    """The pixels H,W or H,W,3 of a picture, the right way up."""
    ImageOps.exif_transpose(opened, in_place=True)
    picture = opened
    if picture.mode in TRANSPARENT or ("transparency" in picture.info and picture.mode not in PLAIN_DEEP):
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        labelled = raw_labels and picture.mode == "P" and not np.asarray(picture)[alpha != OPAQUE].any()
        if (alpha != OPAQUE).any() and not labelled:
            return _opaque(picture, alpha, raw_labels, where)
    if raw_labels and picture.mode == "P" and _brightest_first(picture):
        return np.asarray(picture.convert("L"))
    pixels = np.asarray(_plain(picture, raw_labels))
    tags: Any = getattr(opened, "tag_v2", {})
    if picture.mode in PLAIN_DEEP and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == MIN_IS_WHITE:
        if picture.mode not in WHOLE_NUMBERS:
            raise InputError(f"{where}: min-is-white with {picture.mode} pixels; save it as min-is-black")
        bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)))
        pixels = (1 << bits) - 1 - pixels.astype(np.int64)
    return pixels


def _opaque(picture: Image.Image, alpha: NDArray[np.uint8], raw_labels: bool, where: str) -> NDArray[Any]:
    """A mask that is drawn in its transparency: what is opaque is foreground. Raises InputError for other pictures with
    transparent pixels: what is behind these is not known.
    """
    if not raw_labels:
        raise InputError(f"{where}: transparent pixels, behind which anything may be; save it without transparency")
    colours = np.asarray(picture.convert("RGB"))[alpha > 0]
    if len(colours) and (colours != colours[0]).any():
        raise InputError(f"{where}: transparent pixels and several colours; save the mask without transparency")
    return alpha


def _brightest_first(picture: Image.Image) -> bool:
    """Whether a palette of two greys has the brighter one first, so that its indices are upside down."""
    palette = np.asarray(picture.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)[:2]
    grey = len(palette) == 2 and bool((palette == palette[:, :1]).all())
    return grey and bool(palette[0, 0] > palette[1, 0]) and int(np.asarray(picture).max()) <= 1


def _check(picture: ImageFile.ImageFile, where: str, most: int) -> None:
    """Raise InputError where the header of a picture, or of a page, says what is not supported."""
    tags: Any = getattr(picture, "tag_v2", {})  # of a TIFF
    for grid in ((picture.height, picture.width), (tags.get(TILE_LENGTH, 1), tags.get(TILE_WIDTH, 1))):
        limit(where, grid, most, "pixels")
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
