"""One training, from a dataset on disk to the recorded model, however it was started."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from segpipe.config.sections import Config, Section
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.manifest import Manifest
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures, losses
from segpipe.recording.artifact_tree import Journal, Recorder
from segpipe.runtime import process_group
from segpipe.training import budget, engine, precision
from segpipe.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMED = 5


class Job(Section):
    """What a training needs: its config, the dataset's folder and artifact URI, the key of the step, the folder for its
    checkpoints, and where it is recorded: in the MLflow run `run_id` through the folder `record`, or in that folder.
    """

    config: Config
    dataset: Path
    key: str
    checkpoints: Path
    record: Path
    run_id: str = ""
    dataset_uri: str = ""


class Watcher(Protocol):
    """Who is told how a training goes; on process 0 alone."""

    def doing(self, what: str) -> None:
        """What is being done before the first epoch."""

    def epoch(self, epoch: engine.EpochReport, epochs: int) -> None:
        """An epoch of so many is finished."""

    def batch(self, epoch: int, epochs: int, done: int, batches: int) -> None:
        """So many batches of an epoch, counted from 0, are done."""


def run(
    job: Job,
    dataset: Dataset,
    accelerator: "Accelerator",
    recorder: Recorder | None,
    say: Callable[[str], None],
    watcher: Watcher,
    stop: Callable[[], bool],
) -> str:
    """Train on the job's dataset, record through `recorder` (only process 0 has one), and return the key figure."""
    began = time.perf_counter()
    config, device, manifest = job.config, accelerator.device, dataset.manifest
    losses.check(config.loss, len(manifest.classes))
    sites = manifest.sites(config.federate.sites)
    train = Batches(dataset.where(split="train", site=sites), config.train, device, training=True)
    val = Batches(dataset.where(split="val", site=sites), config.train, device, training=False)
    checkpoints = Checkpoints(job.checkpoints, job.key, say)
    state = checkpoints.newest()
    network, spec = build(config, manifest, pretrained=state is None), describe(config, manifest, sites)
    if not (state or process_group.rank()):
        watcher.doing("timing some steps")
    found = state["planned"] if state else {"precision": precision.choose(network, train, config, accelerator)}
    planned = config.train.model_copy(update=found)
    if config.train.minutes and not state:

        def record(recorder: Recorder) -> None:
            tried = Journal(recorder, config, val, planned)
            tried.epoch([budget.NEW_BEST], network, Predictor(spec, network, device))

        knobs = config.model_copy(update={"train": planned})
        costs = budget.measure(network, train, val, knobs, accelerator, record, job.checkpoints)
        planned = budget.fill(planned, time.perf_counter() - began, costs, train)
        if recorder:
            windows = f" (windows a case in each: {planned.patches})" if planned.patches else ""
            epochs = "1 epoch fits" if planned.epochs == 1 else f"{planned.epochs} epochs fit"
            say(f"{epochs} into {planned.minutes:g} minutes{windows}")
    if planned.patches != config.train.patches:
        train = Batches(train.selected, planned, device, training=True)
    journal = Journal(recorder, config, val, planned) if recorder else None
    if journal:
        journal.begin(train, facts(planned.precision, network, device))

    def report(history: list[engine.EpochReport], current: architectures.SegmentationModel) -> None:
        watcher.epoch(history[-1], planned.epochs)
        if journal:
            journal.epoch(history, current, Predictor(spec, current, device))

    knobs = config.model_copy(update={"train": planned})
    result = engine.fit(network, train, val, knobs, accelerator, report, checkpoints, state, stop, watcher.batch)

    if journal:
        network.load_state_dict(result.weights)
        predictor = Predictor(spec, network, device)
        journal.finish(result, predictor, milliseconds(predictor, val))
    return f"val Dice {result.best.val_dice:.3f} in epoch {result.best.epoch + 1} of {len(result.history)}"


def build(config: Config, manifest: Manifest, *, pretrained: bool) -> architectures.SegmentationModel:
    """A network for a data set, with initial weights from elsewhere only where it is `pretrained`."""
    sizes = len(manifest.channels) * manifest.preprocess.planes, len(manifest.classes)
    return architectures.build(config.model, *sizes, config.seed, pretrained=pretrained)


def describe(config: Config, manifest: Manifest, sites: Collection[str]) -> ModelSpec:
    """What is saved beside the weights of a network that is trained at some sites of a data set."""
    return ModelSpec(
        model=config.model.model_copy(update={"encoder_weights": "none"}),
        preprocess=manifest.preprocess,
        kind=manifest.kind,
        channels=manifest.channels,
        classes=manifest.classes,
        profile=manifest.profile(sites),
        sites=config.federate.sites,
    )


def facts(precision: str, network: nn.Module, device: torch.device) -> dict[str, str]:
    """What is not in the config: number of parameters, hardware, the precision that was resolved, versions."""
    packages = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "accelerate", "numpy", "mlflow")
    return {
        "model.parameters": str(architectures.parameter_count(network)),
        "hardware.device": device.type,
        "hardware.gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "hardware.cpu_cores": str(os.cpu_count()),
        "hardware.threads": str(torch.get_num_threads()),
        "hardware.precision": precision,
        "hardware.processes": str(process_group.world()),
        "version.python": platform.python_version(),
        **{f"version.{name}": version(name) for name in packages},
    }


@torch.inference_mode()
def milliseconds(predictor: Predictor, val: Batches) -> float:
    """Median time of a forward pass of one slice."""
    image = val.examples(1)[0].images[:1].contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(TIMED + 1):
        began = time.perf_counter()
        predictor.model(image).sum().item()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])
