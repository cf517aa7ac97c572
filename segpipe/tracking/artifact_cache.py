"""Artifacts from a server: whole folders once, into a cache by content that processes share; what has no inventory into
a folder of this process's own.

    CACHE/artifacts/KEY/        a folder, complete and checked; KEY is the SHA-256 of its inventory
    CACHE/artifacts/KEY.partial what is being fetched, or was when its process died
    CACHE/artifacts/KEY.lock    locked by all that use the folder, alone by who fills or removes it; its time: last used
"""

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from segpipe.errors import InputError, redact
from segpipe.files import hashes, inventory
from segpipe.files.inventory import FILE, Inventory

GB, LIMIT = 1e9, "20"
RESERVED = "bytes"  # the file with the size of what is being fetched
PAUSE, LOOKS = 0.05, 200  # seconds between two looks at a folder that somebody is about to fill, and how many

_held: dict[str, int] = {}  # locks, by key; they end with the process


class Folder(NamedTuple):
    """A folder of artifacts below an artifact URI, and the inventory that is there with it."""

    root: str
    path: str
    content: bytes

    @property
    def where(self) -> str:
        return redact(f"{self.root}/{self.path}")

    @property
    def key(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def entries(self) -> Inventory:
        """What it holds. Raises InputError where the inventory is damaged."""
        return inventory.parse(self.content, f"{self.where}/{FILE}")


def find(root: str, path: str) -> Folder | None:
    """A folder with an inventory; None where it has none."""
    repository = get_artifact_repository(root)
    if FILE not in _listed(repository, path):
        return None
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        content = Path(repository.download_artifacts(f"{path}/{FILE}", temporary)).read_bytes()
    return Folder(root, path, content)


def _listed(repository: ArtifactRepository, path: str) -> dict[str, int | None]:
    """What lies directly in a folder: its size by name, None where the store does not tell it."""
    return {PurePosixPath(item.path).name: item.file_size for item in repository.list_artifacts(path)}


def damage(root: str, path: str) -> str:
    """What is wrong with a folder by the store's own listing of names and sizes, in words; empty where nothing is."""
    found, called = find(root, path), PurePosixPath(path).name
    if found is None:
        return f"{called}/{FILE} is missing"
    try:
        entries = found.entries()
    except InputError:
        return f"{called}/{FILE} is not what was written"
    repository, sizes = get_artifact_repository(root), {}
    for inner in sorted({str(PurePosixPath(name).parent) for name in entries}):
        listed = _listed(repository, path if inner == "." else f"{path}/{inner}")
        for name in (name for name in entries if str(PurePosixPath(name).parent) == inner):
            if (base := PurePosixPath(name).name) in listed:
                size = listed[base]
                sizes[name] = entries[name].size if size is None else size
    return inventory.missized(sizes, entries, called)


def local(root: str, path: str, inside: str = "") -> Path | None:
    """A local path to the folder `path` below an artifact URI, or to what lies `inside` it; None where the folder has
    no inventory that names it.

    A whole folder is shared with other processes where the cache has room, and a single file is fetched alone unless
    its folder is there already. Raises InputError where what came is not what was written.
    """
    found = find(root, path)
    if found is None:
        return None
    entries = found.entries()
    if inside in entries and not (_cache() / found.key).is_dir():
        return _alone(found, inside, entries)
    if inside and inside not in entries and not any(name.startswith(f"{inside}/") for name in entries):
        return None
    return (_shared(found) or _complete(found, temporary())) / inside


def temporary() -> Path:
    """A new folder that this process removes when it ends."""
    folder = tempfile.mkdtemp(prefix="segpipe-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def without(root: str, left_out: str) -> Path:
    """A copy of all that lies below an artifact URI but one folder, removed when this process ends."""
    folder = temporary()
    _copied(get_artifact_repository(root), "", left_out, folder)
    return folder


def _copied(repository: ArtifactRepository, path: str, left_out: str, into: Path) -> None:
    for item in repository.list_artifacts(path):
        if left_out.startswith(f"{item.path}/"):
            _copied(repository, item.path, left_out, into)
        elif item.path != left_out:
            repository.download_artifacts(item.path, str(into))


def _alone(found: Folder, name: str, entries: Inventory) -> Path:
    path = Path(get_artifact_repository(found.root).download_artifacts(f"{found.path}/{name}", str(temporary())))
    if hashes.of([path], path.parent)[path] != entries[name].sha256:
        raise _refused(found, f"{name} is not what was written")
    return path


def _complete(found: Folder, into: Path) -> Path:
    """Fetch a folder below `into`, with exactly what its inventory names, and check every file."""
    folder = Path(get_artifact_repository(found.root).download_artifacts(found.path, str(into)))
    named = set(found.entries())
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in named:
            path.unlink()
    (folder / FILE).write_bytes(found.content)
    if damage := inventory.damage(folder, PurePosixPath(found.path).name):
        raise _refused(found, damage)
    return folder


def _refused(found: Folder, damage: str) -> InputError:
    return InputError(f"{found.where}: {damage}, as fetched; try again, and if that stays run the step again")


def _shared(found: Folder) -> Path | None:
    """A folder in the cache, fetched by one process while others wait, and held until this one ends. None where the
    cache has no room, or its copy is damaged or gone while others use it.
    """
    target = _cache() / found.key
    if found.key in _held and not inventory.damage(target):
        return target
    lock = _opened(target.with_suffix(".lock"))
    try:
        for _ in range(LOOKS):
            fcntl.flock(lock, fcntl.LOCK_SH)
            there = target.is_dir()
            if there and not inventory.damage(target):
                os.utime(lock)
                _held[found.key] = lock
                return target
            if _alone_with(lock):
                there = target.is_dir() and not inventory.damage(target)
                if not there and not _fill(target, found):
                    return None
            elif there:
                return None
            else:
                time.sleep(PAUSE)
        return None
    finally:
        if _held.get(found.key) != lock:
            os.close(lock)


def _alone_with(lock: int) -> bool:
    """Lock alone what was shared, unless somebody else has it; then it is not locked at all any more."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fill(target: Path, found: Folder) -> bool:
    """Fetch a folder into the cache, and make it visible in one go; whether there was room."""
    partial = target.with_suffix(".partial")
    if not _reserved(target, found):
        return False
    try:
        folder = _complete(found, partial)
        folder.rename(target)
        hashes.moved(folder, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _reserved(target: Path, found: Folder) -> bool:
    """Make room for a folder: from now on its size counts. Whether there is enough."""
    needed, partial = sum(written.size for written in found.entries().values()), target.with_suffix(".partial")
    with _one_at_a_time():
        _remove(target)
        if not _room(needed):
            return False
        partial.mkdir()
        (partial / RESERVED).write_text(str(needed), encoding="ascii")
    return True


def _room(needed: int) -> bool:
    """Remove the longest unused folders that nobody holds until so many bytes fit; whether they do."""
    free = _limit() - needed
    locks = sorted(_cache().glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    sizes = {lock: _size(lock) for lock in locks}
    for lock in locks if free >= 0 else []:
        if sum(sizes.values()) > free and sizes[lock] and _evicted(lock):
            sizes[lock] = 0
    return sum(sizes.values()) <= free


def _size(lock: Path) -> int:
    """The bytes that a folder has, or will have once it is fetched."""
    target, partial = lock.with_suffix(""), lock.with_suffix(".partial")
    if target.is_dir():
        return _bytes(target)
    try:
        reserved = int((partial / RESERVED).read_text(encoding="ascii") or "0")
    except FileNotFoundError:
        reserved = 0
    return max(reserved, _bytes(partial))


def _bytes(folder: Path) -> int:
    """What the files of a folder take, which others may be moving or removing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _evicted(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR)
    try:
        if free := _alone_with(lock):
            _remove(path.with_suffix(""))
        return free
    finally:
        os.close(lock)


def _remove(target: Path) -> None:
    """Remove a folder from the cache, and what is left of a fetch; it is out of sight before it is incomplete."""
    partial = target.with_suffix(".partial")
    if partial.exists():
        shutil.rmtree(partial)
    if target.exists():
        target.rename(partial)
        shutil.rmtree(partial)


def _limit() -> float:
    given = os.environ.get("SEGPIPE_CACHE_GB", LIMIT)
    try:
        return float(given) * GB
    except ValueError:
        raise InputError(f"SEGPIPE_CACHE_GB={given}: not a number; give GB (10^9 bytes), such as {LIMIT}") from None


def _cache() -> Path:
    return hashes.cache_folder() / "artifacts"


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}; set SEGPIPE_CACHE to a folder for the cache") from None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    lock = _opened(_cache() / "room")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
