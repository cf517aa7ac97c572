"""What version 0.5.0 wrote is still read, and says what it said then. tests/kept/0.5.0/README.md tells its making."""

import asyncio
import base64
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from segpipe.config.sections import EvaluateConfig, GateConfig
from segpipe.data import codecs
from segpipe.data.dataset import Dataset
from segpipe.evaluation import choosing, gate, kept, measuring
from segpipe.evaluation.summary import FILE, Summary
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import Labelling
from segpipe.metrics.catalogue import METRICS

KEPT = Path(__file__).parent.parent / "kept" / "0.5.0"
PICTURE = (KEPT / "picture.png").read_bytes()
REGISTRY = json.loads((KEPT / "registry.json").read_text(encoding="utf-8"))


@pytest.fixture
def dataset():
    return Dataset.open(KEPT / "dataset")


@pytest.fixture
def predictor():
    return Predictor.load(KEPT / "model" / "artifacts" / "segpipe")


@pytest.fixture
def measured(dataset, predictor):
    """The kept evaluation, made again: its measurement and its choice of a threshold."""
    choice = choosing.choose(predictor, dataset, EvaluateConfig())
    return measuring.evaluate(predictor, dataset, choice.labelling, EvaluateConfig(), lambda *_: None), choice


def test_the_data_set_is_what_the_tags_of_its_run_say(dataset):
    tags = json.loads((KEPT / "dataset_tags.json").read_text(encoding="utf-8"))
    assert dataset.manifest.digest == tags["segpipe.dataset_digest"]
    assert dataset.manifest.test_digest == tags["segpipe.test_digest"]
    assert (dataset.manifest.kind, dataset.manifest.reader) == ("picture", "folder")
    assert [len(dataset.where(split=split).cases) for split in ("train", "val", "test")] == [5, 1, 2]
    for case in dataset.where(split="test").cases:
        image, mask = dataset.native(case)
        assert (image.shape, mask.shape) == ((1, 1, 40, 36), (1, 40, 36))
        assert np.count_nonzero(mask) == case.voxels["foreground"]


def test_the_model_gives_the_mask_that_it_gave(predictor):
    assert (predictor.spec.kind, predictor.spec.format) == ("picture", 2)
    decoded = codecs.decode(PICTURE, "picture.png")
    found = predictor.segment(codecs.as_channels(decoded.array, 1, "picture.png"), predictor.spec.threshold)
    kept = codecs.decode((KEPT / "mask.png").read_bytes(), "mask.png")
    np.testing.assert_array_equal(found.mask * 255, kept.array[0])
    assert found.mask.any()


def test_the_logged_model_is_served(store, tmp_path, monkeypatch):
    from segpipe.config.sections import ServingConfig
    from segpipe.server import loaded_model

    folder = tmp_path / "model"
    shutil.copytree(KEPT / "model", folder)
    (folder / "code").mkdir()  # the code it came with is never looked at where the project's own is imported already
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts that folder in front of it
    served = loaded_model.load(str(folder), ServingConfig())
    body = json.dumps({"dataframe_records": [{"image": base64.b64encode(PICTURE).decode()}]})
    (answer,) = json.loads(asyncio.run(served.answers.ask(body.encode())).body)["predictions"]
    kept = codecs.decode((KEPT / "mask.png").read_bytes(), "mask.png").array[0] > 0
    mask = codecs.decode(base64.b64decode(answer["mask"]), "answer").array[0] > 0
    np.testing.assert_array_equal(mask, kept)
    assert answer["foreground_voxels"] == kept.sum()


def test_the_evaluation_is_read_and_measured_again_is_the_same(measured, tmp_path):
    found, choice = measured
    summary = Summary.read(KEPT / "evaluation")
    now = measuring.summarise(found, choice, (summary.weights_sha256, summary.size_mb), 100, 0)
    kept.Kept(found, now, choice.val_dice, {}).write(tmp_path)
    assert choice.labelling == Labelling(summary.threshold)
    assert summary.headline() == now.headline()
    assert (summary.outcomes, summary.lesions) == (now.outcomes, now.lesions)
    assert list(summary.metrics) == list(now.metrics)
    written = [json.loads((folder / FILE).read_text(encoding="utf-8")) for folder in (KEPT / "evaluation", tmp_path)]
    assert list(written[0]) == list(written[1])[: len(written[0])]
    assert written[0]["metrics"]["dice"] == pytest.approx(written[1]["metrics"]["dice"], rel=1e-5)
    tables = [kept.table(folder / "cases.csv") for folder in (KEPT / "evaluation", tmp_path)]
    pd.testing.assert_frame_equal(tables[0], tables[1][list(tables[0])], rtol=1e-5)
    assert set(METRICS) <= set(tables[0])
    lesions = [(folder / "lesions.csv").read_text(encoding="utf-8") for folder in (KEPT / "evaluation", tmp_path)]
    assert lesions[0] == lesions[1]


def test_the_gate_compares_a_new_table_with_it(measured):
    champion, challenger = kept.table(KEPT / "evaluation" / "cases.csv"), measured[0].cases
    more = [gate.Footprint(1.0, 1.0), 100, 0]
    knobs = GateConfig(min_patients=1, alpha=0.49)
    equal = gate.decide(challenger, champion, knobs, *more)
    better = gate.decide(challenger.assign(dice=challenger["dice"] + 0.1), champion, knobs, *more)
    assert not equal.promote
    assert better.promote
    assert "+0.1000" in better.reasons[0]


def test_the_record_of_the_champion_is_read(store):
    from mlflow import MlflowClient

    from segpipe.registry import champions, record

    client, name = MlflowClient(), REGISTRY["name"]
    client.create_registered_model(name, tags=REGISTRY["tags"])
    for number, version in REGISTRY["versions"].items():
        made = client.create_model_version(name, (KEPT / "model").as_uri(), tags=version["tags"])
        assert str(made.version) == number
    for alias, number in REGISTRY["aliases"].items():
        client.set_registered_model_alias(name, alias, number)
    moves = record.history(name)
    assert [(move.version, move.before, move.how) for move in moves] == [
        ("1", "", record.PROMOTED), ("2", "1", record.PROMOTED), ("1", "2", record.ROLLED_BACK),
    ]  # fmt: skip
    assert record.line(moves, set(REGISTRY["versions"])) == ["1"]
    assert champions.number(champions.holder(name)) == "1"
