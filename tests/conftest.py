"""Small real data sets, a sandboxed tracking store, and the commands as a user types them."""

import atexit
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are tiny: a second thread would only be waited for

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from servers import Server

from segpipe.config import settings as settings_module
from segpipe.config.sections import Config
from segpipe.data import dataset_writer
from segpipe.data.manifest import Manifest
from segpipe.data.readers import open_reader
from segpipe.files.project import PROJECT

IMAGEJ = {270: "ImageJ=1.53t\nimages=5\nslices=5\nunit=micron\nspacing=50.0\n", 282: 0.25, 283: 0.5}

if TYPE_CHECKING:
    from segpipe.models.architectures import SegmentationModel
    from segpipe.orchestration.session import Session
    from segpipe.training.engine import EpochReport, FitResult

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it, and all it starts

os.environ["SEGPIPE_CACHE"] = tempfile.mkdtemp(prefix="segpipe-cache-")
atexit.register(shutil.rmtree, os.environ["SEGPIPE_CACHE"], ignore_errors=True)

settings.register_profile("segpipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("segpipe")

EPOCH_TIMES = ("epoch_time_seconds", "images_per_second", "data_wait_share")
TIMES = (*EPOCH_TIMES, "training_time_minutes", "training_time_hours", "inference_ms")
TINY = (
    "--model.encoder=tu-test_resnet",
    "--model.encoder_depth=3",
    "--train.epochs=2",
    "--train.batch_size=4",
    "--preprocess.size=32,32",
    "--evaluate.bootstrap_samples=100",
    "--gate.min_patients=1",
    "--gate.beat_trivial=false",
    "--train.precision=fp32",  # what auto measures depends on the processor
    "--evaluate.precision=fp32",
    "--plan.auto=false",
)


SOURCES = ("MLproject", "conda.yaml", "requirements.txt", "pipeline.py", "configs", "segpipe", "steps")


def copy_project(folder: Path) -> Path:
    """The project's own files in another folder, which is made."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, folder)
    return folder


def disc(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture H,W uint8 with a bright disc, and the disc as 0/255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    radius = rng.integers(5, 9)
    inside = (y - rng.integers(10, height - 10)) ** 2 + (x - rng.integers(10, width - 10)) ** 2 < radius**2
    picture = np.clip(rng.normal(70, 15, (height, width)) + 110 * inside, 0, 255)
    return picture.astype(np.uint8), (inside * 255).astype(np.uint8)


def write_folder(root: Path, cases: int = 8, height: int = 40, width: int = 36) -> Path:
    """A data set of the format `folder`."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index in range(cases):
        picture, mask = disc(height, width, index)
        Image.fromarray(picture).save(root / "images" / f"case{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"case{index}.png")
    return root


def write_sites(root: Path, sites: str = "abc", cases: int = 8) -> Path:
    """Pictures of several sites; of each a half is for training, a quarter for validation, a quarter for testing."""
    write_folder(root, cases * len(sites))
    splits = ("train", "train", "val", "test")
    rows = (f"case{n},p{n},{sites[n // cases]},{splits[n % 4]}" for n in range(cases * len(sites)))
    (root / "cases.csv").write_text("\n".join(["case,patient,site,split", *rows]) + "\n", encoding="utf-8")
    return root


def tiff(pages: Iterable[np.ndarray], tags: dict[int, object] | None = None, **more: str) -> bytes:
    """A TIFF of several pages, each H,W or H,W,3."""
    first, *others = (Image.fromarray(page) for page in pages)
    buffer = io.BytesIO()
    first.save(buffer, format="TIFF", save_all=True, append_images=others, tiffinfo=tags or {}, **more)
    return buffer.getvalue()


def write_stacks(root: Path, cases: int = 8) -> Path:
    """Stacks of 5 pages with an object at the top of the pages, and their masks."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for n in range(cases):
        image = np.random.default_rng(n).integers(0, 90, (5, 40, 36), dtype=np.uint8)
        mask = np.zeros_like(image)
        mask[1:4, 3:12, 5 + n : 20 + n] = 255
        (root / f"images/case{n}.tif").write_bytes(tiff(np.where(mask, 200, image).astype(np.uint8), IMAGEJ))
        (root / f"masks/case{n}.tif").write_bytes(tiff(mask, compression="tiff_deflate"))
    return root


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """A NIfTI file of X,Y,Z."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_nifti(root: Path, cases: int = 4, slices: int = 3) -> Path:
    """A data set in the ISLES'22 layout: DWI and ADC, masks under derivatives/, participants.tsv."""
    affine = np.array([[-2.0, 0, 0, 50], [0, 2.0, 0, -40], [0, 0, 5.0, 10], [0, 0, 0, 1]])
    rows = ["participant_id\tpatient\tsite"]
    for index in range(cases):
        planes = [disc(40, 36, 100 * index + z) for z in range(slices)]
        image = np.stack([p for p, _ in planes]).transpose(2, 1, 0).astype(np.float32)
        mask = np.stack([m > 0 for _, m in planes]).transpose(2, 1, 0).astype(np.uint8)
        name, session = f"sub-case{index}", Path(f"sub-case{index}") / "ses-0001"
        stem = f"{name}_ses-0001"
        write_volume(root / session / "dwi" / f"{stem}_dwi.nii.gz", image, affine)
        write_volume(root / session / "dwi" / f"{stem}_adc.nii.gz", 255 - image, affine)
        write_volume(root / "derivatives" / session / f"{stem}_msk.nii.gz", mask, affine)
        rows.append(f"{name}\tpatient{index}\tsite{index % 2}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], object], seconds: float = 180) -> None:
    """Wait until something is so while a process is at work."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


@contextmanager
def allocating(most: int) -> Iterator[None]:
    """Fails where Python has had more than that many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def training_set(root: Path, **knobs: str) -> tuple[Config, Manifest, Path]:
    """The config for a tiny network, and a cached data set of twelve pictures with its folder."""
    tiny = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}
    train = {"train.epochs": "4", "train.batch_size": "4", "train.precision": "fp32"}
    data = {"data.format": "folder", "data.root": str(write_folder(root / "data", cases=12))}
    config = settings_module.load(None, {**data, **tiny, **train, **knobs})
    manifest = dataset_writer.build(config, open_reader(config), root / "dataset", lambda *_: None)
    return config, manifest, root / "dataset"


def with_knobs(config: Config, **sections: dict[str, object]) -> Config:
    """A config with some knobs changed."""
    values = config.model_dump()
    return settings_module.build({**values, **{name: {**values[name], **knobs} for name, knobs in sections.items()}})


class Watched:
    """A watcher of a training that remembers the epochs it was told, with how many there are, and the batches."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int]] = []
        self.batches: list[tuple[int, int, int, int]] = []

    def epoch(self, epoch: "EpochReport", epochs: int) -> None:
        self.epochs.append((epoch.epoch, epochs))

    def batch(self, *passed: int) -> None:
        self.batches.append(passed)

    def doing(self, what: str) -> None:
        assert what


def network(config: Config) -> "SegmentationModel":
    """The network of a config for grey pictures with one class."""
    from segpipe.models import architectures

    return architectures.build(config.model, 1, 1, config.seed)


def fit(dataset: tuple[Config, Manifest, Path], *, double: bool = False, **sections: dict[str, object]) -> "FitResult":
    """Train on a `training_set` with some knobs changed, in single or double precision."""
    import torch
    from double_precision import DoubleBatches

    from segpipe.data.batches import Batches
    from segpipe.data.dataset import Dataset
    from segpipe.runtime import process_group
    from segpipe.training import engine

    config, data, device = with_knobs(dataset[0], **sections), Dataset(dataset[2], dataset[1]), torch.device("cpu")
    kind = DoubleBatches if double else Batches
    train = kind(data.where(split="train"), config.train, device, training=True)
    val = kind(data.where(split="val"), config.train, device, training=False)
    model = network(config).double() if double else network(config)
    return engine.fit(model, train, val, config, process_group.start(config.train), lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures with masks."""
    return write_folder(tmp_path / "folder")


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """Four volumes with masks."""
    return write_nifti(tmp_path / "nifti")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sandboxed sqlite store for this process and those it starts; its folder has a space in its name."""
    home = tmp_path_factory.mktemp("tracking store")
    saved = dict(os.environ)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    from segpipe.tracking import connection, experiments

    connection.connect()
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiments.ensure("segpipe")
    yield home
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A tracking server that runs."""
    home = tmp_path / "server home"
    home.mkdir()
    made = Server(home)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def command(store: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of the project in a process of its own, against the sandboxed store."""

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, *arguments]
        return subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=timeout, check=False)

    return run


def new_session() -> "Session":
    """What a command would remember."""
    from segpipe.orchestration.session import Session
    from steps.terminal import Terminal

    return Session(Terminal())


@pytest.fixture
def step(store: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run an entry point in this process and return its exit code and what it wrote to stderr."""

    def run(name: str, *arguments: str) -> tuple[int, str]:
        import importlib

        main = importlib.import_module(f"steps.{name}").main
        capfd.readouterr()
        try:
            main.main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capfd.readouterr().err

    return run
