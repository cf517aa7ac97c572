"""Cases that are worked on at another scale than their own, and answers on their own grid."""

import numpy as np
import pytest
import torch
from conftest import training_set, write_folder, write_nifti
from torch import nn

from segpipe.config import settings
from segpipe.config.sections import EvaluateConfig, ModelConfig, PreprocessConfig
from segpipe.data import dataset_writer, transform
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.evaluation import measuring
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import Labelling, ModelSpec

SPACING = (5.0, 2.0, 1.5)


def knobs(**given):
    return PreprocessConfig(size=(32, 32), fit="patch", **given)


def predictor(config, network, channels=("grey",)):
    spec = ModelSpec(model=ModelConfig(), preprocess=config, kind="picture", channels=channels, classes=("vessel",))
    return Predictor(spec, network)


class Bright(nn.Module):
    """Says how bright each pixel is."""

    def forward(self, images):
        return 10 * images[:, :1]

    def features(self, images):
        return images


@pytest.mark.parametrize(
    ("given", "plane", "spacing", "expected"),
    [
        ({}, (40, 36), None, (40, 36)),
        ({"longest": 80}, (40, 20), None, (80, 40)),
        ({"longest": 30}, (40, 36), SPACING, (30, 27)),
        ({"longest": 10}, (1000, 3), None, (10, 1)),
        ({"spacing": 1}, (40, 36), SPACING, (80, 54)),
        ({"spacing": (4, 1.5)}, (40, 36), SPACING, (20, 36)),
        ({"spacing": 900}, (40, 36), SPACING, (1, 1)),
    ],
)
def test_the_plane_that_is_worked_on_follows_from_the_knobs(given, plane, spacing, expected):
    assert transform.working_plane(plane, spacing, knobs(**given)) == expected


def test_a_case_without_the_spacing_that_is_needed_is_refused():
    with pytest.raises(InputError, match=r"no spacing, and preprocess.spacing asks for 1 x 2 mm"):
        transform.working_plane((40, 36), None, knobs(spacing=(1, 2)))
    with pytest.raises(InputError, match="no spacing"):
        predictor(knobs(spacing=1), Bright()).prepare(np.zeros((1, 1, 40, 36), dtype=np.float32))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"preprocess.longest": "64"}, "preprocess.longest has no effect with preprocess.fit=resize"),
        ({"preprocess.spacing": "1"}, "preprocess.spacing has no effect with preprocess.fit=resize"),
        ({"preprocess.fit": "patch", "preprocess.longest": "64", "preprocess.spacing": "1,2"}, "leave out one"),
        ({"preprocess.fit": "patch", "preprocess.spacing": "0"}, "preprocess.spacing=0"),
        ({"preprocess.fit": "patch", "preprocess.spacing": "1,2,3"}, "preprocess.spacing=1,2,3"),
    ],
)
def test_a_scale_without_effect_or_sense_is_refused(given, told):
    with pytest.raises(InputError, match=told):
        settings.load(None, {"data.format": "phantom", **given})


def test_labels_become_those_with_the_largest_share():
    labels = np.zeros((1, 4, 6), dtype=np.uint8)
    labels[0, :2, :2], labels[0, 2:, 2:4], labels[0, 0, 4:] = 2, IGNORE, 1
    small = transform.resampled_labels(labels, (2, 3))
    assert small.dtype == np.uint8
    assert small[0].tolist() == [[2, 0, 0], [0, IGNORE, 0]]
    assert transform.resampled_labels(labels, (4, 6)) is labels
    large = transform.resampled_labels(labels, (8, 12))
    assert set(np.unique(large)) == {0, 1, 2, IGNORE}
    assert (large[0, 1:3, 1:3] == 2).all()


def test_an_image_is_averaged_over_what_a_pixel_covers():
    checked = np.indices((8, 8)).sum(axis=0)[None, None] % 2
    assert np.ptp(transform.resampled(checked.astype(np.float32), (4, 4))[0, 0, 1:3, 1:3]) < 1e-6


@pytest.mark.parametrize("kind", ["folder", "nifti"])
def test_training_cases_are_kept_at_the_scale_and_test_cases_as_acquired(tmp_path, kind):
    write, given = (
        (write_folder, {"preprocess.longest": "60"}) if kind == "folder" else (write_nifti, {"preprocess.spacing": "1"})
    )
    root = write(tmp_path / "data", cases=6)
    shared = {"data.format": kind, "data.root": str(root), "preprocess.fit": "patch", "preprocess.size": "32"}
    own, other = (
        Dataset(tmp_path / name, dataset_writer.build(config, open_reader(config), tmp_path / name, lambda *_: None))
        for name, config in (("own", settings.load(None, shared)), ("other", settings.load(None, shared | given)))
    )
    for before, after in zip(own.manifest.cases, other.manifest.cases, strict=True):
        assert (before.case, before.shape, before.voxels) == (after.case, after.shape, after.voxels)
        (image, labels), (small, small_labels) = other.stored(after), own.stored(before)
        if after.split == "test":
            assert after.plane is None
            np.testing.assert_array_equal(image, small)
            continue
        assert labels.shape == image.shape[1:] == (before.shape[0], *after.plane)
        assert max(after.plane) == (60 if kind == "folder" else 80)
        share = (labels == 1).mean() / (small_labels == 1).mean()
        assert 0.9 < share < 1.1
    train = Batches(other.where(split="train"), settings.load(None, shared).train, torch.device("cpu"), training=True)
    assert train.samples.labels[0].shape[1:] == other.manifest.of("train")[0].plane


def test_a_case_without_spacing_is_named_when_the_data_set_is_made(tmp_path):
    given = {"preprocess.fit": "patch", "preprocess.spacing": "1", "preprocess.size": "32"}
    root = write_folder(tmp_path / "data", cases=6)
    config = settings.load(None, {"data.format": "folder", "data.root": str(root), **given})
    with pytest.raises(InputError, match=r"case 'case\d+': no spacing, and preprocess.spacing asks for 1 x 1 mm"):
        dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize(
    ("given", "spacing"), [({"longest": 48}, None), ({"longest": 200}, None), ({"spacing": 3}, SPACING)]
)
def test_the_answer_lies_on_the_images_own_grid(given, spacing, tta):
    image = np.ones((1, 2, 100, 70), dtype=np.float32)
    image[0, :, 20:60, 30:60] = 2
    found = predictor(knobs(**given), Bright()).segment(image, 0.5, tta, spacing)
    assert found.mask.shape == found.foreground.shape == image.shape[1:]
    both = 2 * (found.mask & (image[0] > 1)).sum() / (found.mask.sum() + (image[0] > 1).sum())
    assert both > 0.95
    assert (found.variance is not None) == tta


def test_a_stored_case_is_not_resampled_twice(tmp_path):
    config, manifest, folder = training_set(tmp_path, **{"preprocess.fit": "patch", "preprocess.longest": "60"})
    dataset, model = Dataset(folder, manifest), predictor(config.preprocess, Bright())
    case = dataset.where(split="val").cases[0]
    image, labels = dataset.stored(case)
    assert model.label(model.fit(image.astype(np.float32)), 0.5).mask.shape == labels.shape


def test_an_evaluation_is_on_the_own_grid_and_the_model_remembers_its_scale(tmp_path):
    from segpipe.models import architectures

    config, manifest, folder = training_set(tmp_path, **{"preprocess.fit": "patch", "preprocess.longest": "60"})
    dataset = Dataset(folder, manifest)
    spec = ModelSpec(
        model=config.model, preprocess=manifest.preprocess, kind="picture", channels=("grey",), classes=("foreground",)
    )
    Predictor(spec, architectures.build(config.model, 1, 1, 0)).save(tmp_path / "model")
    model = Predictor.load(tmp_path / "model")
    assert model.spec.preprocess.longest == 60
    found = measuring.evaluate(model, dataset, Labelling(0.5), EvaluateConfig(), lambda *_: None)
    pixels = [int(np.prod(case.shape)) for case in dataset.where(split="test").cases]
    assert int(found.whole.sum()) == sum(pixels)
