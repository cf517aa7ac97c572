"""The models and servers of benchmarks.serving: logged into a store of their own, each served by a real process."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from torch import Tensor, nn
from torch.nn import functional

from segpipe.files.project import PROJECT
from segpipe.inference.predictor import Predictor
from segpipe.recording import logged_models
from segpipe.serving import served_model
from segpipe.tracking import connection, experiments

NAME = "served"
PATIENCE = 300  # seconds that a server may take to answer


class Server(NamedTuple):
    """What answers at a port: the process that was started and the one that works; seconds until it answered, and the
    anonymous MiB that the worker held then.
    """

    port: int
    leader: int
    worker: int
    seconds: float
    memory: float


class Resizing(nn.Module):
    """The network behind the size of the pictures, so that it has the same work to do as in ours."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        scaled = functional.interpolate(images, self.size, mode="bilinear")
        return functional.interpolate(self.network(scaled).sigmoid(), images.shape[-2:], mode="bilinear")


def log_models(predictor: Predictor, folder: Path, example: Tensor) -> dict[str, str]:
    """The URIs of the served model, of a constant in its place, and of what MLflow makes of a network.

    The process is left pointed at a fresh store in `folder`.
    """
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    connection.connect()
    predictor.save(folder / served_model.ARTIFACT)
    signature = served_model.signature(predictor.spec)
    module = Resizing(predictor.model, predictor.spec.preprocess.size).eval()
    with warnings.catch_warnings(), mlflow.start_run(experiment_id=experiments.ensure("benchmark")):
        warnings.simplefilter("ignore")  # of MLflow and torch, of their own ways
        model_id = logged_models.log(folder / served_model.ARTIFACT)
        model = str(PROJECT / "benchmarks" / "constant_model.py")
        constant = mlflow.pyfunc.log_model(
            name="constant", python_model=model, signature=signature, pip_requirements=[]
        )
        requirements = [f"{name}=={version(name)}" for name in ("mlflow", "torch")]
        stock = mlflow.pytorch.log_model(
            module, name="stock", input_example=example[None].numpy(), pip_requirements=requirements
        )
    client = MlflowClient()
    client.create_registered_model(NAME)
    registered = client.create_model_version(NAME, f"models:/{model_id}", model_id=model_id)
    client.set_registered_model_alias(NAME, "champion", registered.version)
    return {"ours": f"models:/{NAME}@champion", "constant": constant.model_uri, "stock": stock.model_uri}


def by_mlflow(uri: str) -> Callable[[int], list[str]]:
    """The command that serves a model on a port as MLflow does."""
    program = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", uri]
    return lambda port: [*program, "-p", str(port)]


def by_us(port: int) -> list[str]:
    """The command that serves the champion on a port as this project does."""
    return [sys.executable, "-m", "steps.serve", f"--serving.port={port}", f"--registry.model_name={NAME}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(command: Callable[[int], list[str]], folder: Path) -> Iterator[Server]:
    """Start a server, wait until it answers, and stop it in the end. What it says goes to a file in `folder`."""
    port = free_port()
    log, paths = folder / f"{port}.log", [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths)}
    began = time.perf_counter()
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command(port), cwd=PROJECT, env=environment, stdout=said, stderr=said, start_new_session=True
        ) as process,
    ):
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                    raise SystemExit(f"{' '.join(command(port))} does not answer:\n{log.read_text()[-3000:]}")
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            worker = max(members(process.pid), key=lambda member: held(member, "VmRSS"))
            yield Server(port, process.pid, worker, seconds, held(worker, "RssAnon"))
        finally:
            with suppress(ProcessLookupError):  # one that could not start has ended by itself
                os.killpg(process.pid, signal.SIGTERM)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def held(process: int, kind: str) -> float:
    """MiB of memory: RssAnon is a process's own, VmRSS has the libraries that it maps as well."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def members(leader: int) -> list[int]:
    """The processes that a server is made of."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if session(path) == leader]


def session(process: Path) -> int:
    """The session that a process belongs to; 0 where it has ended."""
    try:
        return int((process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[3])
    except OSError:
        return 0
