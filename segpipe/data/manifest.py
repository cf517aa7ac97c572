"""What is in a data set, who is in which split, and where each case lies in the arrays."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from segpipe.config.sections import PreprocessConfig, Section
from segpipe.data.profiles import Profile, Values
from segpipe.data.volume import KIND_OF_READER, Kind
from segpipe.errors import InputError, one_line
from segpipe.files.hashes import of_json

FORMAT = 2
FILE = "manifest.json"
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class CaseRecord(Section):
    """One case: a volume, or an image as a volume of one slice.

    `shape` is D,H,W as acquired and `spacing` mm along the same axes, or None where the file has none. `voxels` counts
    each foreground class as acquired, `volume_ml` all of them. `start` is the first slice in the split's arrays; where
    cases keep their own size (`Manifest.flat`), it is the first element of the flat mask array. `plane` is the height
    and width in the arrays of a case that was resampled.
    `attributes` are additional columns of the data's own table, `traits` what the image is like (see `profiles`).
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
    plane: tuple[int, int] | None = None
    traits: Values = ()

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """D,h,w in the arrays of a case that keeps its own size."""
        return (self.shape[0], *self.plane) if self.plane else self.shape


class ArrayRecord(Section):
    """One memory-mappable .npy file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


class Manifest(Section):
    """Everything train and evaluate need to know about a data set; `reader` is the format of the raw data."""

    format: int = FORMAT
    kind: Kind
    reader: str
    root: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    preprocess: PreprocessConfig
    cases: tuple[CaseRecord, ...]
    arrays: dict[str, ArrayRecord]
    _as_read: dict[str, Any] | None = PrivateAttr(None)

    def of(self, split: Split) -> list[CaseRecord]:
        """The cases of one split, in the order of the arrays."""
        return [case for case in self.cases if case.split == split]

    def sites(self, asked: Collection[str] = ()) -> tuple[str, ...]:
        """The sites asked for, or all, sorted. Raises InputError where no case is of one asked for."""
        known = {case.site for case in self.cases}
        if unknown := sorted({*asked} - known):
            raise InputError(f"federate.sites: no case is of {unknown[0]}; the data set has {', '.join(sorted(known))}")
        return tuple(sorted(asked or known))

    def profile(self, sites: Collection[str]) -> Profile | None:
        """What some sites' images for training and validation are like; None where they are few, or not measured."""
        cases = [case for case in self.cases if case.split != "test" and case.site in sites]
        validation = [case.split == "val" for case in cases]
        return Profile.learn(self.channels, [c.traits for c in cases], [c.patient for c in cases], validation)

    def flat(self, split: Split) -> bool:
        """Whether the arrays of a split hold cases of any size, one after the other, rather than slices of one size."""
        return split == "test" or self.preprocess.fit == "patch"

    @property
    def digest(self) -> str:
        """Identity of the data set (16 hex digits): contents, split and preprocessing, not its place.

        A manifest that was read keeps its digest, which runs carry as a tag, whatever fields a later version adds or
        drops.
        """
        values = self.model_dump(mode="json") if self._as_read is None else self._as_read
        return of_json({name: value for name, value in values.items() if name != "root"})[:16]

    @property
    def test_digest(self) -> str:
        """Identity of the test set (16 hex digits): with equal ones, results can be compared case by case."""
        cases = [(c.case, c.patient, c.sha256) for c in self.of("test")]
        return of_json([self.channels, self.classes, cases])[:16]

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically; written last, it makes the folder whole."""
        partial = folder / (FILE + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self.model_dump(mode="json"), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / FILE)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest alone, without its arrays, of this version or of 0.5.0 (format 1).

        Raises InputError where it is missing, damaged or of another format.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = values.get("format")
            if found not in (1, FORMAT):
                raise InputError(f"{path}: format {found}, this version reads 1 and {FORMAT}; preprocess again")
            current = values
            if found == 1:  # `intensity` was never used
                current = {name: value for name, value in values.items() if name != "intensity"}
                current |= {"format": FORMAT, "kind": KIND_OF_READER.get(values.get("reader", ""))}
            manifest = cls.model_validate(current)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file: the dataset was never finished; run preprocess again") from None
        except ValueError as error:  # no UTF-8, no JSON, or a wrong field
            raise InputError(f"{path}: damaged ({one_line(error)}); run preprocess again") from None
        manifest._as_read = values
        return manifest
