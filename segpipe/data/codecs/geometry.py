"""The form of a file, which an answer for it takes on: a picture, a stack of pages; a volume's grid is in `nifti`."""

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Value = TypeVar("Value", bound=np.generic)
FULL = np.float32(65535)  # a probability of 1 in 16 bits


class Geometry(Protocol):
    """How a file holds what its array says; masks are written in the same form.

    `form` is what a request may ask for as output, `suffix` that of a mask's file. `volume` is whether voxels rather
    than pixels are counted, `sided` whether left and right are those of a patient.
    """

    form: ClassVar[str]
    suffix: ClassVar[str]
    volume: ClassVar[bool]
    sided: ClassVar[bool]

    def as_stored(self, values: NDArray[Value]) -> NDArray[Value]:
        """Values D,H,W along the axes of the file, slices last."""

    def encode_labels(self, labels: NDArray[np.uint8], single: bool) -> bytes:
        """A mask D,H,W as the bytes of a file, always the same; `single` where there is one class."""

    def encode_probabilities(self, foreground: NDArray[np.float32]) -> bytes:
        """Probabilities D,H,W as the bytes of a file."""


@dataclass(frozen=True)
class Picture:
    """One plane of pixels, from the upper left corner; masks are 8-bit grey PNG, a single class 255, several their
    numbers, and probabilities 16-bit grey PNG (65535 is 1).
    """

    form: ClassVar[str] = "png"
    suffix: ClassVar[str] = ".png"
    volume: ClassVar[bool] = False
    sided: ClassVar[bool] = False

    def as_stored(self, values: NDArray[Value]) -> NDArray[Value]:
        return values.transpose(1, 2, 0)

    def encode_labels(self, labels: NDArray[np.uint8], single: bool) -> bytes:
        return encode_picture(_visible(labels[0], single))

    def encode_probabilities(self, foreground: NDArray[np.float32]) -> bytes:
        return encode_picture(_deep(foreground[0]))


@dataclass(frozen=True)
class Stack:
    """The pages of a TIFF; masks are the pages of one, of values as a picture's. `tags` say how ImageJ shows it, with
    its spacing. In arrays the rows of volumes go from bottom to top.
    """

    tags: Mapping[int, Any] = field(default_factory=dict)
    form: ClassVar[str] = "tiff"
    suffix: ClassVar[str] = ".tif"
    volume: ClassVar[bool] = True
    sided: ClassVar[bool] = False

    def as_stored(self, values: NDArray[Value]) -> NDArray[Value]:
        return values[:, ::-1].transpose(1, 2, 0)

    def encode_labels(self, labels: NDArray[np.uint8], single: bool) -> bytes:
        return self._pages(_visible(labels, single))

    def encode_probabilities(self, foreground: NDArray[np.float32]) -> bytes:
        return self._pages(_deep(foreground))

    def _pages(self, values: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
        first, *others = (Image.fromarray(np.ascontiguousarray(page[::-1])) for page in values)
        buffer = io.BytesIO()
        first.save(
            buffer,
            format="TIFF",
            save_all=True,
            append_images=others,
            compression="tiff_adobe_deflate",
            tiffinfo=dict(self.tags),
        )
        return buffer.getvalue()


def _visible(labels: NDArray[np.uint8], single: bool) -> NDArray[np.uint8]:
    return np.asarray(labels * np.uint8(255 if single else 1))


def _deep(foreground: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.asarray(np.round(foreground * FULL), dtype=np.uint16)


def encode_picture(plane: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """An 8-bit or 16-bit grey PNG of H,W; the same bytes for the same values."""
    buffer = io.BytesIO()
    # Run lengths alone: of a 512 x 512 mask a smaller file than at the default level, in a third of its time.
    Image.fromarray(plane).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()
