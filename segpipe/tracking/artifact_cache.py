"""Artifacts from a server: whole folders once, into a cache by content that processes share, where they stay until the
user removes them; what has no inventory into a folder of this process's own.

    CACHE/artifacts/KEY/        a folder, complete and checked; KEY is the SHA-256 of its inventory
    CACHE/artifacts/KEY.partial what is being fetched, or was when its process died
    CACHE/artifacts/KEY.lock    locked by the process that fetches the folder
"""

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from segpipe.errors import InputError, redact
from segpipe.files import hashes, inventory
from segpipe.files.inventory import FILE, Inventory


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
    if not any(item.path == f"{path}/{FILE}" for item in repository.list_artifacts(path)):
        return None
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        content = Path(repository.download_artifacts(f"{path}/{FILE}", temporary)).read_bytes()
    return Folder(root, path, content)


def damage(root: str, path: str) -> str:
    """What is wrong with a folder by the store's own listing of names and sizes, in words; empty where nothing is. A
    size that the store does not tell counts as right.
    """
    found, called = find(root, path), PurePosixPath(path).name
    if found is None:
        return f"{called}/{FILE} is missing"
    try:
        entries = found.entries()
    except InputError:
        return f"{called}/{FILE} is not what was written"
    repository, sizes = get_artifact_repository(root), {}
    for inner in {PurePosixPath(path, name).parent for name in entries}:
        for item in repository.list_artifacts(str(inner)):
            if (name := item.path.removeprefix(f"{path}/")) in entries:
                sizes[name] = entries[name].size if item.file_size is None else item.file_size
    return inventory.missized(sizes, entries, called)


def local(root: str, path: str, inside: str = "") -> Path | None:
    """A local path to the folder `path` below an artifact URI, or to what lies `inside` it; None where the folder has
    no inventory that names it.

    A whole folder is shared with other processes; a single file is fetched alone unless its folder is there already.
    Raises InputError where what came is not what was written.
    """
    found = find(root, path)
    if found is None:
        return None
    entries = found.entries()
    if inside in entries and not (_cache() / found.key).is_dir():
        return _fetch_file(found, inside, entries)
    if inside and inside not in entries and not any(name.startswith(f"{inside}/") for name in entries):
        return None
    return _share(found) / inside


def temporary() -> Path:
    """A new folder that this process removes when it ends."""
    folder = tempfile.mkdtemp(prefix="segpipe-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def copy_without(root: str, left_out: str) -> Path:
    """A copy of all that lies below an artifact URI but one folder, removed when this process ends."""
    repository, folder, waiting = get_artifact_repository(root), temporary(), [""]
    while waiting:
        for item in repository.list_artifacts(waiting.pop()):
            if left_out.startswith(f"{item.path}/"):
                waiting.append(item.path)
            elif item.path != left_out:
                repository.download_artifacts(item.path, str(folder))
    return folder


def _fetch_file(found: Folder, name: str, entries: Inventory) -> Path:
    path = Path(get_artifact_repository(found.root).download_artifacts(f"{found.path}/{name}", str(temporary())))
    if hashes.of([path], path.parent)[path] != entries[name].sha256:
        raise _spoilt(found, f"{name} is not what was written")
    return path


def _fetch(found: Folder, into: Path) -> Path:
    """Fetch a folder below `into`, with exactly what its inventory names, and check every file."""
    folder = Path(get_artifact_repository(found.root).download_artifacts(found.path, str(into)))
    named = set(found.entries())
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in named:
            path.unlink()
    (folder / FILE).write_bytes(found.content)
    if damage := inventory.damage(folder, PurePosixPath(found.path).name):
        raise _spoilt(found, damage)
    return folder


def _spoilt(found: Folder, damage: str) -> InputError:
    return InputError(f"{found.where}: {damage}, as fetched; try again, and if that stays run the step again")


def _share(found: Folder) -> Path:
    """A folder in the cache, fetched by one process while others wait. Replacing a damaged copy closes no open file."""
    target = _cache() / found.key
    if inventory.damage(target):
        with _locked(target.with_suffix(".lock")):
            if inventory.damage(target):
                _replace(target, found)
    return target


def _replace(target: Path, found: Folder) -> None:
    """Fetch a folder into the cache, and make it visible in one go, once it is complete."""
    partial = target.with_suffix(".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        folder = _fetch(found, partial)
        if target.exists():
            target.rename(partial / target.name)
        folder.rename(target)
        hashes.carry_over(folder, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cache() -> Path:
    return hashes.cache_folder() / "artifacts"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock alone; it ends with the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}; set SEGPIPE_CACHE to a folder for the cache") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
