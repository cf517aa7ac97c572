"""A data set's folder and its manifest as one object, and selections of its cases."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.data.manifest import FILE, CaseRecord, Manifest, Split
from segpipe.errors import InputError

Array = NDArray[Any]


class Dataset:
    """A data set's folder with its manifest; arrays are memory-mapped once, when they are first asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._arrays: dict[str, Array] = {}

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Read a folder's manifest and check its arrays.

        Raises InputError where the manifest or an array is missing, damaged or of another format.
        """
        dataset = cls(folder, Manifest.read(folder / FILE))
        for name in dataset.manifest.arrays:
            dataset.array(name)
        return dataset

    def array(self, name: str) -> Array:
        """One of the manifest's arrays, read-only. Raises InputError where it is not what the manifest says."""
        if name in self._arrays:
            return self._arrays[name]
        record = self.manifest.arrays[name]
        path = self.folder / record.file
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: missing or cut short ({error}); run preprocess again") from None
        if array.shape != record.shape or array.dtype.str != record.dtype:
            raise InputError(f"{path}: {array.shape}, but the manifest says {record.shape}; run preprocess again")
        self._arrays[name] = array
        return array

    def stored(self, case: CaseRecord) -> tuple[NDArray[np.floating], NDArray[np.uint8]]:
        """A case as the arrays of its split hold it, not copied: image C,D,h,w and labels D,h,w."""
        images, masks = self.array(f"{case.split}_images"), self.array(f"{case.split}_masks")
        if not self.manifest.flat(case.split):
            rows = slice(case.start, case.start + case.shape[0])
            return images[rows].swapaxes(0, 1), masks[rows]
        shape, channels = case.stored_shape, len(self.manifest.channels)
        size = int(np.prod(shape))
        image = images[case.start * channels : (case.start + size) * channels]
        return image.reshape(channels, *shape), masks[case.start : case.start + size].reshape(shape)

    def native(self, case: CaseRecord) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A test case as acquired: image C,D,H,W float32 and mask D,H,W uint8."""
        image, mask = self.stored(case)
        return image.astype(np.float32, copy=False), mask.astype(np.uint8, copy=False)

    def where(
        self,
        split: Split | None = None,
        site: str | Collection[str] | None = None,
        patient: str | Collection[str] | None = None,
    ) -> "Selection":
        """The cases of a split, of one site or several, of one patient or several; None leaves out no case."""
        given = {"split": split, "site": site, "patient": patient}
        asked = {name: {one} if isinstance(one, str) else {*one} for name, one in given.items() if one is not None}
        cases = (c for c in self.manifest.cases if all(getattr(c, name) in asked[name] for name in asked))
        return Selection(self, tuple(cases), split)


class Selection(NamedTuple):
    """Some cases of a data set, in the order of the arrays; `split` is the one asked for, None for any."""

    dataset: Dataset
    cases: tuple[CaseRecord, ...]
    split: Split | None
