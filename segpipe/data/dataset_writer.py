"""Write a dataset once: read every case, fit it to the network, append it to one array per split."""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from segpipe.config.sections import Config, PreprocessConfig
from segpipe.data import splits, transform
from segpipe.data.manifest import SPLITS, ArrayRecord, CaseRecord, Manifest, Split
from segpipe.data.readers import READERS, Reader, channel_names
from segpipe.data.volume import Case, Volume, volume_ml
from segpipe.errors import InputError

Progress = Callable[[int, int, str], None]


class ArrayWriter:
    """Appends rows to a .npy file whose length is known only at the end."""

    def __init__(self, folder: Path, name: str, dtype: type[np.generic], row: tuple[int, ...]) -> None:
        self.path = folder / f"{name}.npy"
        self.dtype = np.dtype(dtype)
        self.row, self.rows = row, 0
        self.hash = hashlib.sha256()
        self.file = self.path.open("wb")
        self._header()

    def _header(self) -> None:
        shape = (self.rows, *self.row)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, array: NDArray[np.generic]) -> int:
        """Add rows and return the index of the first one."""
        start = self.rows
        data = np.ascontiguousarray(array, dtype=self.dtype).tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.rows += len(array)
        return start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # numpy pads the header so that a longer first axis still fits: rewriting it in place is safe.
        self.file.seek(0)
        self._header()
        self.file.close()

    def record(self) -> ArrayRecord:
        """What the manifest says of this file."""
        return ArrayRecord(
            file=self.path.name, dtype=self.dtype.str, shape=(self.rows, *self.row), sha256=self.hash.hexdigest()
        )


class SplitWriter:
    """The image and mask arrays of one split.

    train and val hold slices as the network sees them (N,C,h,w float16 and N,h,w uint8). test holds each case as it
    was acquired, flattened (float32 and uint8), so that any model, whatever its own preprocessing, is measured on the
    original grid by the code that serves it.
    """

    def __init__(self, folder: Path, split: Split, config: Config) -> None:
        self.native = split == "test"
        self.config = config.preprocess
        channels = len(channel_names(config.data))
        image_row = () if self.native else (channels, *self.config.size)
        mask_row = () if self.native else self.config.size
        self.images = ArrayWriter(folder, f"{split}_images", np.float32 if self.native else np.float16, image_row)
        self.masks = ArrayWriter(folder, f"{split}_masks", np.uint8, mask_row)

    def append(self, volume: Volume) -> int:
        """Add one case and return where it starts in the mask array."""
        if self.native:
            self.images.append(volume.image.ravel())
            return self.masks.append(volume.mask.ravel())
        images, masks = network_slices(volume, self.config)
        self.images.append(images)
        return self.masks.append(masks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.images.__exit__(kind, error, tb)
        self.masks.__exit__(kind, error, tb)


def network_slices(volume: Volume, config: PreprocessConfig) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A case as the network sees it: D,C,h,w float32 and D,h,w uint8."""
    fit = transform.Fit(volume.mask.shape[1:], config)
    return fit.image(transform.normalise(volume.image, config)), fit.mask(volume.mask)


def build(config: Config, reader: Reader, folder: Path, progress: Progress) -> Manifest:
    """Read all cases into `folder`; the manifest, written last, makes it whole. Calls progress(done, total, case).

    Raises InputError for whatever the reader refuses, for patients that can't be split, and where no mask of the whole
    data set has any foreground.
    """
    cases = reader.cases()
    sides = splits.assign(cases, config.split, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    records: list[CaseRecord] = []
    arrays: dict[str, ArrayRecord] = {}
    for split in SPLITS:
        mine = [case for case in cases if sides[case.patient] == split]
        with SplitWriter(folder, split, config) as writer:
            for case in mine:
                volume = reader.load(case)
                records.append(_record(case, volume, split, writer.append(volume), reader.root, config))
                progress(len(records), len(cases), case.name)
        arrays[f"{split}_images"] = writer.images.record()
        arrays[f"{split}_masks"] = writer.masks.record()
    if not any(any(record.voxels.values()) for record in records):
        raise InputError(f"{reader.root}: all {len(records)} masks are empty; nothing to learn")
    manifest = Manifest(
        kind=READERS[config.data.format].kind,
        reader=config.data.format,
        root=str(reader.root),
        channels=channel_names(config.data),
        classes=config.data.class_names,
        preprocess=config.preprocess,
        cases=tuple(records),
        arrays=arrays,
    )
    _write_table(manifest, folder / "cases.csv")
    manifest.save(folder)
    return manifest


def _write_table(manifest: Manifest, path: Path) -> None:
    """The cases as a table for a person to read."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        more = list(manifest.cases[0].attributes)
        table.writerow(
            ["case", "patient", "site", "split", "shape", "spacing_mm", *manifest.classes, "volume_ml", *more]
        )
        for c in manifest.cases:
            shape, spacing = ("x".join(f"{n:g}" for n in v) for v in (c.shape, c.spacing or ()))
            known = (c.case, c.patient, c.site, c.split, shape, spacing, *c.voxels.values(), c.volume_ml)
            table.writerow([*known, *c.attributes.values()])


def _record(case: Case, volume: Volume, split: Split, start: int, root: Path, config: Config) -> CaseRecord:
    classes = config.data.class_names
    counts = np.bincount(volume.mask.ravel(), minlength=len(classes) + 1)[1 : len(classes) + 1]
    depth, height, width = volume.mask.shape
    return CaseRecord(
        case=case.name,
        patient=case.patient,
        site=case.site,
        split=split,
        shape=(depth, height, width),
        spacing=volume.spacing,
        voxels={name: int(count) for name, count in zip(classes, counts, strict=True)},
        volume_ml=volume_ml(int(counts.sum()), volume.spacing),
        sha256=volume.sha256,
        files=tuple(path.relative_to(root).as_posix() for path in case.images),
        start=start,
        attributes=case.attributes,
    )
