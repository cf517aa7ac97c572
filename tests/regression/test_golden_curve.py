"""A short training on simulated patients still gives the losses and Dice that `golden_curve.json` was written with.

A change of data, augmentation, network, loss, optimizer or schedule shows here. If it is intended, renew the file with

    RENEW=1 python -m pytest tests/regression/test_golden_curve.py

and give the old and the new curve in the commit. The tolerances are at least three times the largest difference seen
between four ways of rounding: one and two threads with AVX-512, and one thread with

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
    ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default

Differences grow from epoch to epoch (training loss: 8e-6, 5e-4, 1e-3, 1e-3; validation Dice: 3e-5, 7e-4, 8e-3, 8e-3),
so the first epochs say the most.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.models import architectures
from segpipe.runtime import process_group
from segpipe.training import engine

FILE = Path(__file__).with_name("golden_curve.json")
KNOBS = {
    "data.patients": "6",
    "preprocess.size": "64",
    "model.encoder": "tu-test_resnet",
    "model.encoder_depth": "3",
    "train.epochs": "4",
    "train.device": "cpu",
}


@pytest.fixture
def history(tmp_path):
    """The report of every epoch."""
    config = settings.load(None, {**KNOBS, "data.root": str(tmp_path)})
    dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    dataset, cpu = Dataset.open(tmp_path / "dataset"), torch.device("cpu")
    train = Batches(dataset.where(split="train"), config.train, cpu, training=True)
    val = Batches(dataset.where(split="val"), config.train, cpu, training=False)
    network = architectures.build(config.model, len(dataset.manifest.channels), 1, config.seed)
    return engine.fit(network, train, val, config, process_group.start(config.train), lambda *_: None).history


def test_a_training_gives_the_golden_curve(history):
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    curves = {name: [getattr(report, name) for report in history] for name in golden}
    if "RENEW" in os.environ:
        golden = {name: {**golden[name], "value": curve} for name, curve in curves.items()}
        FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    apart = {
        f"{name}, epoch {epoch}": (found, expected)
        for name, curve in curves.items()
        for epoch, (found, expected) in enumerate(zip(curve, golden[name]["value"], strict=True))
        if abs(found - expected) > golden[name]["tolerance"][epoch]
    }
    assert apart == {}
