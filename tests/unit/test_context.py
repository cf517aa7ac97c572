"""Neighbouring slices as further channels: in training as in prediction."""

import numpy as np
import pytest
import torch
from conftest import Watched, write_folder, write_nifti
from torch import nn

from segpipe.config import settings
from segpipe.config.sections import ModelConfig, PreprocessConfig
from segpipe.data import context, dataset_writer
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.errors import InputError
from segpipe.inference.predictor import SLICES_PER_FORWARD, Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures

CHANNELS = ("dwi", "adc")


class Noted(nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, images):
        self.given.append(images.numpy().copy())
        return images[:, :1]


def made(folder, **knobs):
    root = write_nifti(folder / "data", cases=4, slices=5)
    shared = {"data.format": "nifti", "data.root": str(root), "preprocess.size": "32", "split.test": "0.25"}
    config = settings.load(None, shared | knobs)
    manifest = dataset_writer.build(config, open_reader(config), folder / "dataset", lambda *_: None)
    return config, Dataset(folder / "dataset", manifest)


def predictor(network, fit, neighbours):
    config = PreprocessConfig(size=(32, 32), fit=fit, context=neighbours)
    spec = ModelSpec(model=ModelConfig(), preprocess=config, kind="volume", channels=CHANNELS, classes=("lesion",))
    return Predictor(spec, network)


def test_a_slice_comes_first_and_its_neighbours_by_their_distance():
    assert context.offsets(0).tolist() == [0]
    assert context.offsets(2).tolist() == [0, -1, 1, -2, 2]
    assert context.around(np.array([0, 4]), 0, 4, 1).tolist() == [[0, 0, 1], [4, 3, 4]]
    assert context.around(np.array([7, 8]), np.array([7, 5]), np.array([7, 9]), 2).tolist() == [
        [7] * 5,
        [8, 7, 9, 6, 9],
    ]


@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize("fit", ["resize", "patch"])
def test_training_and_prediction_see_the_same_of_a_case(tmp_path, fit, neighbours):
    config, dataset = made(tmp_path, **{"preprocess.fit": fit, "preprocess.context": str(neighbours)})
    (case,) = dataset.where(split="val").cases[:1]
    val = Batches(dataset.where(split="val"), config.train, torch.device("cpu"), training=False)
    seen = torch.cat([batch.images[batch.cases == 0] for batch in val.in_order()]).numpy()
    assert seen.shape[1] == 2 * (2 * neighbours + 1)

    network, (stored, labels) = Noted(), dataset.stored(case)
    model = predictor(network, fit, neighbours)
    if fit == "resize":
        model.forward(np.concatenate(list(model._slices(model.fit(stored.astype(np.float32)), slice(0, 5)))))
        np.testing.assert_array_equal(np.concatenate(network.given), seen)
    else:
        each = seen.reshape(5, -1, *seen.shape[1:])[:, 0]  # the first tile of each slice
        own = stored[:, :, :32, :32].swapaxes(0, 1)
        np.testing.assert_array_equal(each[:, :2], own)
        if neighbours:
            np.testing.assert_array_equal(each[1:, 2:4], own[:-1])
            np.testing.assert_array_equal(each[:-1, 4:6], own[1:])
            np.testing.assert_array_equal(each[0, 2:4], own[0])
    assert labels.shape[0] == 5


@pytest.mark.parametrize("fit", ["resize", "patch"])
def test_no_slice_sees_another_case(tmp_path, fit):
    config, dataset = made(tmp_path, **{"preprocess.fit": fit, "preprocess.context": "2"})
    train = Batches(dataset.where(split="train"), config.train, torch.device("cpu"), training=False)
    own = {}
    for batch in train.in_order():
        for image, case in zip(batch.images, batch.cases.tolist(), strict=True):
            own.setdefault(case, set()).update(float(plane.sum()) for plane in image[:2])
    for batch in train.in_order():
        for image, case in zip(batch.images, batch.cases.tolist(), strict=True):
            assert fit == "patch" or {float(plane.sum()) for plane in image} <= own[case]


def test_slices_are_stacked_alike_wherever_a_forward_pass_begins():
    image = np.arange(2 * (SLICES_PER_FORWARD + 4), dtype=np.float32).reshape(2, -1, 1, 1)
    whole = context.stacked(image, slice(None), 2)
    parts = [context.stacked(image, slice(first, first + 7), 2) for first in range(0, image.shape[1], 7)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(whole[:2], image)
    assert context.stacked(image, slice(None), 0).base is not None


@pytest.mark.parametrize("fit", ["resize", "patch"])
def test_a_model_with_neighbours_is_saved_trained_and_answers(tmp_path, fit):
    spec = ModelSpec(
        model=ModelConfig(encoder="tu-test_resnet", encoder_depth=3),
        preprocess=PreprocessConfig(size=(32, 32), fit=fit, context=1),
        kind="volume",
        channels=CHANNELS,
        classes=("lesion",),
    )
    Predictor(spec, architectures.build(spec.model, 6, 1, seed=0)).save(tmp_path)
    model = Predictor.load(tmp_path)
    image = np.random.default_rng(0).normal(100, 20, (2, SLICES_PER_FORWARD + 2, 40, 36)).astype(np.float32)
    found = model.segment(image, 0.5)
    assert found.mask.shape == image.shape[1:]
    moved = image.copy()
    moved[:, 3] += np.random.default_rng(1).normal(0, 20, (2, 40, 36)).astype(np.float32)
    changed = (model.segment(moved, 0.5).foreground != found.foreground).any(axis=(1, 2))
    assert changed[2:5].all()


def test_neighbours_of_pictures_are_refused(tmp_path):
    root = write_folder(tmp_path / "data", cases=6)
    config = settings.load(None, {"data.format": "folder", "data.root": str(root), "preprocess.context": "1"})
    with pytest.raises(InputError, match=r"preprocess\.context has no effect on pictures"):
        dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)


def test_a_training_with_neighbours_is_recorded_with_a_model_that_has_them(tmp_path):
    from segpipe.recording.offline import FolderRecorder
    from segpipe.runtime import process_group
    from segpipe.training import engine, trainer

    small = {
        "model.encoder": "tu-test_resnet",
        "model.encoder_depth": "3",
        "train.epochs": "1",
        "train.batch_size": "4",
    }
    config, dataset = made(tmp_path, **small, **{"preprocess.context": "1"})
    job = trainer.Job(
        config=config, dataset=dataset.folder, key="key", checkpoints=tmp_path / "checkpoints", record=tmp_path
    )
    start = process_group.start(config.train)
    trainer.run(job, dataset, start, FolderRecorder(tmp_path), print, Watched(), engine.never)
    assert Predictor.load(tmp_path / "final_model/weights").spec.preprocess.context == 1
