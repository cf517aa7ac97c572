"""The table that says whom each case belongs to, as people write it: cases.csv, participants.tsv and their like."""

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import get_args

from segpipe.config.sections import MetricName
from segpipe.errors import InputError

STEMS = ("cases", "case", "participants", "participant", "patients", "patient", "subjects", "subject")
READ, UNREAD = (".csv", ".tsv", ".txt"), (".xlsx", ".xls", ".ods", ".numbers")
DELIMITERS = ",;\t"
# What a column is called, in small letters with _ for blanks and -; the first is what it is called here.
COLUMNS = {
    "case": ("case", "case_id", "caseid", "image", "image_id", "file", "filename", "file_name", "participant_id"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "person"),
    "site": ("site", "site_id", "centre", "center", "hospital"),
    "split": ("split", "subset", "set"),
}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MISSING = ("na", "n/a", "nan", "null", "none", "-", "?")  # in a column that is understood, as an empty cell
RESERVED = {"outcome", "size", *get_args(MetricName)}
Rows = dict[str, dict[str, str]]


def read(root: Path, suffixes: Sequence[str], faults: list[str]) -> tuple[Path | None, Rows]:
    """The table of a folder, and its rows by case: of each the columns case, patient, site, split that there are, and
    further ones as they are called. A case that ends like a file with one of `suffixes` is meant without it.

    None and no rows where there is no table. Added to the faults are rows without a case or, where others have one, a
    patient, a case that stands twice, and an unknown split. Raises InputError for several tables, for one that is no
    text, without the column of cases or without rows, and for a column named like a result.
    """
    path = _find(root)
    if path is None:
        return None, {}
    header, lines = cut(path)
    names = means(path, header, COLUMNS)
    for name in RESERVED.intersection(names):
        raise InputError(f"{path}: column '{name}' has the name of one of the results; rename it")
    if "case" not in names:
        how = f"call it case (also read: {', '.join(COLUMNS['case'][1:4])}), or rename the file"
        raise InputError(f"{path}: no column of cases among {', '.join(header)}; {how}")
    rows: Rows = {}
    for number, cells in lines:
        row = {name: _known(name, tidy(cell)) for name, cell in zip_longest(names, cells) if name}
        if any(row.values()):
            row["case"] = _without_suffix(row["case"], suffixes)
            if fault := _fault(row, rows):
                faults.append(f"{path}, line {number}: {fault}")
            if row["case"]:
                rows.setdefault(row["case"], row)
    if not rows:
        raise InputError(f"{path}: a header without rows; fill it in, or remove it")
    empty = [case for case, row in rows.items() if not row.get("patient", "given")]
    if empty:
        fill = "write it into every row (merged cells leave blanks), or remove the column"
        faults.append(f"{path}: case '{empty[0]}' has no patient, like {len(empty)} of {len(rows)} rows; {fill}")
    return path, rows


def is_table(path: Path) -> bool:
    """Whether a file is called like a table of cases."""
    return path.stem.lower() in STEMS and path.suffix.lower() in (*READ, *UNREAD)


def _find(root: Path) -> Path | None:
    found = [path for path in sorted(root.iterdir()) if is_table(path) and path.is_file()]
    for path in found:
        if path.suffix.lower() in UNREAD:
            raise InputError(f"{path}: a spreadsheet is not read; save it as {path.stem.lower()}.csv, and remove it")
    if len(found) > 1:
        raise InputError(f"{root}: {' and '.join(path.name for path in found)} both say who is who; keep one")
    return found[0] if found else None


def tidy(text: str | None) -> str:
    """A cell without blanks around it, in the form that names are compared in (NFC)."""
    return unicodedata.normalize("NFC", text or "").strip()


def cut(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a table, and each further line with its number, cut at the character that cuts the header most.

    Raises InputError for a file that is empty or no text.
    """
    try:
        content = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    first = next((line for line in content if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    read = [(number, row) for number, row in enumerate(csv.reader(content, delimiter=delimiter), start=1) if row]
    if not read:
        raise InputError(f"{path}: empty; fill it in, or remove it")
    (_, header), *lines = read
    return [tidy(name) for name in header], lines


def means(path: Path, header: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """What each column is called here, by what people call it. Raises InputError where two mean the same."""
    meant = {alias: name for name, aliases in columns.items() for alias in aliases}
    names = [meant.get(name.lower().replace(" ", "_").replace("-", "_"), name) for name in header]
    for name in filter(None, names):
        alike = [title for title, other in zip(header, names, strict=True) if other == name]
        if len(alike) > 1:
            raise InputError(f"{path}: columns {' and '.join(alike)} both mean {name}; keep one")
    return names


def _known(name: str, cell: str) -> str:
    """A cell, empty where it says that a patient, a site or a split is not known."""
    return "" if name in COLUMNS and name != "case" and cell.lower() in MISSING else cell


def _without_suffix(case: str, suffixes: Sequence[str]) -> str:
    end = next((suffix for suffix in suffixes if case.lower().endswith(suffix)), "")
    return case[: len(case) - len(end)]


def _fault(row: dict[str, str], rows: Rows) -> str:
    """What is wrong with a row after others, if anything is; its split is written as it is called here."""
    if not row["case"]:
        return "no case; name one, or remove the line"
    if row["case"] in rows:
        return f"case '{row['case']}' stands twice"
    split = row.get("split", "")
    row["split"] = SPLITS.get(split.lower(), "")
    return f"split '{split}'; allowed: train, val, test" if split and not row["split"] else ""
