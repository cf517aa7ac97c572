import io
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from segpipe.data.volume import IGNORE
from segpipe.plots import cases, evidence, style, training


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
    assert cases.busiest_slice(mask) == 2


def test_agreement_has_one_colour_for_each_answer(slices):
    _, reference, predicted = slices
    found = cases._agreement(reference, predicted)
    for where, colour in (
        ((reference == 1) & (predicted == 1), style.HIT),
        ((reference == 1) & (predicted == 0), style.MISSED),
        ((reference == 0) & (predicted == 1), style.FALSE),
        (reference == IGNORE, style.IGNORED),
    ):
        assert where.any()
        np.testing.assert_allclose(found[where], [(*to_rgb(colour), 0.75)] * where.sum(), rtol=1e-6)
    assert not found[(reference == 0) & (predicted == 0)].any()


def test_a_prediction_is_three_panels_with_their_colours(slices, tmp_path):
    image, reference, predicted = slices
    cases.prediction_png(image, reference, predicted, tmp_path / "p.png", "picture")
    shown = pixels(tmp_path / "p.png")
    assert shown.shape == (96 * 3, (3 * 80 + 2) * 3, 3)
    picture, truth, agreement = (shown[:, k * 81 * 3 : (k * 81 + 80) * 3] for k in range(3))
    assert (picture[..., 0] == picture[..., 1]).all()
    assert truth[40 * 3, 38 * 3].argmax() == agreement[40 * 3, 40 * 3].argmax() == 1
    assert agreement[40 * 3, 30 * 3].argmax() == 2
    assert agreement[40 * 3, 51 * 3].argmax() == 0
    cases.prediction_png(image[::-1], reference[::-1], predicted[::-1], tmp_path / "turned.png", "volume")
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), shown)


def test_a_constant_slice_has_a_picture(tmp_path):
    cases.prediction_png(
        *(np.zeros((300, 400), t) for t in (np.float32, np.uint8, np.uint8)), tmp_path / "p.png", "picture"
    )
    assert pixels(tmp_path / "p.png").shape == (300, 1202, 3)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_an_augmented_batch_has_a_picture(slices, count, tmp_path):
    images, labels = (np.stack([a] * count) for a in (slices[0][None], slices[1]))
    names = [f"case{k}" for k in range(count)]
    cases.augmented((images, labels), (images + 1, labels), tmp_path / "a.png", names, "volume")
    shown = pixels(tmp_path / "a.png")
    assert shown.shape[1] == pytest.approx(176 * min(count, 8), abs=1)
    assert shown[shown.shape[0] // 2 :].mean() > shown[: shown.shape[0] // 2].mean()


@pytest.mark.parametrize(
    "dice", [[0.4], [0.1, 0.7, 0.5], [math.nan] * 3, [math.nan, 0.2], list(np.linspace(0, 1, 3000))]
)
def test_curves_are_drawn_for_few_and_many_epochs(dice, tmp_path):
    names = ("train_loss", "val_loss", "train_dice", "learning_rate")
    training.curves([{**dict.fromkeys(names, 0.1 + k), "val_dice": d} for k, d in enumerate(dice)], tmp_path / "c.png")
    assert pixels(tmp_path / "c.png").std() > 10


def test_an_overlay_ignores_what_the_reference_ignores(slices, tmp_path):
    image, reference, predicted = slices
    hidden = np.where(reference == IGNORE, np.uint8(IGNORE), np.uint8(0))
    for truth in (reference, hidden, np.full_like(reference, IGNORE)):
        cases.overlay(image[None, None], truth[None], predicted[None], "a case", tmp_path / "o.png", "picture")
        assert pixels(tmp_path / "o.png").shape[1] == 1320


# --- slices of a case


def decoded(one):
    with Image.open(io.BytesIO(one.webp)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_slice_shows_reference_prediction_and_agreement_in_their_colours(slices):
    image, reference, predicted = (a[None] for a in slices)
    found = cases.slices(image[None], reference, predicted, "picture")
    assert (len(found.shown), found.first, found.size) == (1, 0, (240, 288))
    picture, truth, guess, agreement = np.split(decoded(found.shown[0]), 4, axis=1)
    assert np.abs(picture - picture.mean(axis=2, keepdims=True)).max() < 12
    only_reference, both, only_predicted = (90, 120), (120, 120), (156, 120)
    assert [panel[only_reference[1], only_reference[0]].argmax() for panel in (truth, agreement)] == [2, 2]
    assert [panel[only_predicted[1], only_predicted[0]].argmax() for panel in (guess, agreement)] == [0, 0]
    assert [panel[both[1], both[0]].argmax() for panel in (truth, guess, agreement)] == [2, 0, 1]


@pytest.mark.parametrize(("depth", "busiest"), [(1, 0), (2, 1), (73, 41), (200, 199), (200, 1)])
def test_slices_are_spread_evenly_and_hold_the_busiest(depth, busiest):
    reference = np.zeros((depth, 32, 24), np.uint8)
    reference[busiest, 5:9] = 1
    found = cases.slices(np.zeros((2, *reference.shape), np.float32), reference, reference, "volume", most=9)
    numbers = [one.slice for one in found.shown]
    assert len(numbers) == min(depth, 9)
    assert numbers == sorted(set(numbers))
    assert numbers[found.first] == busiest
    assert max(np.diff(numbers), default=0) <= max(1, 2 * depth / 8)


def test_large_planes_are_made_smaller_and_volumes_turned_upright():
    reference = np.zeros((2, 900, 500), np.uint8)
    reference[:, :300] = 1
    found = cases.slices(np.zeros((1, *reference.shape), np.float32), reference, 0 * reference, "volume")
    assert found.size == (142, 256)
    truth = np.split(decoded(found.shown[0]), 4, axis=1)[1]
    assert truth[-50, 100].max() > 100 > truth[50, 100].max()


# --- what a test showed


def test_characters_that_the_font_lacks_become_boxes():
    assert style.printable("a\N{GREEK SMALL LETTER ALPHA}\n\N{CJK UNIFIED IDEOGRAPH-4E2D}") == "a\u03b1\n\u25a1"


def test_columns_of_the_lineage_follow_the_longest_way():
    nodes = [{"id": "c", "parents": ["a", "b"]}, {"id": "b", "parents": ["a", "gone"]}, {"id": "a", "parents": []}]
    assert evidence._columns(nodes) == {"a": 0, "b": 1, "c": 2}


def test_many_sites_are_drawn_with_a_colour_for_the_rest(tmp_path):
    points = {"PCA": np.random.default_rng(0).normal(size=(40, 2))}
    names, dice = pd.Series([f"$site{i}" for i in range(40)]), pd.Series([math.nan, *[0.5] * 39])
    evidence.embedding(points, names, dice, tmp_path / "e.png")
    assert pixels(tmp_path / "e.png").std() > 10


def test_counts_on_a_logarithmic_axis_are_short():
    assert [evidence._count(value, None) for value in (0.1, 1, 100, 1e4, 2e6, 3e9)] == [
        "",
        "1",
        "100",
        "10k",
        "2M",
        "3G",
    ]


def test_a_confusion_of_nothing_predicted_has_a_picture(tmp_path):
    evidence.confusion(0, 0, 9, 0, tmp_path / "c.png")
    assert pixels(tmp_path / "c.png").std() > 10


@pytest.mark.parametrize("dice", [[0.7, 0.6, math.nan], [math.nan] * 3])
def test_a_leaderboard_has_a_bar_for_each_model_and_says_which_failed(dice, tmp_path):
    known = np.isfinite(dice)
    board = pd.DataFrame({
        "model": ["unet", "fpn", "dpt"],
        "group": np.where(known, ["a", "ab", "-"], None),
        "val_dice": dice,
        "val_dice_ci_low": np.array(dice) - 0.1,
        "val_dice_ci_high": np.array(dice) + 0.1,
        **dict.fromkeys(("seconds_per_epoch", "parameters", "inference_ms"), np.where(known, 3e6, np.nan)),
    })  # fmt: skip
    training.leaderboard(board, tmp_path / "l.png")
    assert pixels(tmp_path / "l.png").std() > 10
