"""The log of a run: what its step writes to stderr, as a terminal shows it in the end."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from segpipe.errors import one_line, redact
from segpipe.recording import offline
from segpipe.tracking import artifacts, connection, runs
from segpipe.tracking.connection import Sender, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

ARTIFACT = "logs/step.log"
LARGEST = 1_000_000  # bytes of a log that are kept: its last ones
TAIL = 10  # lines that are shown where a step fails
REDRAW = re.compile(r"\r|\x1b\[2K")
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.|[\x00-\x08\x0b-\x1f\x7f]")

Say = Callable[[str], None]


class Log:
    """A file of whole lines without control codes and passwords. An error in writing ends it; `refused` says which."""

    def __init__(self, path: Path) -> None:
        self.path, self.line, self.refused = path, "", ""
        self.lock = threading.RLock()  # a signal's handler may write while its thread does

    def write(self, text: str) -> None:
        """Add text; of a line that is drawn several times, such as a bar, the last version is kept."""
        with self.lock:
            *lines, rest = (self.line + text).split("\n")
            self.line = rest[max(0, rest.rfind("\r", 0, -1)) :]
            self._add("".join(f"{shown}\n" for line in lines if (shown := _readable(line)) or not line))

    def _add(self, lines: str) -> None:
        if self.refused or not lines:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(redact(lines).encode(errors="replace"))
                if file.tell() > 2 * LARGEST:
                    kept = _last(self.path)
                    file.truncate(0)
                    file.write(kept)
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
        """Go on in another file, after what is in it; one that is not there begins with the text `before`."""
        with self.lock:
            mine = self.text()
            self.path.unlink(missing_ok=True)
            self.path = path
            self._add(mine if path.is_file() else before + mine)


class Tee:
    """Writes to stderr and to a log."""

    def __init__(self, shown: TextIO, log: Log) -> None:
        self.shown, self.log = shown, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)

    def write(self, text: str) -> int:
        self.log.write(text)
        return self.shown.write(text)


def _readable(line: str) -> str:
    """A line as it stays on a terminal: what was drawn last, without colours."""
    return CONTROL.sub("", REDRAW.split(line.rstrip("\r"))[-1])


def _last(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LARGEST))
        kept = file.read()
    return kept if size <= LARGEST else kept[kept.find(b"\n") + 1 :]


def path(named: str, run_id: str) -> Path:
    """Where the log of a run is while its step is at work; `named` is its tracking.outputs."""
    return offline.outputs(named) / "logs" / f"{run_id}.log"


@contextmanager
def keeping(name: str, outputs: str, say: Say, store: Store) -> Iterator[Log]:
    """Log what the block writes to stderr, and the error that ends it, as an artifact of the active run. A process that
    is killed leaves the file. `outputs` is tracking.outputs.
    """
    with joining(outputs, runs.active().info.run_id) as log:
        try:
            yield log
        except BaseException as error:
            log.write(f"segpipe {name}: {connection.reason(error)}\n")
            store.hurry_after(error)
            raise
        finally:
            _hand_over(log, say, store.sender)


@contextmanager
def joining(outputs: str, run_id: str) -> Iterator[Log]:
    """Add what the block writes to stderr to the log of a run, which may be another process's; inside another such
    block the inner log gets it alone.
    """
    log = Log(path(outputs, run_id))
    with redirect_stderr(cast(TextIO, Tee(getattr(sys.stderr, "shown", sys.stderr), log))):
        yield log


def _hand_over(log: Log, say: Say, sender: Sender | None) -> None:
    """Store a log with the active run. Where that fails, the step's result stands."""
    try:
        if text := log.text():
            runs.log_text(text, ARTIFACT, sender)
        log.path.unlink(missing_ok=True)
    except Exception as error:
        say(f"(log not stored with the run, it stays in {log.path}: {connection.explain(error)})")
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
