"""`images/` and `masks/` with matching names, at the root or below `train/`, `val/` and `test/`, and optionally a table
such as `cases.csv` (case, patient, site, split).
"""

from collections import Counter
from pathlib import Path

from segpipe.config.sections import DataConfig
from segpipe.data import codecs, raw, tables
from segpipe.data.readers import checks, pairs
from segpipe.data.volume import Case, Volume
from segpipe.errors import InputError

IMAGES = (*codecs.PICTURES, ".dcm")


class FolderReader:
    """PNG, JPEG, TIFF or BMP pictures, or single-frame DICOM images with masks as pictures; grey, RGB or 16-bit.

    Without a table every image is its own patient.
    """

    def __init__(self, data: DataConfig) -> None:
        self.root, self.data = Path(data.root), data

    def cases(self) -> list[Case]:
        found: dict[str, tuple[Path, Path, str]] = {}
        parts = {split: self._pairs(folder) for folder, split in self._places()}
        names = Counter(name for part in parts.values() for name in part)
        for split, part in parts.items():
            for name, (image, mask) in part.items():
                found[name if names[name] == 1 else f"{split}_{name}"] = image, mask, split
        listed, rows = tables.read(self.root, IMAGES)
        for name in sorted(found.keys() ^ rows.keys()) if rows else ():
            raise InputError(f"{listed}: case '{name}' " + ("has no image" if name in rows else "is not listed"))
        return [self._case(name, *found[name], rows.get(name, {})) for name in sorted(found)]

    def _case(self, name: str, image: Path, mask: Path, split: str, row: dict[str, str]) -> Case:
        told = row.get("split", "")
        if split and told and told != split:
            raise InputError(f"{image}: lies under {split}, but the table says {told}; move it, or correct the table")
        return checks.case_of({**row, "split": told or split}, name, name, (image,), mask)

    def _places(self) -> list[tuple[Path, str]]:
        """The folders that hold images/ and masks/, each with the split that it stands for, if it stands for one."""
        named = {path: tables.SPLITS.get(path.name.lower(), "") for path in sorted(self.root.glob("*/"))}
        splits = [(path, split) for path, split in named.items() if split and (path / "images").is_dir()]
        if not splits or (self.root / "images").is_dir():
            return [(self.root, "")]
        twice = [split for _, split in splits]
        for split in twice:
            if twice.count(split) > 1:
                folders = " and ".join(path.name for path, other in splits if other == split)
                raise InputError(f"{self.root}: {folders} both stand for {split}; keep one")
        return splits

    def _pairs(self, folder: Path) -> dict[str, tuple[Path, Path]]:
        """Image and mask by the name of their case."""
        images, masks = self._stems(folder / "images", IMAGES), self._stems(folder / "masks", codecs.PICTURES)
        images, masks = pairs.matched(images, masks)
        for stem in sorted(images.keys() - masks.keys()):
            raise InputError(f"{images[stem]}: no mask of the same name in {folder / 'masks'}")
        for stem in sorted(masks.keys() - images.keys()):
            raise InputError(f"{masks[stem]}: no image of the same name in {folder / 'images'}")
        return {stem: (images[stem], masks[stem]) for stem in images}

    def _stems(self, folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected images/ and masks/ under data.root")
        stems: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if raw.of_the_system(path):
                continue
            if path.suffix.lower() not in suffixes:
                raise InputError(f"{path}: not a picture; allowed here: {', '.join(suffixes)}")
            stem = tables.tidy(path.stem)
            if stem in stems:
                raise InputError(f"{path}: same name as {stems[stem].name}; stems must be unique")
            stems[stem] = path
        if not stems:
            raise InputError(f"{folder}: empty folder")
        return stems

    def load(self, case: Case) -> Volume:
        (image,), mask, sha256 = checks.read_files(case)
        checks.check_mask(mask, str(case.mask), image, case.images[0].name, "picture")
        checks.finite(image.array, str(case.images[0]))
        labels = checks.labels(mask.array[0], self.data.classes, self.data.ignore_label, str(case.mask))
        channels = codecs.as_channels(image.array, len(self.data.channels), str(case.images[0]))
        return Volume(channels, labels, image.spacing, sha256)
