"""The tree of files that a training writes, the same with MLflow and without.

    config/{resolved.yaml,environment.txt,git.diff}    logs/training/train.log
    metrics/epoch_XXX/metrics.json                     summaries/{epoch_XXX,training}/summary.md
    predictions/epoch_XXX/CASE.png                     visualizations/training_curves/epoch_XXX/curves.png
    visualizations/augmentation/augmented_batch.png
    checkpoints/best_model/{epoch_XXX/,metadata/metadata.json,context/context.json}
    final_model/{weights/,configuration/,validation/cases.csv,training_history/training_history.json,summary/summary.md}
    final_model/inventory.json

Folders are named by MLflow's step, from 0; people are told epochs from 1. An epoch has its folders where it is a new
best, every `tracking.artifact_every` epochs, and where it is the last; of the best models only the newest is kept.
"""

import json
import platform
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from segpipe.config import settings
from segpipe.config.sections import AugmentConfig, Config, TrainConfig
from segpipe.files import inventory, project

if TYPE_CHECKING:
    from torch import nn

    from segpipe.data.batches import Batches
    from segpipe.inference.predictor import Predictor
    from segpipe.training.engine import EpochReport, FitResult

FINAL = "final_model"
# Knobs of train that follow from measuring and go on after an interruption, and their params.
PLANNED = {name: f"cfg.train.{name}_planned" for name in ("epochs", "patches", "precision")}
HISTORY = "final_model/training_history/training_history.json"
VALIDATION = "final_model/validation/cases.csv"
BEST = "checkpoints/best_model"
ROUNDS = "federation/rounds.json"  # of a federation: what became of each site in each round
LARGEST_DIFF = 5_000_000
SHOWN = 4
Json = dict[str, Any] | list[Any]


class Recorder(Protocol):
    """Where a training is recorded: settings and facts that don't change, tags to find runs by, the values of an epoch,
    the trained model with the metrics that belong to it. `files` gives a folder whose content, when the block ends
    well, becomes part of the tree; `discard` removes a folder of it. Recording anything twice changes nothing. The
    metrics of a `site` are kept apart from the training's own.
    """

    def params(self, values: dict[str, str]) -> None: ...
    def tags(self, values: dict[str, str]) -> None: ...
    def metrics(self, values: dict[str, float], step: int, ended_ms: int, site: str = "") -> None: ...
    def files(self) -> AbstractContextManager[Path]: ...
    def discard(self, path: str) -> None: ...
    def model(self, predictor: "Predictor", values: dict[str, float], ended_ms: int) -> None: ...


class Journal:
    """Writes the tree of one training through a recorder; `planned` is what became of its epochs and windows.

    What it reports is an epoch, or so many (`count`) of another `unit`.
    """

    def __init__(
        self,
        recorder: Recorder,
        config: Config,
        val: "Batches",
        planned: TrainConfig,
        unit: str = "epoch",
        count: int = 0,
    ) -> None:
        self.recorder, self.config, self.val, self.planned = recorder, config, val, planned
        self.unit, self.count = unit, count or planned.epochs

    def begin(self, train: "Batches", facts: dict[str, str]) -> None:
        """Record environment, uncommitted changes, an augmented batch and parameters, before the first epoch."""
        params = {f"cfg.{name}": value for name, value in (settings.flat(self.config) | facts).items()}
        self.recorder.params(params | {param: str(getattr(self.planned, name)) for name, param in PLANNED.items()})
        self.recorder.tags(tags(self.config, len(self.val.classes)) | {"device": facts["hardware.device"]})
        with self.recorder.files() as folder:
            _write(folder / "config/resolved.yaml", settings.dump(self.config))
            _write(folder / "config/environment.txt", environment())
            _write(folder / "config/git.diff", uncommitted())
            if self.config.augment.enabled:
                self._augmented(train, _make(folder / "visualizations/augmentation") / "augmented_batch.png")

    def _augmented(self, train: "Batches", path: Path) -> None:
        from segpipe.plots.cases import augmented

        seed, off = self.config.seed, AugmentConfig(enabled=False)
        before, after = (next(train.shuffled(seed, 0, how)) for how in (off, self.config.augment))
        cases = [train.cases[i].case for i in before.cases.tolist()]
        plain, moved = ((batch.images.cpu().numpy(), batch.labels.cpu().numpy()) for batch in (before, after))
        augmented(plain, moved, path, cases, train.kind, train.classes)

    def epoch(self, history: "list[EpochReport]", network: "nn.Module", predictor: "Predictor") -> None:
        """Record the last epoch of `history`, which is about `network`; `predictor` saves it."""
        report = history[-1]
        self.recorder.metrics(report.metrics(), report.epoch, report.ended_ms)
        last = report.epoch + 1 == self.count
        if not (report.is_best or last or report.epoch % self.config.tracking.artifact_every == 0):
            return
        name = f"epoch_{report.epoch:03d}"
        with self.recorder.files() as folder:
            _write(folder / "metrics" / name / "metrics.json", report.metrics())
            _write(folder / "summaries" / name / "summary.md", summary(history, self.unit))
            _write(folder / "logs/training/train.log", log(history, self.count, self.unit))
            self._pictures(history, network, folder, name)
            if report.is_best:
                spec = predictor.spec.model_dump(mode="json")
                context = {"spec": spec, "config": self.config.model_dump(mode="json")}
                predictor.save(folder / BEST / name)
                _write(folder / BEST / "metadata/metadata.json", {"epoch": report.epoch, **report.metrics()})
                _write(folder / BEST / "context/context.json", context)
        bests = [earlier for earlier in history[:-1] if earlier.is_best]
        if report.is_best and bests:
            self.recorder.discard(f"{BEST}/epoch_{bests[-1].epoch:03d}")

    def _pictures(self, history: "list[EpochReport]", network: "nn.Module", folder: Path, name: str) -> None:
        import torch

        from segpipe.models import losses
        from segpipe.plots.cases import prediction_png
        from segpipe.plots.training import curves

        curves([r.metrics() for r in history], _make(folder / "visualizations/training_curves" / name) / "curves.png")
        batch, cases = self.val.examples(SHOWN)
        with torch.no_grad():
            predicted = losses.predictions(network.eval()(batch.images)).cpu().numpy()
        target = _make(folder / "predictions" / name)
        for n, case in enumerate(cases):
            image, labels = batch.images[n].cpu().numpy(), batch.labels[n].cpu().numpy()
            path = target / f"{case.case}.png"
            prediction_png(image, labels, predicted[n], path, self.val.kind, self.val.classes)

    def _validation(self, dice: list[float]) -> str:
        """The best epoch's Dice of each validation case, as a table."""
        import pandas as pd

        rows = [(case.case, case.patient, case.site, value) for case, value in zip(self.val.cases, dice, strict=True)]
        return pd.DataFrame(rows, columns=["case", "patient", "site", "dice"]).to_csv(index=False, na_rep="nan")

    def finish(self, result: "FitResult", predictor: "Predictor", inference_ms: float) -> None:
        """Record the final model, its history and the closing figures; the inventory, last, shows that all is there."""
        history, final = result.history, result.history[-1]
        seconds = sum(report.epoch_time_seconds for report in history)
        values = {
            "best_val_dice": result.best.val_dice,
            "best_epoch": float(result.best.epoch + 1),
            "final_train_dice": final.train_dice,
            "final_val_dice": final.val_dice,
            "training_time_minutes": seconds / 60,
            "training_time_hours": seconds / 3600,
            "total_epochs_trained": float(len(history)),
            "inference_ms": inference_ms,
        }
        self.recorder.model(predictor, values, final.ended_ms)
        text = summary(history, self.unit)
        with self.recorder.files() as folder:
            predictor.save(folder / "final_model/weights")
            _write(folder / "final_model/configuration/resolved.yaml", settings.dump(self.config))
            _write(folder / VALIDATION, self._validation(result.val_cases))
            _write(folder / HISTORY, [{"epoch": r.epoch, **r.metrics()} for r in history])
            _write(folder / "final_model/summary/summary.md", text)
            _write(folder / "summaries/training/summary.md", text)
            _write(folder / "logs/training/train.log", log(history, self.count, self.unit))
            written = inventory.of(folder / FINAL)
        with self.recorder.files() as folder:
            inventory.save(written, _make(folder / FINAL))


def tags(config: Config, classes: int) -> dict[str, str]:
    """The tags that training runs are filtered by in the UI."""
    return {
        "architecture": config.model.arch,
        "encoder": config.model.encoder,
        "pretrained": {"img": "imagenet", "rand": "no"}.get(config.model.initialisation, config.model.initialisation),
        "augmentation": "on" if config.augment.enabled else "off",
        "loss_type": config.loss.name,
        "task": "binary" if classes == 1 else "multiclass",
        "seed": str(config.seed),
    }


def run_name(config: Config, at: float) -> str:
    """tracking.run_name, or architecture, encoder, initial weights and the local time `at` (seconds since 1970)."""
    model, stamp = config.model, time.strftime("%Y%m%d_%H%M%S", time.localtime(at))
    encoder = model.encoder.replace("/", "-")
    return config.tracking.run_name or f"{model.arch}_{encoder}_{model.initialisation}_{stamp}"


def line(report: "EpochReport", count: int, unit: str) -> str:
    """One epoch, or what else is reported, as a line."""
    return (
        f"{unit} {report.epoch + 1}/{count}  loss {report.train_loss:.4f} val {report.val_loss:.4f}  "
        f"Dice {report.train_dice:.4f} val {report.val_dice:.4f}{' * ' if report.is_best else '   '}"
        f"{report.epoch_time_seconds:.1f} s  {report.images_per_second:.0f} images/s"
    )


def log(history: "list[EpochReport]", count: int, unit: str) -> str:
    """The whole training, a line an epoch; * marks a new best."""
    stamps = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r.ended_ms / 1000)) for r in history)
    return "".join(f"{stamp}  {line(r, count, unit)}\n" for stamp, r in zip(stamps, history, strict=True))


def summary(history: "list[EpochReport]", unit: str) -> str:
    """The last epoch and the best one as a Markdown table."""
    last, best = history[-1], next((r for r in reversed(history) if r.is_best), history[-1])
    names = list(last.metrics())
    rows = [f"| {name} | {last.metrics()[name]:.5g} | {best.metrics()[name]:.5g} |" for name in names]
    head = f"| | {unit} {last.epoch + 1} | best: {unit} {best.epoch + 1} |\n|---|---|---|\n"
    return f"# Training after {len(history)} {unit}s\n\n{head}" + "\n".join(rows) + "\n"


def environment() -> str:
    """Python, platform and every installed package with its version."""
    packages = sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *packages]) + "\n"


def uncommitted() -> str:
    """What `git diff HEAD` says of the project, cut at 5 MB; empty where it is no git checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "diff", "HEAD"], cwd=project.PROJECT, capture_output=True, check=False)  # noqa: S603  # fixed
    return done.stdout[:LARGEST_DIFF].decode("utf-8", "replace")


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, content: str | Json) -> None:
    """Write a text, or any other value as JSON."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    (_make(path.parent) / path.name).write_text(text, encoding="utf-8")
