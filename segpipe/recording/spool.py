"""Send what a training records to its MLflow run, in order; what can't be sent yet waits on disk.

A record is one file `NNNNNNNN.json`, with a folder of the same number where it brings files. Metrics carry their own
time, so the server takes a repeated one for what it is, and nothing is lost or doubled by a retry.
"""

import fcntl
import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from segpipe.errors import InputError, StoreError, one_line
from segpipe.files.staging import staged
from segpipe.recording import logged_models
from segpipe.serving.served_model import ARTIFACT
from segpipe.tracking import artifacts, connection, locations, runs

if TYPE_CHECKING:
    from segpipe.inference.predictor import Predictor

AGAIN_SECONDS, LAST_WAIT_SECONDS = 5.0, 20.0


class Spool:
    """A recorder (see `artifact_tree.Recorder`) for one MLflow run. Files go straight into a store on this machine."""

    def __init__(self, run_id: str, folder: Path, warn: Callable[[str], None]) -> None:
        self.run_id, self.folder, self.warn = run_id, folder, warn
        self.root = locations.local_root(MlflowClient().get_run(run_id).info.artifact_uri)
        self.away, self.tried, self.refused = False, 0.0, ""
        self.sites: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.number = 0
        for path in folder.iterdir():
            if path.is_dir() and not path.with_suffix(".json").is_file():
                shutil.rmtree(path)

    def pending(self) -> list[Path]:
        """Records not yet sent, oldest first."""
        return _records(self.folder)

    def _next(self) -> int:
        return max([self.number, *(int(path.stem) for path in self.pending())]) + 1

    def params(self, values: dict[str, str]) -> None:
        self._put({"kind": "params", "values": values})

    def tags(self, values: dict[str, str]) -> None:
        self._put({"kind": "tags", "values": values})

    def metrics(self, values: dict[str, float], step: int, ended_ms: int, site: str = "") -> None:
        self._put({"kind": "metrics", "values": values, "step": step, "ended_ms": ended_ms, "site": site})

    def files(self) -> AbstractContextManager[Path]:
        return self._attaching({"kind": "files"}) if self.root is None else staged(self.root)

    def discard(self, path: str) -> None:
        self._put({"kind": "discard", "path": path})

    def model(self, predictor: "Predictor", values: dict[str, float], ended_ms: int) -> None:
        with self._attaching({"kind": "model", "values": values, "ended_ms": ended_ms}) as folder:
            predictor.save(folder / ARTIFACT)

    def end(self, status: str, tags: dict[str, str]) -> bool:
        """Send the run's last record, waiting a while for a server that is away; whether all has been sent.

        Raises StoreError where the server is there and refuses a record of a run that did not fail otherwise.
        """
        self._put({"kind": "end", "status": status, "tags": tags, "ended_ms": round(time.time() * 1000)})
        until = time.monotonic() + (LAST_WAIT_SECONDS if status == "FINISHED" else AGAIN_SECONDS)
        while self.pending() and time.monotonic() < until:
            time.sleep(1)
            self.send()
        if self.pending() and self.refused and status == "FINISHED":
            raise StoreError(f"a record was refused: {self.refused}; all that wait are in {self.folder}")
        if self.pending():
            self.warn(
                f"{len(self.pending())} records could not be sent; when the server is back: "
                f"python -m steps.send {shlex.quote(str(self.folder))}"
            )
            return False
        shutil.rmtree(self.folder)
        return True

    @contextmanager
    def _attaching(self, record: dict[str, Any]) -> Iterator[Path]:
        """A folder that belongs to the next record, which is put when the block ends well."""
        with staged(self.folder) as staging:
            yield staging / f"{self._next():08d}"
        self._put(record)

    def _put(self, record: dict[str, Any]) -> None:
        self.number = self._next()
        with staged(self.folder) as staging:
            (staging / f"{self.number:08d}.json").write_text(json.dumps(record), encoding="utf-8")
        if not self.away or time.monotonic() - self.tried > AGAIN_SECONDS:
            self.send()

    def send(self) -> None:
        """Send the records that wait, as far as the server takes them."""
        self.tried = time.monotonic()
        if self.away and not _listening(mlflow.get_tracking_uri()):
            return
        for path in self.pending():
            try:
                self._deliver(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(""))
            except Exception as error:  # whatever a client of MLflow raises; the record stays
                self.refused = "" if connection.passing(error) else one_line(error)
                if not self.away:
                    self.warn(f"tracking server does not take records ({one_line(error)}); training goes on, they wait")
                self.away, self.tried = True, time.monotonic()
                return
            path.unlink()
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        if self.away:
            self.away = False
            self.warn("tracking server is back; all records sent")

    def _deliver(self, record: dict[str, Any], folder: Path) -> None:
        client = MlflowClient()
        match record["kind"]:
            case "params":
                runs.log_params(self.run_id, record["values"])
            case "tags":
                client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in record["values"].items()])
            case "metrics":
                step, at = record["step"], record["ended_ms"]
                site = record.get("site", "")  # a spool of segpipe 0.8 has none
                run_id = self._of_site(site) if site else self.run_id
                client.log_batch(run_id, [Metric(k, v, at, step) for k, v in record["values"].items()])
            case "files":
                client.log_artifacts(self.run_id, str(folder))
            case "discard":
                artifacts.discard(self.run_id, record["path"])
            case "model":
                with runs.within(self.run_id):
                    model_id = logged_models.log(folder / ARTIFACT)
                # As they were sent before, if they were: an interrupted training measures its times once more, and
                # MLflow logs no further model of a run that has two values of a metric at one moment.
                known = client.get_run(self.run_id).data.metrics
                values, at = {k: known.get(k, v) for k, v in record["values"].items()}, record["ended_ms"]
                client.log_batch(self.run_id, [Metric(k, v, at, 0, model_id=model_id) for k, v in values.items()])
            case "end":
                client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in record["tags"].items()])
                client.set_terminated(self.run_id, record["status"], record["ended_ms"])

    def _of_site(self, site: str) -> str:
        if site not in self.sites:
            self.sites[site] = runs.of_site(self.run_id, site)
        return self.sites[site]


def _listening(uri: str) -> bool:
    """Whether something accepts connections at a server's port; true for a store that is no server."""
    parts = urlparse(uri)
    if not parts.scheme.startswith("http"):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=2):
            return True
    except OSError:
        return False


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))


def ended(folder: Path) -> bool:
    """Whether the last record of a kept spool is the training's end; false where another process has sent it."""
    try:
        return any(json.loads(path.read_text(encoding="utf-8"))["kind"] == "end" for path in _records(folder)[-1:])
    except FileNotFoundError:
        return False


def send(folder: Path, warn: Callable[[str], None]) -> int:
    """Send a spool that was kept; the number of its records. Raises InputError where there is none, StoreError where it
    can't all be sent.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such spool; nothing to send, or sent already")
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no other process sends the same records
        spool = Spool(folder.name, folder, warn)
        count = len(spool.pending())
        spool.send()
        if spool.pending():
            raise StoreError(f"{folder}: {len(spool.pending())} of {count} records not sent; try again later")
        shutil.rmtree(folder)
        return count
    finally:
        os.close(lock)
