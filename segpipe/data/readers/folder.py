"""`images/` and `masks/` with matching names, at the root or below `train/`, `val/` and `test/`, and optionally a table
such as `cases.csv` (case, patient, site, split): of pictures, or of volumes as TIFF of several pages.
"""

from collections import Counter
from pathlib import Path

from segpipe.config.sections import DataConfig
from segpipe.data import codecs, raw, tables
from segpipe.data.readers import checks, pairs
from segpipe.data.volume import Case, Found, Kind, Volume
from segpipe.errors import InputError

IMAGES = (*codecs.PICTURES, ".dcm")
NOT_HERE: dict[Kind, str] = {"picture": "not a picture", "volume": "not a stack"}


class FolderReader:
    """PNG, JPEG, TIFF or BMP pictures, or single-frame DICOM images with masks as pictures; grey, RGB or 16-bit. Of
    the kind `volume`: stacks, each a TIFF of several pages, its mask one of as many.

    Without a table every image is its own patient.
    """

    def __init__(self, data: DataConfig, kind: Kind = "picture") -> None:
        self.root, self.data, self.kind = Path(data.root), data, kind
        self.images = IMAGES if kind == "picture" else codecs.STACKS
        self.masks = codecs.PICTURES if kind == "picture" else codecs.STACKS

    def find(self) -> Found:
        faults: list[str] = []
        parts = {split: self._pairs(folder, faults) for folder, split in self._places()}
        names = Counter(name for part in parts.values() for name in part)
        found = {
            name if names[name] == 1 else f"{split}_{name}": (*pair, split)
            for split, part in parts.items()
            for name, pair in part.items()
        }
        listed, rows = tables.read(self.root, self.images, faults)
        for name in sorted(found.keys() ^ rows.keys()) if rows else ():
            faults.append(f"{listed}: case '{name}' " + ("has no image" if name in rows else "is not listed"))
        cases = []
        for name, (image, mask, split) in sorted(found.items()):
            row = rows.get(name, {})
            told = row.get("split") or split
            if split and told != split:
                faults.append(
                    f"{image or mask}: lies under {split}, but the table says {told}; move it, or correct the table"
                )
            if image and mask:
                cases.append(checks.case_of({**row, "split": told}, name, name, (image,), mask))
        return Found(cases, faults)

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

    def _pairs(self, folder: Path, faults: list[str]) -> dict[str, tuple[Path | None, Path | None]]:
        """Image and mask by the name of their case, and what is wrong with them added to the faults."""
        images = self._stems(folder / "images", self.images, faults)
        masks = self._stems(folder / "masks", self.masks, faults)
        masks = self._named(masks, folder / "masks")
        images, masks = pairs.matched(images, masks)
        for stem in sorted(images.keys() - masks.keys()):
            faults.append(f"{images[stem]}: no mask of the same name in {folder / 'masks'}")
        for stem in sorted(masks.keys() - images.keys()):
            faults.append(f"{masks[stem]}: no image of the same name in {folder / 'images'}")
        return {stem: (images.get(stem), masks.get(stem)) for stem in images | masks}

    def _named(self, masks: dict[str, Path], folder: Path) -> dict[str, Path]:
        """The masks by the names of their cases, where data.mask_suffix says how they end; otherwise as they are."""
        ending = f"_{self.data.mask_suffix}"
        ours = {stem: path for stem, path in masks.items() if stem.endswith(ending)}
        if self.data.mask_suffix == DataConfig.model_fields["mask_suffix"].default:
            return masks
        if not ours:
            raise InputError(f"{folder}: no file ends with {ending}; leave out data.mask_suffix, or correct it")
        return pairs.without(ours, ending)

    def _stems(self, folder: Path, suffixes: tuple[str, ...], faults: list[str]) -> dict[str, Path]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected images/ and masks/ under data.root")
        stems: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            stem = tables.tidy(path.stem)
            if raw.of_the_system(path):
                continue
            if fault := raw.fault_of_name(path):
                faults.append(fault)
            elif path.suffix.lower() not in suffixes:
                faults.append(f"{path}: {NOT_HERE[self.kind]}; allowed here: {', '.join(suffixes)}")
            elif stem in stems:
                faults.append(f"{path}: same name as {stems[stem].name}; stems must be unique")
            else:
                stems[stem] = path
        if not stems:
            raise InputError(faults[0] if faults else f"{folder}: empty folder")
        return stems

    def load(self, case: Case) -> Volume:
        (image,), mask, sha256 = checks.read_files(case)
        if image.geometry.volume and self.kind == "picture":
            raise InputError(f"{case.images[0]}: {codecs.SEVERAL_PAGES}, or all as stacks (data.format=stacks)")
        if not image.geometry.volume and self.kind == "volume":
            raise InputError(f"{case.images[0]}: a single picture; a stack has several pages")
        checks.check_mask(mask, str(case.mask), image, case.images[0].name, self.kind)
        checks.finite(image.array, str(case.images[0]))
        labels, values = checks.labels(mask.array[0], self.data.classes, self.data.ignore_label, str(case.mask))
        channels = codecs.as_channels(image.array, len(self.data.channels), str(case.images[0]))
        return Volume(channels, labels, image.spacing, sha256, values)


def holds_stacks(root: Path) -> bool:
    """Whether the first TIFF among the images that can be read has several pages."""
    folders = [part for part in raw.parts(root, "folder") if part.name == "images"]
    images = (path for folder in folders for path in sorted(folder.iterdir()) if not raw.of_the_system(path))
    for path in images:
        if path.suffix.lower() in codecs.STACKS:
            try:
                return codecs.decode(path.read_bytes(), path.name).geometry.volume
            except (InputError, OSError):  # told by the reader, whatever the layout is
                continue
    return False
