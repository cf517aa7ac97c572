"""What a step writes to stderr is kept with its run as well, as it would be read on a terminal at the end."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from segpipe.errors import one_line, redact
from segpipe.recording import offline
from segpipe.tracking import artifacts, connection, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

ARTIFACT = "logs/step.log"
LARGEST = 1_000_000  # bytes of a log that are kept: its last ones
TAIL = 10  # lines that are shown where a step fails
REDRAW = re.compile(r"\r|\x1b\[2K")
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.|[\x00-\x08\x0b-\x1f\x7f]")

Say = Callable[[str], None]


class Log:
    """A file of whole lines without control codes and passwords. What prevents writing it ends it, and is noted."""

    def __init__(self, path: Path) -> None:
        self.path, self.line, self.refused = path, "", ""
        self.file: IO[bytes] | None = None
        self.lock = threading.RLock()  # a signal's handler may write while its thread does

    def write(self, text: str) -> None:
        """Add text; of a line that is drawn again the last one counts."""
        with self.lock:
            *lines, rest = (self.line + text).split("\n")
            self.line = rest[max(0, rest.rfind("\r", 0, -1)) :]
            self._add("".join(f"{shown}\n" for line in lines if (shown := readable(line)) or not line))

    def _add(self, lines: str) -> None:
        if self.refused or not lines:
            return
        try:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("ab", buffering=0)
            self.file.write(redact(lines).encode(errors="replace"))
            if self.file.tell() > 2 * LARGEST:
                kept = _last(self.path)
                self.file.truncate(0)
                self.file.write(kept)
        except OSError as error:
            self.refused = one_line(error)

    def text(self) -> str:
        """All of it, or the last MB."""
        with self.lock:
            if self.line:
                self.write("\n")
            return _last(self.path).decode() if self.path.is_file() else ""

    def follow(self, run_id: str) -> None:
        """Go on in the log of a run that is continued."""
        self.move(self.path.with_name(f"{run_id}.log"), _stored(run_id))

    def move(self, path: Path, before: str) -> None:
        """Go on in another file: after what that has, or where it is not there after the text `before`."""
        with self.lock:
            mine = self.text()
            self.close()
            self.path.unlink(missing_ok=True)
            self.path = path
            self._add(mine if path.is_file() else before + mine)

    def close(self) -> None:
        """Let go of the file, which stays."""
        with self.lock:
            if self.file:
                self.file.close()
            self.file = None


class Tee:
    """stderr, which a log gets as well; inside of another one it takes its place."""

    def __init__(self, shown: TextIO, log: Log) -> None:
        self.shown, self.log = shown, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)

    def write(self, text: str) -> int:
        """Write to both."""
        self.log.write(text)
        return self.shown.write(text)


def readable(line: str) -> str:
    """A line as it stays on a terminal: what was drawn last, without colours."""
    return CONTROL.sub("", REDRAW.split(line.rstrip("\r"))[-1])


def _last(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LARGEST))
        kept = file.read()
    return kept if size <= LARGEST else kept[kept.find(b"\n") + 1 :]


def path(named: str, run_id: str) -> Path:
    """Where the log of a run is while the run is at work; `named` is its tracking.outputs."""
    return offline.outputs(named) / "logs" / f"{run_id}.log"


@contextmanager
def keeping(name: str, outputs: str, say: Say) -> Iterator[Log]:
    """Keep what the block writes to stderr, and why it was left, as an artifact of the active run, whatever comes of
    it. A process that is killed leaves the file. `outputs` is tracking.outputs.
    """
    with joining(outputs, runs.active().info.run_id) as log:
        try:
            yield log
        except BaseException as error:
            log.write(f"segpipe {name}: {connection.reason(error)}\n")
            connection.hurry_after(error)
            raise
        finally:
            _store(log, say)


@contextmanager
def joining(outputs: str, run_id: str) -> Iterator[Log]:
    """Add what the block writes to stderr to the log of a run, which may be another process's."""
    log, before = Log(path(outputs, run_id)), sys.stderr
    tee = cast(TextIO, Tee(getattr(before, "shown", before), log))
    sys.stderr = tee
    try:
        yield log
    finally:
        if sys.stderr is tee:
            sys.stderr = before
        log.close()


def _store(log: Log, say: Say) -> None:
    """Hand a log over to the active run. A step's result does not depend on it."""
    try:
        if text := log.text():
            runs.log_text(text, ARTIFACT)
        log.path.unlink(missing_ok=True)
    except Exception as error:
        say(f"(log not stored with the run, it stays in {log.path}: {connection.told(error)})")
    if log.refused:
        say(f"(log not kept from here on: {log.refused})")


def tail(run: "Run") -> list[str]:
    """The last lines of a run's log: of the file that a killed process left on this machine, else of the artifact."""
    left = path(run.data.params.get("cfg.tracking.outputs", ""), run.info.run_id)
    text = _last(left).decode() if left.is_file() else _stored(run.info.run_id)
    return text.splitlines()[-TAIL:]


def _stored(run_id: str) -> str:
    if not artifacts.has(run_id, ARTIFACT):
        return ""
    return artifacts.local(f"runs:/{run_id}/{ARTIFACT}").read_text(encoding="utf-8")
