"""The loops that benchmarks.train_throughput times, the work that all do, and how rounds become a table."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.dataset_writer import ArrayWriter
from segpipe.data.manifest import CaseRecord, Manifest, Split
from segpipe.data.readers import channel_names
from segpipe.models import architectures, losses
from segpipe.runtime import devices, process_group
from segpipe.training import engine
from segpipe.training.learner import Learner

T = TypeVar("T")
Epoch = Callable[[int], float]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLANES, CHUNK = 16, 1024  # slices a case, and slices written at a time


class Work(NamedTuple):
    """What every contender does alike: a config, a data set on disk, and what places and casts."""

    config: Config
    folder: Path
    accelerator: Accelerator

    @property
    def on_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda"

    @property
    def precision(self) -> str:
        return devices.precision(self.config.train)

    def clock(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def knobs(self, section: str, **changed: object) -> "Work":
        part = getattr(self.config, section).model_copy(update=changed)
        return self._replace(config=self.config.model_copy(update={section: part}))

    def batches(self, split: Split) -> Batches:
        selected = Dataset.open(self.folder).where(split=split)
        return Batches(selected, self.config.train, self.accelerator.device, training=split == "train")

    def network(self) -> architectures.SegmentationModel:
        network = architectures.build(self.config.model, len(channel_names(self.config.data)), 1, self.config.seed)
        return network.to(self.accelerator.device, memory_format=torch.channels_last)

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        config = self.config.train
        return torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)

    def tensors(self) -> tuple[Tensor, Tensor]:
        batches = self.batches("train")
        images, labels = (torch.from_numpy(np.array(array)) for array in (batches.images, batches.labels))
        return images.float(), labels

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        data, size = TensorDataset(*self.tensors()), self.config.train.batch_size
        return DataLoader(data, size, shuffle=True, pin_memory=self.on_gpu)


def started(folder: Path, knobs: dict[str, object]) -> Work:
    config = settings.load(None, {name: str(value) for name, value in knobs.items()})
    AcceleratorState._reset_state(reset_partial_state=True)
    return Work(config, folder, process_group.start(config.train))


def simulate(config: Config, folder: Path, slices: dict[Split, int]) -> None:
    """A prepared data set of noise with a bright disc in each slice, written a chunk at a time."""
    channels, (height, width) = channel_names(config.data), config.preprocess.size
    rng, (y, x) = np.random.default_rng(0), np.ogrid[:height, :width]
    arrays, cases = {}, []
    nothing: dict[str, Any] = {"site": "", "spacing": None, "voxels": {}, "volume_ml": None, "sha256": "", "files": ()}
    for split, count in slices.items():
        with (
            ArrayWriter(folder, f"{split}_images", np.float16, (len(channels), height, width)) as images,
            ArrayWriter(folder, f"{split}_masks", np.uint8, (height, width)) as masks,
        ):
            for size in ((min(CHUNK, count - first), 1, 1) for first in range(0, count, CHUNK)):
                down, along = rng.integers(height, size=size), rng.integers(width, size=size)
                disc = (y - down) ** 2 + (x - along) ** 2 < (height / rng.uniform(6, 12, size)) ** 2
                masks.append(disc)
                noise = rng.standard_normal((size[0], len(channels), height, width), dtype=np.float32)
                images.append(noise + 2 * disc[:, None])
        arrays |= {f"{split}_images": images.record(), f"{split}_masks": masks.record()}
        for start in range(0, count, PLANES):
            name, shape = f"{split}{start}", (min(PLANES, count - start), height, width)
            cases.append(CaseRecord(case=name, patient=name, split=split, shape=shape, start=start, **nothing))
    names = {"root": str(folder), "channels": channels, "classes": config.data.class_names}
    told = {"kind": "volume", "reader": "phantom", "preprocess": config.preprocess}
    Manifest(**names, **told, cases=tuple(cases), arrays=arrays).save(folder)


def bare(work: Work) -> Epoch:
    network, size, device, dtype = work.network(), work.config.train.batch_size, work.accelerator.device, work.precision
    optimizer, scaler = work.optimizer(network), torch.amp.GradScaler(device.type, enabled=dtype == "fp16")
    images, labels = (tensor.to(device) for tensor in work.tensors())
    images = images.contiguous(memory_format=torch.channels_last)

    def epoch(_: int) -> float:
        began = work.clock()
        for part in (slice(first, first + size) for first in range(0, len(images), size)):
            with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"):
                logits = network(images[part])
            scaler.scale(losses.loss(logits, labels[part], work.config.loss)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return work.clock() - began

    return epoch


def ours(work: Work) -> Epoch:
    learner, batches = Learner(work.network(), work.config.train, work.accelerator), work.batches("train")

    def epoch(number: int) -> float:
        began = work.clock()
        engine.train_one_epoch(learner, batches, work.config, engine.Position(number))
        return work.clock() - began

    return epoch


def lightning(work: Work) -> Epoch:
    """Timed between its hooks: what a Trainer does once a fit does not count."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.began, self.seconds = work.network(), 0.0, 0.0
            self.optimizer = work.optimizer(self.network)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            logits = self.network(batch[0].contiguous(memory_format=torch.channels_last))
            return losses.loss(logits, batch[1], work.config.loss)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

        def on_train_epoch_start(self) -> None:
            self.began = work.clock()

        def on_train_epoch_end(self) -> None:
            self.seconds = work.clock() - self.began

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[work.precision]
    where = {"accelerator": "gpu" if work.on_gpu else "cpu", "devices": 1, "precision": precision}
    trainer, module, loader = pl.Trainer(max_epochs=0, **where, **off), Module(), work.loader()

    def epoch(number: int) -> float:
        trainer.fit_loop.max_epochs = number + 1
        trainer.fit(module, loader)
        return module.seconds

    return epoch


def monai(work: Work) -> Epoch:
    """Timed between its events; what it would unpack for metrics after each step is left out."""
    from ignite.engine import Events
    from monai.engines import SupervisedTrainer

    def prepare(batch: list[Tensor], device: torch.device, non_blocking: bool, **_: Any) -> tuple[Tensor, Tensor]:
        images, labels = (tensor.to(device, non_blocking=non_blocking) for tensor in batch)
        return images.contiguous(memory_format=torch.channels_last), labels

    network, times = work.network(), list[float]()
    trainer = SupervisedTrainer(
        work.accelerator.device,
        max_epochs=1,
        train_data_loader=work.loader(),
        network=network,
        optimizer=work.optimizer(network),
        loss_function=lambda logits, labels: losses.loss(logits, labels, work.config.loss),
        non_blocking=work.on_gpu,
        prepare_batch=prepare,
        amp=work.precision != "fp32",
        amp_kwargs={"dtype": DTYPES[work.precision]},
        decollate=False,
        optim_set_to_none=True,
    )
    for event in (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: times.append(work.clock()))

    def epoch(_: int) -> float:
        trainer.run()
        return times[-1] - times[-2]

    return epoch


PEERS = {
    "Lightning Trainer": (("lightning",), lightning),
    "MONAI SupervisedTrainer": (("monai", "ignite"), monai),
}


def interleaved(actions: dict[str, Callable[[int], T]], rounds: int, first: int = 0) -> dict[str, list[T]]:
    """What each action gives in rounds 1, 2, ...; round 0 does not count, and who begins changes."""
    names, results = list(actions), {name: list[T]() for name in actions}
    for number in range(first, rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result = actions[name](number)
            if number:
                results[name].append(result)
    return results


def ratio(ones: Sequence[float], others: Sequence[float]) -> tuple[float, str]:
    """Median over the rounds of one over the other, and its range as text."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return statistics.median(ratios), f"{min(ratios):.3f}..{max(ratios):.3f}"


def least(value: float, goal: float) -> str:
    return f">= {goal:g}: {'met' if value >= goal else 'not met'}"


def table(head: str, rows: Sequence[Sequence[object]]) -> None:
    """Print Markdown; the columns of `head` are separated by |."""
    columns = head.split("|")
    for row in (columns, ["---"] + ["---:"] * (len(columns) - 1), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)
