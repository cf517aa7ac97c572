"""Write a data set: read every case, fit it to the network, append it to the arrays of its split."""

import csv
import hashlib
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from segpipe.config.sections import Config, PreprocessConfig
from segpipe.data import transform
from segpipe.data.checking.facts import Facts
from segpipe.data.checking.reading import Check
from segpipe.data.manifest import SPLITS, ArrayRecord, CaseRecord, Manifest, Split
from segpipe.data.readers import READERS, Reader, channel_names
from segpipe.data.volume import Case, Volume, volume_ml
from segpipe.errors import InputError
from segpipe.files.hashes import Progress


class ArrayWriter:
    """Appends rows to a .npy file whose length is known only at the end."""

    def __init__(self, folder: Path, name: str, dtype: type[np.generic], row: tuple[int, ...]) -> None:
        self.path = folder / f"{name}.npy"
        self.dtype = np.dtype(dtype)
        self.row, self.rows = row, 0
        self.hash = hashlib.sha256()
        self.file = self.path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row)}
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

    def __exit__(self, *_: object) -> None:
        # numpy pads the header so that a longer first axis still fits: rewriting it in place is safe.
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def record(self) -> ArrayRecord:
        """The manifest's record of this file."""
        return ArrayRecord(
            file=self.path.name, dtype=self.dtype.str, shape=(self.rows, *self.row), sha256=self.hash.hexdigest()
        )


def array_rows(volume: Volume, config: PreprocessConfig, split: Split) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What the arrays of a split hold of a case: for test all voxels C,D,H,W and D,H,W as acquired; for train and val
    all normalised and resampled ones, C,D,h,w and D,h,w, or slices as the network sees them, D,C,h,w and D,h,w.

    Raises InputError where the case has no spacing to resample it by.
    """
    image, mask = volume.image, volume.mask
    if split == "test":
        return image, mask
    image = transform.normalise(image, config)
    if config.fit == "resize":
        fit = transform.Fit(mask.shape[1:], config)
        return fit.image(image), fit.mask(mask)
    plane = transform.working_plane(mask.shape[1:], volume.spacing, config)
    return transform.resampled(image, plane), transform.resampled_labels(mask, plane)


def build(config: Config, reader: Reader, folder: Path, progress: Progress) -> Manifest:
    """Read all cases into `folder`, as `write` does. Calls progress(done, total, case)."""
    return write(config, Check(config, reader, progress), folder)


def write(config: Config, check: Check, folder: Path) -> Manifest:
    """Read all cases of a check into `folder`; the manifest, written last, makes it whole.

    The arrays of train and val hold slices as the network sees them (N,C,h,w float16 and N,h,w uint8), or with
    preprocess.fit=patch each normalised case, flattened. Those of test hold each case as it was acquired, flattened
    (float32 and uint8), so that any model, whatever its own preprocessing, is measured on the original grid by the code
    that serves it.

    Raises FaultsError with all errors that the check finds, InputError for neighbours of pictures.
    """
    kind = READERS[config.data.format].kind
    if config.preprocess.context and kind == "picture":
        raise InputError("preprocess.context has no effect on pictures, which have no neighbours; leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    root = check.reader.root
    channels, size = channel_names(config.data), config.preprocess.size
    records: list[CaseRecord] = []
    arrays: dict[str, ArrayRecord] = {}
    for split in SPLITS:
        flat = split == "test" or config.preprocess.fit == "patch"
        image_row, mask_row = ((), ()) if flat else ((len(channels), *size), size)
        with (
            ArrayWriter(folder, f"{split}_images", np.float32 if split == "test" else np.float16, image_row) as images,
            ArrayWriter(folder, f"{split}_masks", np.uint8, mask_row) as masks,
        ):
            for case, volume, found in check.read(split):
                if check.faults:
                    continue  # nothing that is written would be used
                image, mask = array_rows(volume, config.preprocess, split)
                images.append(image.ravel() if flat else image)
                start = masks.append(mask.ravel() if flat else mask)
                records.append(_record(case, volume, found, mask.shape[1:], start, root, config))
        arrays |= {f"{split}_images": images.record(), f"{split}_masks": masks.record()}
    check.end()
    check.refuse()
    manifest = Manifest(
        kind=kind,
        reader=config.data.format,
        root=str(root),
        channels=channels,
        classes=config.data.class_names,
        preprocess=config.preprocess,
        cases=tuple(records),
        arrays=arrays,
    )
    _write_table(manifest, folder / "cases.csv")
    manifest.save(folder)
    return manifest


def _write_table(manifest: Manifest, path: Path) -> None:
    """The cases as a table for people to read."""
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


def _record(
    case: Case, volume: Volume, found: Facts, plane: tuple[int, ...], start: int, root: Path, config: Config
) -> CaseRecord:
    classes = config.data.class_names
    counts = np.bincount(volume.mask.ravel(), minlength=len(classes) + 1)[1 : len(classes) + 1]
    depth, height, width = volume.mask.shape
    return CaseRecord(
        case=case.name,
        patient=case.patient,
        site=case.site,
        split=found.split,
        shape=(depth, height, width),
        spacing=volume.spacing,
        voxels={name: int(count) for name, count in zip(classes, counts, strict=True)},
        volume_ml=volume_ml(int(counts.sum()), volume.spacing),
        sha256=volume.sha256,
        files=tuple(path.relative_to(root).as_posix() for path in case.images),
        start=start,
        plane=None if plane == (height, width) or config.preprocess.fit == "resize" else (plane[0], plane[1]),
        attributes=case.attributes,
        traits=found.traits,
    )
