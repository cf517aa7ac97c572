import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import write_nifti
from PIL import Image

from segpipe import evaluation, plots, settings
from segpipe.data import cache
from segpipe.data.readers import open_reader
from segpipe.data.volume import IGNORE
from segpipe.metrics import CONVENTION


def cases(**columns):
    table = {
        "case": ["001", "NA", "c"],
        "patient": ["1", "1", "2"],
        "site": ["s", "s", "t"],
        "outcome": ["found", "both empty", "missed"],
        "dice": [0.8, np.nan, 0.0],
        "iou": [0.7, np.nan, 0.0],
        "precision": [0.9, np.nan, 0.0],
        "recall": [0.6, np.nan, 0.0],
        "volume_error_ml": [1.0, 0.0, 3.0],
    }
    return pd.DataFrame({**table, **columns})


def test_a_table_reads_back_equal_whatever_its_cases_are_called(tmp_path):
    evaluation.save(cases(), {}, tmp_path)
    pd.testing.assert_frame_equal(evaluation.read(tmp_path / "cases.csv"), cases(), check_dtype=False)


def test_a_summary_counts_what_it_leaves_out():
    summary = evaluation.summarise(cases(), 0.5, 200, seed=0)
    dice = summary["metrics"]["dice"]
    assert (dice["n"], dice["n_valid"], dice["mean"]) == (3, 2, 0.4)
    assert summary["metrics"]["volume_error_ml"]["mean"] == pytest.approx(4 / 3)
    assert summary["outcomes"] == {"found": 1, "both empty": 1, "missed": 1}
    assert (summary["patients"], summary["convention"]) == (2, CONVENTION)
    assert evaluation.headline(summary).startswith("test Dice 0.400 [0.000, 0.800], 2 of 3 cases")


def test_pictures_without_a_spacing_have_no_volume_error():
    summary = evaluation.summarise(cases(volume_error_ml=[math.nan] * 3), 0.5, 200, seed=0)
    assert "volume_error_ml" not in summary["metrics"]


def test_best_median_and_worst_are_among_cases_that_have_a_dice():
    assert evaluation.ranked(cases()) == {"best": "001", "median": "001", "worst": "c"}
    assert evaluation.ranked(cases(dice=[np.nan] * 3)) == {}


# --- what is ignored


class Everything:
    """Calls every voxel foreground."""

    spec = SimpleNamespace(channels=("dwi", "adc"), classes=("foreground",))

    def segment(self, image, threshold):
        return SimpleNamespace(mask=np.ones(image.shape[1:], np.uint8))


def test_ignored_voxels_count_in_no_metric_and_no_volume(tmp_path):
    root = write_nifti(tmp_path / "data")
    for path in (root / "derivatives").rglob("*_msk.nii.gz"):
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[:18] = 9
        nib.save(nib.Nifti1Image(values, image.affine), path)
    knobs = {"data.format": "nifti", "data.root": str(root), "data.ignore_label": "9", "preprocess.size": "32"}
    config = settings.load(None, knobs)
    manifest = cache.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    table = evaluation.evaluate(Everything(), manifest, tmp_path / "dataset", 0.5, lambda *_: None)
    kept, voxel_ml = 3 * 40 * 18, 2 * 2 * 5 / 1000
    for row, case in zip(table.to_dict("records"), manifest.of("test"), strict=True):
        wanted = case.voxels["foreground"]
        assert (row["predicted_voxels"], row["reference_voxels"]) == (kept, wanted)
        assert row["predicted_ml"] == pytest.approx(kept * voxel_ml)
        assert row["volume_error_ml"] == pytest.approx((kept - wanted) * voxel_ml)
        assert row["dice"] == pytest.approx(2 * wanted / (kept + wanted) if wanted else 0)


# --- pictures


@pytest.fixture
def slices():
    """Image, reference with an ignored strip, and prediction, each 96,80."""
    y, x = np.mgrid[:96, :80]
    reference, predicted = (((y - 40) ** 2 + (x - c) ** 2 < 100).astype(np.uint8) for c in (38, 43))
    image = np.random.default_rng(0).normal(0, 0.1, (96, 80)) + reference
    reference[:, 70:] = IGNORE
    predicted[:10, 75:] = 1
    return image.astype(np.float32), reference, predicted


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_busiest_slice_is_not_the_most_ignored_one():
    mask = np.zeros((3, 4, 4), np.uint8)
    mask[0], mask[2, 0, 0] = IGNORE, 1
    assert plots.busiest_slice(mask) == 2


def test_agreement_has_one_colour_for_each_answer(slices):
    _, reference, predicted = slices
    found = plots._agreement(reference, predicted)
    for where, colour in (
        ((reference == 1) & (predicted == 1), plots.HIT),
        ((reference == 1) & (predicted == 0), plots.MISSED),
        ((reference == 0) & (predicted == 1), plots.FALSE),
        (reference == IGNORE, plots.IGNORED),
    ):
        assert where.any()
        np.testing.assert_allclose(found[where], [(*plots.to_rgb(colour), 0.75)] * where.sum(), rtol=1e-6)
    assert not found[(reference == 0) & (predicted == 0)].any()


def test_a_prediction_is_three_panels_with_their_colours(slices, tmp_path):
    image, reference, predicted = slices
    plots.prediction_png(image, reference, predicted, tmp_path / "p.png")
    shown = pixels(tmp_path / "p.png")
    assert shown.shape == (96 * 3, (3 * 80 + 2) * 3, 3)
    picture, truth, agreement = (shown[:, k * 81 * 3 : (k * 81 + 80) * 3] for k in range(3))
    assert (picture[..., 0] == picture[..., 1]).all()
    assert truth[40 * 3, 38 * 3].argmax() == agreement[40 * 3, 40 * 3].argmax() == 1
    assert agreement[40 * 3, 30 * 3].argmax() == 2
    assert agreement[40 * 3, 51 * 3].argmax() == 0
    plots.prediction_png(image[::-1], reference[::-1], predicted[::-1], tmp_path / "turned.png", volume=True)
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), shown)


def test_a_constant_slice_has_a_picture(tmp_path):
    plots.prediction_png(*(np.zeros((300, 400), t) for t in (np.float32, np.uint8, np.uint8)), tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").shape == (300, 1202, 3)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_an_augmented_batch_has_a_picture(slices, count, tmp_path):
    images, labels = (np.stack([a] * count) for a in (slices[0][None], slices[1]))
    names = [f"case{k}" for k in range(count)]
    plots.augmented(images, labels, images + 1, labels, tmp_path / "a.png", names, volume=True)
    shown = pixels(tmp_path / "a.png")
    assert shown.shape[1] == pytest.approx(176 * min(count, 8), abs=1)
    assert shown[shown.shape[0] // 2 :].mean() > shown[: shown.shape[0] // 2].mean()


@pytest.mark.parametrize(
    "dice", [[0.4], [0.1, 0.7, 0.5], [math.nan] * 3, [math.nan, 0.2], list(np.linspace(0, 1, 3000))]
)
def test_curves_are_drawn_for_few_and_many_epochs(dice, tmp_path):
    names = ("train_loss", "val_loss", "train_dice", "learning_rate")
    plots.curves([{**dict.fromkeys(names, 0.1 + k), "val_dice": d} for k, d in enumerate(dice)], tmp_path / "c.png")
    assert pixels(tmp_path / "c.png").std() > 10


def test_an_overlay_ignores_what_the_reference_ignores(slices, tmp_path):
    image, reference, predicted = slices
    hidden = np.where(reference == IGNORE, np.uint8(IGNORE), np.uint8(0))
    for truth in (reference, hidden, np.full_like(reference, IGNORE)):
        plots.overlay(image[None, None], truth[None], predicted[None], "a case", tmp_path / "o.png")
        assert pixels(tmp_path / "o.png").shape[1] == 1320
