"""NIfTI volumes in the ISLES'22 BIDS layout."""

from pathlib import Path

from segpipe.config.sections import DataConfig
from segpipe.data import codecs, raw, tables
from segpipe.data.readers import checks
from segpipe.data.volume import Case, Found, Volume
from segpipe.errors import InputError


class NiftiReader:
    """`sub-*/[ses-*/]*/*_CHANNEL.nii[.gz]`, masks under `derivatives/`, patient, site, split in a table such as
    `participants.tsv`.

    The first channel's grid is the case's grid; other channels are resampled onto it, the mask must share it.
    """

    def __init__(self, data: DataConfig) -> None:
        self.root, self.data = Path(data.root), data

    def find(self) -> Found:
        faults: list[str] = []
        listed, rows = tables.read(self.root, (), faults)
        sessions = _sessions(self.root)
        if not sessions:
            raise InputError(f"data.root {self.root}: no sub-*/ folder; expected the ISLES'22 BIDS layout")
        derivatives = self.root / "derivatives"
        for session in _sessions(derivatives):
            if session not in sessions and _files(derivatives / session, self.data.mask_suffix):
                faults.append(f"{derivatives / session}: a mask without its image in {self.root / session}")
        subjects = {session.parts[0] for session in sessions}
        rows = {name if name in subjects else f"sub-{name.removeprefix('sub-')}": row for name, row in rows.items()}
        for subject in sorted(subjects ^ rows.keys()) if rows else ():
            faults.append(f"{listed}: case '{subject}' {'has no folder' if subject in rows else 'is not listed'}")
        cases = []
        for session in sessions:
            try:
                cases.append(self._case(session, rows))
            except InputError as error:
                faults.append(str(error))
        return Found(cases, faults)

    def _case(self, session: Path, rows: tables.Rows) -> Case:
        subject = session.parts[0]
        images = tuple(_find_one(self.root / session, channel) for channel in self.data.channels)
        mask = _find_one(self.root / "derivatives" / session, self.data.mask_suffix)
        for path in (*images, mask):
            if fault := raw.fault_of_name(path):
                raise InputError(fault)
        return checks.case_of(rows.get(subject, {}), "_".join(session.parts), subject, images, mask)

    def load(self, case: Case) -> Volume:
        images, mask, sha256 = checks.read_files(case)
        for path, file in zip((*case.images, case.mask), (*images, mask), strict=True):
            if not isinstance(file.geometry, codecs.Grid):
                raise InputError(f"{path}: not a NIfTI file")
            if len(file.array) != 1:
                raise InputError(f"{path}: {len(file.array)} volumes in one file, expected one per channel")
            checks.finite(file.array, str(path))
        checks.check_mask(mask, str(case.mask), images[0], case.images[0].name, "volume")
        labels, values = checks.labels(mask.array[0], self.data.classes, self.data.ignore_label, str(case.mask))
        return Volume(
            codecs.stack(dict(zip(self.data.channels, images, strict=True)))[0],
            labels,
            images[0].spacing,
            sha256,
            values,
        )


def _files(folder: Path, suffix: str) -> list[Path]:
    patterns = [f"{below}*_{suffix}{end}" for below in ("", "*/") for end in (".nii.gz", ".nii")]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _find_one(folder: Path, suffix: str) -> Path:
    found = _files(folder, suffix)
    if len(found) != 1:
        what = "no file" if not found else f"{len(found)} files"
        raise InputError(f"{folder}: {what} *_{suffix}.nii.gz; a case has exactly one")
    return found[0]


def _sessions(root: Path) -> list[Path]:
    """`sub-X/ses-Y`, or `sub-X` where there are no sessions, relative to `root`, sorted."""
    subjects = sorted(root.glob("sub-*/"))
    return [s.relative_to(root) for subject in subjects for s in sorted(subject.glob("ses-*/")) or [subject]]
