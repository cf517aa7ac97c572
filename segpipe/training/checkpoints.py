"""The state of a training on disk: written atomically, checked when read.

A file is one line (format and SHA-256 of the rest), then what `torch.save` wrote; it is read with `weights_only`.
"""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segpipe.errors import InputError, one_line

FORMAT = 1
MAGIC = f"segpipe checkpoint {FORMAT} "
KEPT = 2


class Checkpoints:
    """The checkpoints of one training in a folder of their own, the newest two kept.

    `key` identifies config, code and data: a checkpoint with another one is not used.
    """

    def __init__(self, folder: Path, key: str, warn: Callable[[str], None]) -> None:
        self.folder, self.key, self.warn = folder, key, warn

    def save(self, epoch: int, batch: int, state: dict[str, Any]) -> None:
        """Write `state`, reached after `batch` batches of `epoch`; a kill at any moment leaves a whole file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({**state, "epoch": epoch, "batch": batch, "key": self.key}, buffer)
        content = buffer.getbuffer()
        path = self.folder / f"epoch_{epoch:06d}_batch_{batch:08d}.ckpt"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(f"{MAGIC}{hashlib.sha256(content).hexdigest()}\n".encode())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the renaming durable
        finally:
            os.close(folder)
        for old in self.paths()[KEPT:]:
            old.unlink()

    def paths(self) -> list[Path]:
        """The files there are, newest first."""
        return sorted(self.folder.glob("epoch_*.ckpt"), reverse=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint with the right key; `warn` gets the reason for each that is refused."""
        for path in self.paths():
            try:
                return self._read(path)
            except InputError as error:
                self.warn(str(error))
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        head, _, content = path.read_bytes().partition(b"\n")
        if not head.startswith(MAGIC.encode()):
            raise InputError(f"{path}: not a checkpoint of format {FORMAT}; not used")
        if hashlib.sha256(content).hexdigest() != head.decode().removeprefix(MAGIC):
            raise InputError(f"{path}: damaged or cut short; not used")
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpickler raises for a file of another program
            raise InputError(f"{path}: unreadable ({one_line(error)}); not used") from None
        if state["key"] != self.key:
            raise InputError(f"{path}: of another config, code or dataset; not used")
        return state
