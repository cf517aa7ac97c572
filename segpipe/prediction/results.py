"""The output folder: each file is written whole or not at all, so that work goes on where it was stopped.

    request.json    the one request whose results the folder holds
    inputs/CASE.*   outputs/CASE.png|.nii.gz   comparisons/CASE.png   metadata/CASE.json
    predictions.csv    summary.json    summary.md

A case is done when its metadata, written last, is there.
"""

import csv
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segpipe.config.sections import Section
from segpipe.errors import ConflictError, InputError
from segpipe.files import hashes
from segpipe.inference.spec import Labelling

REQUEST, TABLE, SUMMARY, REPORT, LOCK = "request.json", "predictions.csv", "summary.json", "summary.md", ".lock"
PARTS = ("inputs", "outputs", "comparisons", "metadata")
COLUMNS = (
    "case", "status", "error", "foreground_voxels", "foreground_mm2", "foreground_ml", "lesions", "max_probability",
    "mean_probability", "uncertainty", "dice", "split", "warnings", "sha256", "seconds",
)  # fmt: skip
AMOUNTS = ("voxels", "mm2", "ml", "lesions")  # of each of several classes
Record = dict[str, Any]


class Request(Section):
    """All that decides the bytes of the results: the input, the model's weights and spec, the parameters."""

    input: str
    weights_sha256: str
    spec_sha256: str
    threshold: float
    tta: bool
    largest_component: bool
    min_area: int
    comparisons: bool
    ignore_label: int

    @property
    def labelling(self) -> Labelling:
        """How probabilities become labels."""
        return Labelling.of(self)

    @property
    def key(self) -> str:
        """8 hex digits that name the default folder of the request."""
        return hashes.of_json(self.model_dump(mode="json"))[:8]


@contextmanager
def holding(folder: Path, request: Request) -> Iterator[None]:
    """Hold an output folder for one request.

    Raises InputError where it holds another request's or something else, ConflictError where another process is at
    work in it.
    """
    path = folder / REQUEST
    if folder.is_dir() and any(folder.iterdir()) and not path.is_file() and not (folder / LOCK).is_file():
        raise InputError(f"predict.output={folder}: not empty, and no results of predict; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"predict.output={folder}: another predict is at work in it right now") from None
        ours = request.model_dump(mode="json")
        if not path.is_file():
            write(path, json.dumps(ours, indent=1).encode())
        known = json.loads(path.read_text(encoding="utf-8"))
        differing = [f"{name} {known.get(name)} -> {ours[name]}" for name in ours if known.get(name) != ours[name]]
        if differing:
            raise InputError(f"predict.output={folder}: holds another request ({', '.join(differing)}); give another")
        yield


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def link(source: Path, target: Path) -> None:
    """Link a file to a second place, or copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        write(target, source.read_bytes())


def metadata(folder: Path, case: str) -> Path:
    """The file with the record of a case."""
    return folder / "metadata" / f"{case}.json"


def known(folder: Path, case: str, sha256: str, reference_sha256: str | None) -> Record | None:
    """The record of a case that is done, from the same files; None for any other."""
    path = metadata(folder, case)
    if not path.is_file():
        return None
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    same = (record["sha256"], record["reference_sha256"]) == (sha256, reference_sha256)
    return record if same and all((folder / name).is_file() for name in record["results"]) else None


def forget(folder: Path, case: str) -> None:
    """Remove what an earlier run left of a case, its metadata first."""
    path = metadata(folder, case)
    if not path.is_file():
        return
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    for name in record["results"]:
        (folder / name).unlink(missing_ok=True)


@contextmanager
def table(folder: Path, classes: Sequence[str]) -> Iterator[Callable[[Record], None]]:
    """A function that adds a case to predictions.csv, with the amounts of each of several classes, which appears when
    the block ends well.
    """
    partial = folder / f".{TABLE}.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        apart = [f"{amount}_{name}" for name in classes for amount in AMOUNTS] if len(classes) > 1 else []
        writer = csv.DictWriter(file, (*COLUMNS, *apart), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        yield lambda record: writer.writerow(
            record | _by_class(record) | {"warnings": "; ".join(record.get("warnings", ()))}
        )
    partial.replace(folder / TABLE)


def _by_class(record: Record) -> Record:
    found = record.get("by_class") or {}
    return {f"{amount}_{name}": values[amount] for name, values in found.items() for amount in AMOUNTS}


def mirror(source: Path, target: Path) -> None:
    """Link or copy the results into another folder."""
    for part in PARTS:
        for path in sorted((source / part).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                link(path, target / path.relative_to(source))
    for name in (REQUEST, TABLE, SUMMARY, REPORT):
        link(source / name, target / name)
