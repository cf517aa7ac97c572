"""`images/` and `masks/` with equal stems, and optionally `cases.csv` (case, patient, site, split)."""

from pathlib import Path

from segpipe.config.sections import DataConfig
from segpipe.data import codecs
from segpipe.data.readers import checks
from segpipe.data.volume import Case, Volume
from segpipe.errors import InputError

IMAGES = (*codecs.PICTURES, ".dcm")


class FolderReader:
    """PNG, JPEG, TIFF or BMP pictures, or single-frame DICOM images with masks as pictures; grey, RGB or 16-bit.

    Without `cases.csv` every image is its own patient.
    """

    def __init__(self, data: DataConfig) -> None:
        self.root, self.data = Path(data.root), data

    def cases(self) -> list[Case]:
        images, masks = self._stems("images", IMAGES), self._stems("masks", codecs.PICTURES)
        for stem in sorted(images.keys() - masks.keys()):
            raise InputError(f"{images[stem]}: no mask of the same name in {self.root / 'masks'}")
        for stem in sorted(masks.keys() - images.keys()):
            raise InputError(f"{masks[stem]}: no image of the same name in {self.root / 'images'}")
        listed = self.root / "cases.csv"
        rows = checks.table(listed, "case", ",")
        if rows:
            for stem in sorted(images.keys() ^ rows.keys()):
                raise InputError(f"{listed}: case '{stem}' " + ("has no image" if stem in rows else "is not listed"))
        return [checks.case_of(rows.get(s, {}), s, s, (images[s],), masks[s]) for s in sorted(images)]

    def _stems(self, name: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        folder = self.root / name
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected images/ and masks/ under data.root")
        stems: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in suffixes:
                raise InputError(f"{path}: not a picture; allowed here: {', '.join(suffixes)}")
            if path.stem in stems:
                raise InputError(f"{path}: same name as {stems[path.stem].name}; stems must be unique")
            stems[path.stem] = path
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
