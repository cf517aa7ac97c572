"""The hand-off from preprocess: what is in the dataset, who is in which split, where each case lies in the arrays."""

import json
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from segpipe.config.sections import PreprocessConfig, Section
from segpipe.errors import InputError
from segpipe.files.hashes import of_json

FORMAT = 1
FILE = "manifest.json"
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class CaseRecord(Section):
    """One case: a volume, or an image as a volume of one slice.

    `shape` is D,H,W as acquired and `spacing` mm along the same axes, or None where the file has none. `voxels` counts
    each foreground class as acquired, `volume_ml` all of them. `start` is the first slice in the split's arrays for
    train and val; for test, where cases keep their own size, it is the first element of the flat mask array.
    `attributes` are further columns of the data's own table.
    """

    case: str
    patient: str
    site: str
    split: Split
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    voxels: dict[str, int]
    volume_ml: float | None
    sha256: str
    files: tuple[str, ...]
    start: int
    attributes: dict[str, str] = Field(default_factory=dict)


class ArrayRecord(Section):
    """One memory-mappable .npy file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


class Manifest(Section):
    """Everything train and evaluate need to know about a dataset."""

    format: int = FORMAT
    reader: str
    root: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    preprocess: PreprocessConfig
    cases: tuple[CaseRecord, ...]
    arrays: dict[str, ArrayRecord]
    intensity: dict[str, dict[str, float]]

    def of(self, split: Split) -> list[CaseRecord]:
        """The cases of one split, in the order of the arrays."""
        return [case for case in self.cases if case.split == split]

    @property
    def digest(self) -> str:
        """Identity of the dataset: contents, split and preprocessing, not where it lies."""
        return of_json(self.model_dump(mode="json", exclude={"root"}))[:16]

    @property
    def test_digest(self) -> str:
        """Identity of the test set: equal digests mean that per-case results can be compared."""
        cases = [(c.case, c.patient, c.sha256) for c in self.of("test")]
        return of_json([self.channels, self.classes, cases])[:16]

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically; written last, it says that the folder is whole."""
        partial = folder / (FILE + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self.model_dump(mode="json"), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a dataset folder's manifest and look at its arrays.

        Raises InputError where it is missing, of another format, or where an array is missing or cut short.
        """
        manifest = cls.read(folder / FILE)
        for name in manifest.arrays:
            manifest.array(folder, name)
        return manifest

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest alone, without its arrays. Raises InputError where it is missing or of another format."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file: the dataset was never finished; run preprocess again") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: damaged ({error}); run preprocess again") from None
        if values.get("format") != FORMAT:
            raise InputError(f"{path}: format {values.get('format')}, this version reads {FORMAT}; preprocess again")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{path}: damaged ({error.error_count()} fields); run preprocess again") from None

    def array(self, folder: Path, name: str) -> NDArray[np.generic]:
        """Memory-map one of the arrays, read-only. Raises InputError where it is not what the manifest says."""
        record = self.arrays[name]
        path = folder / record.file
        try:
            array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: missing or cut short ({error}); run preprocess again") from None
        if array.shape != record.shape or array.dtype.str != record.dtype:
            raise InputError(f"{path}: {array.shape}, but the manifest says {record.shape}; run preprocess again")
        return array

    def native(self, folder: Path, case: CaseRecord) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A test case as acquired: image C,D,H,W float32 and mask D,H,W uint8."""
        size, channels = int(np.prod(case.shape)), len(self.channels)
        image = self.array(folder, "test_images")[case.start * channels : (case.start + size) * channels]
        mask = self.array(folder, "test_masks")[case.start : case.start + size]
        return (
            image.reshape(channels, *case.shape).astype(np.float32, copy=False),
            mask.reshape(case.shape).astype(np.uint8, copy=False),
        )
