"""Training runs without MLflow: the same tree of files under `outputs/<run name>/`."""

import json
import shutil
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import SegpipeError, one_line, redact
from segpipe.files import project
from segpipe.files.staging import staged

if TYPE_CHECKING:
    from segpipe.inference.predictor import Predictor

RUN, RESUME = "run.json", "resume"


def outputs(named: str) -> Path:
    """The folder for checkpoints, unsent records and runs without MLflow; `named` is tracking.outputs."""
    return Path(named or project.home() / "outputs")


def unsent(named: str, run_id: str) -> Path:
    """The folder of the records that a training has not sent yet; `named` is its tracking.outputs."""
    return outputs(named) / "spool" / run_id


def new_folder(outputs: Path, name: str) -> Path:
    """Make the folder of a new run: the first of `name`, `name_2`, `name_3`... that nobody has."""
    root, number = outputs / name, 1
    while True:
        try:
            root.mkdir(parents=True)
            return root
        except FileExistsError:
            number += 1
            root = outputs / f"{name}_{number}"


class FolderRecorder:
    """Records a training in a folder: the tree, and params.json, tags.json, metrics.jsonl, sites.jsonl, run.json."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def params(self, values: dict[str, str]) -> None:
        self._update("params.json", values)

    def tags(self, values: dict[str, str]) -> None:
        self._update("tags.json", values)

    def metrics(self, values: dict[str, float], step: int, ended_ms: int, site: str = "") -> None:
        path, told = self.root / ("sites.jsonl" if site else "metrics.jsonl"), {"site": site} if site else {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        own = [line for line in map(json.loads, lines) if line.get("site", "") == site]
        if own and own[-1]["epoch"] >= step:
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**told, "epoch": step, "ended_ms": ended_ms, **values}) + "\n")

    def files(self) -> AbstractContextManager[Path]:
        return staged(self.root)

    def discard(self, path: str) -> None:
        shutil.rmtree(self.root / path, ignore_errors=True)

    def model(self, predictor: "Predictor", values: dict[str, float], ended_ms: int) -> None:
        with self.files() as folder:
            predictor.save(folder / "model")
        self._update("metrics.json", {**values, "ended_ms": ended_ms})

    @contextmanager
    def status(self, key: str) -> Iterator[None]:
        """Write to run.json how the work in the block ended, and why."""
        self._update(RUN, {"key": key, "status": "RUNNING", "reason": ""})
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._update(RUN, {"status": "KILLED", "reason": "interrupted"})
            raise
        except BaseException as error:
            if not isinstance(error, SegpipeError):
                with self.files() as folder:
                    (folder / "traceback.txt").write_text(redact(traceback.format_exc()), encoding="utf-8")
            self._update(RUN, {"status": "FAILED", "reason": one_line(error)})
            raise
        self._update(RUN, {"status": "FINISHED"})

    def _update(self, name: str, values: dict[str, Any]) -> None:
        with self.files() as folder:
            (folder / name).write_text(json.dumps(read(self.root / name) | values, indent=1), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def unfinished(folder: Path, key: str) -> list[Path]:
    """Runs with that key that have not finished, the newest first."""
    runs = [path.parent for path in folder.glob(f"*/{RUN}")]
    mine = [run for run in runs if (known := read(run / RUN))["key"] == key and known["status"] != "FINISHED"]
    return sorted(mine, key=lambda run: (run / RUN).stat().st_mtime, reverse=True)
