"""SHA-256 of files and values. A file's is remembered, and the file not read again unless it has changed."""

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from segpipe.files.project import PROJECT

Progress = Callable[[int, int, str], None]
GRAIN_NS = 2_000_000_000  # the coarsest time stamps of file systems: a change within them may not show
CHUNK, THREADS = 1 << 20, 4
MANY, LARGE = 500, 500_000_000  # files, or bytes in all, from which on progress is reported
FORGOTTEN_AFTER = 90 * 86_400  # seconds since anything new was remembered of a folder


def cache_folder() -> Path:
    """The folder for everything that can be recomputed: $SEGPIPE_CACHE, $XDG_CACHE_HOME/segpipe or ~/.cache/segpipe."""
    if given := os.environ.get("SEGPIPE_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "segpipe"


def of(paths: Iterable[Path], under: Path, progress: Progress | None = None) -> dict[Path, str]:
    """SHA-256 (64 hex digits) of files below `under`; files with unchanged size, times and inode are not read again.

    The memory may get lost or be written by other processes at the same time: that costs time, nothing else.
    """
    stats = {path: path.stat() for path in paths}
    names = {path: path.relative_to(under).as_posix() for path in stats}
    memory = _memory(under)
    known = _load(memory)
    entries = {path: known.get(names[path], "").rpartition(":") for path in stats}
    found = {path: entries[path][2] for path, stat in stats.items() if entries[path][0] == _stamp(stat)}
    waiting = [path for path in stats if path not in found]
    worth_telling = len(waiting) >= MANY or sum(stats[path].st_size for path in waiting) >= LARGE
    fresh: dict[str, str] = {}
    try:
        for path, digest, stamp in _read_all(waiting, progress if worth_telling else None):
            found[path] = digest
            if stamp:
                fresh[names[path]] = f"{stamp}:{digest}"
    finally:
        if fresh:
            _save(memory, fresh)
    return {path: found[path] for path in stats}


def carry_over(before: Path, after: Path) -> None:
    """Carry what is remembered of a folder's files over to its new name."""
    if known := _load(_memory(before)):
        _save(_memory(after), known)
        with suppress(OSError):  # what stays is forgotten in time
            _memory(before).unlink()


def _read_all(paths: list[Path], progress: Progress | None) -> Iterator[tuple[Path, str, str]]:
    """Each file with what `_read` gives; an interrupt ends the reading within a file."""
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done, (path, read) in enumerate(zip(paths, pool.map(partial(_read, stop), paths), strict=True), 1):
                yield path, *read
                if progress:
                    progress(done, len(paths), path.name)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _read(stop: threading.Event, path: Path) -> tuple[str, str]:
    """A file's digest and the stamp to remember it by, empty where a later change might have the same one."""
    began, total, buffer = time.time_ns(), hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        while not stop.is_set() and (size := file.readinto(buffer)):
            total.update(buffer[:size])
        after = os.fstat(file.fileno())
    settled = max(before.st_mtime_ns, before.st_ctime_ns) < began - GRAIN_NS and _stamp(before) == _stamp(after)
    return total.hexdigest(), _stamp(before) if settled and not stop.is_set() else ""


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _memory(under: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(under.resolve())).hexdigest()[:16]}.json"


def _load(memory: Path) -> dict[str, str]:
    """What is remembered; nothing where the memory is missing, damaged or unreadable."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}


def _save(memory: Path, fresh: dict[str, str]) -> None:
    """Remember more of a folder, beside what other processes have added meanwhile."""
    partial_file = memory.with_suffix(f".{uuid.uuid4().hex}")
    with suppress(OSError):  # without a memory everything is read again
        memory.parent.mkdir(parents=True, exist_ok=True)
        if not memory.exists():
            for old in memory.parent.iterdir():
                if old.stat().st_mtime < time.time() - FORGOTTEN_AFTER:
                    old.unlink(missing_ok=True)
        try:
            partial_file.write_text(json.dumps(_load(memory) | fresh), encoding="utf-8")
            partial_file.replace(memory)
        finally:
            partial_file.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 (64 hex digits) over the paths (relative to the project) and bytes of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.relative_to(PROJECT).as_posix().encode() + b"\0")
        total.update(bytes.fromhex(sha256(path)))
    return total.hexdigest()


def of_json(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
