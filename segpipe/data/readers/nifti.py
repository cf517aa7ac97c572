"""NIfTI volumes in the ISLES'22 BIDS layout."""

import hashlib
from pathlib import Path

from segpipe.config.sections import DataConfig
from segpipe.data import codecs
from segpipe.data.readers import checks
from segpipe.data.volume import Case, Volume
from segpipe.errors import InputError


class NiftiReader:
    """`sub-*/[ses-*/]*/*_CHANNEL.nii[.gz]`, masks under `derivatives/`, patient, site, split in `participants.tsv`.

    The first channel's grid is the case's grid; other channels are resampled onto it, the mask must share it.
    """

    def __init__(self, data: DataConfig) -> None:
        self.root = Path(data.root)
        self.channels, self.mask_suffix = data.channels, data.mask_suffix
        self.classes, self.ignore = data.classes, data.ignore_label

    def cases(self) -> list[Case]:
        rows = checks.table(self.root / "participants.tsv", "participant_id", "\t")
        sessions = _sessions(self.root)
        if not sessions:
            raise InputError(f"data.root {self.root}: no sub-*/ folder; expected the ISLES'22 BIDS layout")
        derivatives = self.root / "derivatives"
        for session in _sessions(derivatives):
            if session not in sessions and self._files(derivatives / session, self.mask_suffix):
                raise InputError(f"{derivatives / session}: a mask without its image in {self.root / session}")
        return [self._case(session, rows) for session in sessions]

    def _case(self, session: Path, rows: dict[str, dict[str, str]]) -> Case:
        subject = session.parts[0]
        if rows and subject not in rows:
            raise InputError(f"{self.root / 'participants.tsv'}: case '{subject}' is not listed")
        row = rows.get(subject, {})
        images = tuple(self._only(self.root / session, channel) for channel in self.channels)
        mask = self._only(self.root / "derivatives" / session, self.mask_suffix)
        patient, site, split = (row.get(key) for key in ("patient", "site", "split"))
        return Case(
            "_".join(session.parts),
            patient or subject,
            site or "site",
            split or None,
            images,
            mask,
            checks.attributes(row),
        )

    def _files(self, folder: Path, suffix: str) -> list[Path]:
        patterns = [f"{below}*_{suffix}{end}" for below in ("", "*/") for end in (".nii.gz", ".nii")]
        return sorted(path for pattern in patterns for path in folder.glob(pattern))

    def _only(self, folder: Path, suffix: str) -> Path:
        found = self._files(folder, suffix)
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files"
            raise InputError(f"{folder}: {what} *_{suffix}.nii.gz; a case has exactly one")
        return found[0]

    def load(self, case: Case) -> Volume:
        total = hashlib.sha256()

        def read(path: Path) -> codecs.Decoded:
            data = path.read_bytes()
            total.update(data)
            decoded = codecs.decode(data, str(path))
            if len(decoded.array) != 1:
                raise InputError(f"{path}: {len(decoded.array)} volumes in one file, expected one per channel")
            checks.finite(decoded.array, str(path))
            return decoded

        files, mask = [read(path) for path in case.images], read(case.mask)
        checks.check_mask(mask, str(case.mask), files[0], case.images[0].name, "volume")
        labels = checks.labels(mask.array[0], self.classes, self.ignore, str(case.mask))
        return Volume(codecs.stack(files)[0], labels, files[0].spacing, total.hexdigest())


def _sessions(root: Path) -> list[Path]:
    """`sub-X/ses-Y`, or `sub-X` where there are no sessions, relative to `root`, sorted."""
    found: list[Path] = []
    for subject in sorted(root.glob("sub-*/")):
        sessions = sorted(subject.glob("ses-*/")) or [subject]
        found.extend(session.relative_to(root) for session in sessions)
    return found
