"""A chain in a store of its own, started as a user starts it; what disturbs it, and what it leaves."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import psutil
import pytest
from conftest import TIMES, TINY, write_folder
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from segpipe.files.project import PROJECT

STEPS = ("preprocess", "train", "evaluate", "register")
MODEL = "faults"
KNOBS = (*TINY, "--train.epochs=8", "--data.format=folder", f"--registry.model_name={MODEL}")
GONE_SECONDS = 10.0
MARKER = "SEGPIPE_CACHE"  # in the environment of all that a chain starts, and of nothing else


class Driver:
    """A `python pipeline.py` in a session of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "pipeline.py", *arguments],
                cwd=PROJECT,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def shown(self) -> str:
        """All that it has written."""
        return self.log.read_text(encoding="utf-8")

    def told(self) -> str:
        """The last line it has written."""
        return self.shown().rstrip().rpartition("\n")[2]

    def end(self, seconds: float = 300) -> int:
        """Wait for its end; the exit code as a shell tells it."""
        code = self.process.wait(timeout=seconds)
        return code if code >= 0 else 128 - code

    def until(self, condition: Callable[[], Any], seconds: float = 180) -> Any:
        """Wait until something is so while it is at work; what the condition gave."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.shown()
            assert time.monotonic() < end, self.shown()
            time.sleep(0.05)
        return found

    def step(self, name: str = "") -> psutil.Process | None:
        """The Python process of the step under way."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return next((process for process in below if name_of(process).endswith(name) and name_of(process)), None)


def name_of(process: psutil.Process) -> str:
    """Which step a process is; empty for none."""
    try:
        words = process.cmdline()
    except psutil.Error:  # it has just ended
        return ""
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module.removeprefix("steps.") if module.startswith("steps.") else ""


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except psutil.Error:  # it has just ended, or is none of ours
        return {}


@dataclass(frozen=True)
class Chain:
    """The steps on eight pictures; whatever they write is below `home`, but for what they say, which is in `logs`."""

    home: Path
    logs: Path
    uri: str
    knobs: tuple[str, ...] = KNOBS
    extra: dict[str, str] = field(default_factory=dict)
    drivers: list[Driver] = field(default_factory=list)

    @property
    def outputs(self) -> Path:
        return self.home / "out puts"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SEGPIPE_"))}
        ours = {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_DISABLE_TELEMETRY": "true", MARKER: str(self.home / "cache")}
        return inherited | ours | self.extra

    def start(self, *more: str) -> Driver:
        """Start the driver; `more` are further arguments."""
        where = [f"--data.root={self.home / 'raw data'}", f"--tracking.outputs={self.outputs}"]
        return self.start_command(*more, *where, *self.knobs)

    def start_command(self, *arguments: str) -> Driver:
        """Start the driver with these arguments alone."""
        self.drivers.append(Driver([*arguments], self.environment, self.logs / str(len(self.drivers))))
        return self.drivers[-1]

    def finish(self, *more: str) -> str:
        """Run the driver to its good end; what it has written."""
        driver = self.start(*more)
        assert driver.end() == 0, driver.shown()
        return driver.shown()

    def at_work(self) -> list[psutil.Process]:
        """Every process of this chain that is alive, whoever its parent is now."""
        ours = self.environment[MARKER]
        return [process for process in psutil.process_iter() if _environment(process).get(MARKER) == ours]

    def seconds_until_gone(self, allowed: float = GONE_SECONDS) -> float:
        """Wait until no process of the chain is left."""
        began = time.monotonic()
        while left := self.at_work():
            assert time.monotonic() - began < allowed, [process.cmdline() for process in left]
            time.sleep(0.1)
        return time.monotonic() - began

    def kill(self) -> None:
        """End whatever is left."""
        for process in self.at_work():
            process.kill()
        for driver in self.drivers:
            driver.process.wait()

    def checkpoints(self) -> list[Path]:
        """The files of an interrupted or working training."""
        return list((self.outputs / "checkpoints").glob("*/*.ckpt"))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self, step: str = "", status: str = "") -> list[Run]:
        """All runs, also deleted ones, newest first; those of a step, or in one state; none before there is a store."""
        if self.uri.startswith("sqlite") and not (self.home / "mlflow.db").is_file():
            return []
        experiments = [e.experiment_id for e in self.client.search_experiments(ViewType.ALL)]
        found = self.client.search_runs(experiments, run_view_type=ViewType.ALL, order_by=["start_time DESC"])
        ours = (run for run in found if not step or run.data.tags.get("segpipe.step", run.info.run_name) == step)
        return [run for run in ours if not status or run.info.status == status]

    def running(self) -> list[str]:
        """The runs that are open, by step."""
        return [run.data.tags.get("segpipe.step", run.info.run_name) for run in self.runs(status="RUNNING")]

    def made(self, step: str) -> Run:
        """The newest run of a step that did its work."""
        return self.runs(step, "FINISHED")[0]

    def artifacts(self, step: str) -> Path:
        """Where the artifacts of a step's newest finished run lie, in a store on this machine."""
        return Path(unquote(urlparse(self.made(step).info.artifact_uri).path))


@dataclass(frozen=True)
class Results:
    """What is the same for two chains of one config, data and code."""

    weights: str
    cases: str
    test: dict[str, float]
    epochs: dict[str, list[tuple[int, float]]]
    champions: list[tuple[str, str]]
    aliases: dict[str, str]


def results(chain: Chain) -> Results:
    """The weights' and the table's digests, metrics of test and training, and the registry."""
    client, train, evaluate = chain.client, chain.made("train"), chain.made("evaluate")
    names = [name for name in train.data.metrics if name not in TIMES]
    history = {name: client.get_metric_history(train.info.run_id, name) for name in names}
    versions = client.search_model_versions(f"name = '{MODEL}'")
    tags = [client.get_model_version(MODEL, version.version).tags for version in versions]
    aliases = client.get_registered_model(MODEL).aliases
    return Results(
        weights=evaluate.data.tags["segpipe.weights_sha256"],
        cases=evaluate.data.tags["segpipe.cases_sha256"],
        test={name: value for name, value in evaluate.data.metrics.items() if name.startswith("test_")},
        epochs={name: [(point.step, point.value) for point in points] for name, points in history.items()},
        champions=[(each["decision"], each["weights_sha256"]) for each in tags],
        aliases={alias: str(version) for alias, version in aliases.items()},
    )


def check_whole(chain: Chain, expected: Results, cache_folder: Path) -> None:
    """A chain that was disturbed and has ended is as one that never was, and nothing half done lies about."""
    from segpipe.files import inventory
    from segpipe.orchestration.step_table import STEPS

    found = results(chain)
    assert found == expected
    assert (found.champions, found.aliases) == ([("promoted", found.weights)], {"champion": "1"})
    assert chain.running() == []
    assert list(chain.home.rglob("*partial*")) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARKER, str(cache_folder))
        for step in STEPS:
            assert inventory.damage(chain.artifacts(step) / STEPS[step].output) == ""


def new_chain(folder: Path, uri: str = "", **how: Any) -> Chain:
    """A chain in an empty folder; without a server's URI on sqlite there."""
    home, logs = folder / "home", folder / "logs"
    write_folder(home / "raw data", cases=8)
    logs.mkdir()
    return Chain(home, logs, uri or f"sqlite:///{home / 'mlflow.db'}", **how)


@cache
def _undisturbed(folder: Path) -> tuple[Chain, Results]:
    folder.mkdir()
    chain = new_chain(folder)
    chain.finish("--in-process")
    return chain, results(chain)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, Results]:
    """A chain in one process that nothing disturbed, once for all tests that ask, and its results."""
    return _undisturbed(tmp_path_factory.getbasetemp() / "undisturbed")


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """A chain that has not begun; whatever is left of it is killed."""
    made = new_chain(tmp_path)
    yield made
    made.kill()


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """A small disk at a folder. Skips the test where nothing can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a small disk has to be mounted: that takes root and `mount`")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted disk: its size, or whether it can be written."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
