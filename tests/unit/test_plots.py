import io
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from segpipe.data.volume import IGNORE
from segpipe.plots import cases, colours, evidence, style, training

ONE, TWO = ("foreground",), ("wall", "lumen")


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


def test_the_slice_that_differs_most_is_where_most_voxels_that_count_are_of_another_label():
    reference, predicted = np.zeros((2, 3, 4, 4), np.uint8)
    reference[0] = predicted[0] = predicted[1] = 1
    reference[1] = IGNORE
    assert cases.differing_slice(reference, predicted) == 0
    reference[2, 0, 0], predicted[2, 0, 0] = 1, 2
    assert cases.differing_slice(reference, predicted) == 2


def test_agreement_has_one_colour_for_each_answer(slices):
    _, reference, predicted = slices
    found = cases._agreement(reference, predicted)
    for where, colour in (
        ((reference == 1) & (predicted == 1), colours.HIT),
        ((reference == 1) & (predicted == 0), colours.MISSED),
        ((reference == 0) & (predicted == 1), colours.FALSE),
        (reference == IGNORE, colours.IGNORED),
    ):
        assert where.any()
        np.testing.assert_allclose(found[where], [(*to_rgb(colour), 0.75)] * where.sum(), rtol=1e-6)
    assert not found[(reference == 0) & (predicted == 0)].any()


def test_a_prediction_is_three_panels_with_their_colours(slices, tmp_path):
    image, reference, predicted = slices
    cases.prediction_png(image[None], reference, predicted, tmp_path / "p.png", "picture", ONE)
    shown = pixels(tmp_path / "p.png")
    assert shown.shape == (96 * 3, (3 * 80 + 2) * 3, 3)
    picture, truth, agreement = (shown[:, k * 81 * 3 : (k * 81 + 80) * 3] for k in range(3))
    assert (picture[..., 0] == picture[..., 1]).all()
    assert truth[40 * 3, 38 * 3].argmax() == agreement[40 * 3, 40 * 3].argmax() == 1
    assert agreement[40 * 3, 30 * 3].argmax() == 2
    assert agreement[40 * 3, 51 * 3].argmax() == 0
    cases.prediction_png(image[None, ::-1], reference[::-1], predicted[::-1], tmp_path / "turned.png", "volume", ONE)
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), shown)


def test_a_constant_slice_has_a_picture(tmp_path):
    cases.prediction_png(
        np.zeros((1, 300, 400), np.float32), *np.zeros((2, 300, 400), np.uint8), tmp_path / "p.png", "picture", ONE
    )
    assert pixels(tmp_path / "p.png").shape == (300, 1202, 3)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_an_augmented_batch_has_a_picture(slices, count, tmp_path):
    images, labels = (np.stack([a] * count) for a in (slices[0][None], slices[1]))
    names = [f"case{k}" for k in range(count)]
    cases.augmented((images, labels), (images + 1, labels), tmp_path / "a.png", names, "volume", ONE)
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


def loss_axis(history, tmp_path, monkeypatch):
    """The title and the scale of the loss, as drawn."""
    seen, tame = [], training._tame

    def spy(axes, values):
        told = tame(axes, values)
        seen.append((told, axes.get_yscale()))
        return told

    monkeypatch.setattr(training, "_tame", spy)
    names = ("val_loss", "train_dice", "val_dice", "learning_rate")
    training.curves([{**dict.fromkeys(names, 0.1), "train_loss": loss} for loss in history], tmp_path / "c.png")
    return seen[0]


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ([1.0, 0.9, 0.8, 0.7], ("", "linear")),
        ([5000.0, 0.9, 0.8, 0.7, 0.6], (" (log scale)", "log")),
        ([5000.0, 0.9, -0.1, 0.7, 0.6], (" (cut off above)", "linear")),
        ([math.nan, math.nan], ("", "linear")),
    ],
)
def test_a_wild_first_epoch_does_not_flatten_the_losses(history, told, tmp_path, monkeypatch):
    assert loss_axis(history, tmp_path, monkeypatch) == told


def test_an_overlay_ignores_what_the_reference_ignores(slices, tmp_path):
    image, reference, predicted = slices
    hidden = np.where(reference == IGNORE, np.uint8(IGNORE), np.uint8(0))
    for truth in (reference, hidden, np.full_like(reference, IGNORE)):
        cases.overlay(image[None, None], truth[None], predicted[None], "a case", tmp_path / "o.png", "picture", ONE)
        assert pixels(tmp_path / "o.png").shape[1] == 1320


# --- several classes, and colour


def class_colour(k):
    return np.array(to_rgb(colours.CLASSES[k])) * 255


def test_twenty_class_colours_differ():
    assert len(set(colours.CLASSES)) == len(colours.CLASSES) == 20
    rgb = np.array([to_rgb(colour) for colour in colours.CLASSES])
    assert np.linalg.norm(rgb[:, None] - rgb[None], axis=2)[~np.eye(20, dtype=bool)].min() > 0.1
    assert colours.class_colours(["only"]) == (colours.FALSE,)
    assert colours.class_colours([str(k) for k in range(25)])[20:] == colours.CLASSES[:5]


@pytest.fixture
def coloured():
    """A picture of three colours, with two classes that the prediction swaps."""
    image = np.zeros((3, 1, 64, 64), np.float32)
    image[0, :, :, :32] = image[1, :, :, 32:] = 1
    reference = np.zeros((1, 64, 64), np.uint8)
    reference[:, 10:20, 10:20], reference[:, 40:50, 40:50] = 1, 2
    return image, reference, np.where(reference == 1, 2, np.where(reference == 2, 1, reference)).astype(np.uint8)


def test_classes_have_their_colours_and_pictures_theirs(coloured):
    found = cases.slices(*coloured, "picture", TWO)
    picture, truth, guess, agreement = np.split(decoded(found.shown[0]), 4, axis=1)
    one, two, ground = (45, 45), (135, 135), (90, 30)
    assert picture[ground].argmax() == 0
    assert picture[ground[0], 150].argmax() == 1
    for panel, place, k in ((truth, one, 0), (truth, two, 1), (guess, one, 1), (guess, two, 0)):
        behind = 0.25 * picture[place]
        near = np.linalg.norm([panel[place] - behind - 0.75 * class_colour(c) for c in range(20)], axis=1)
        assert int(near.argmin()) == k
    missed = 0.75 * np.array(to_rgb(colours.MISSED)) * 255
    for place in (one, two):
        np.testing.assert_allclose(agreement[place], missed + 0.25 * picture[place], atol=12)


def test_several_classes_have_a_legend(coloured, tmp_path):
    image, reference, predicted = coloured
    names = ("a rather long name of a class", "another one", *(f"class {k}" for k in range(9)))
    cases.prediction_png(image[:, 0], reference[0], predicted[0], tmp_path / "p.png", "picture", names)
    cases.prediction_png(image[:, 0], reference[0], predicted[0], tmp_path / "one.png", "picture", ONE)
    shown, plain = pixels(tmp_path / "p.png"), pixels(tmp_path / "one.png")
    assert shown.shape[1] == (4 * 64 + 3) * 3 > plain.shape[1]
    below = shown[plain.shape[0] :]
    assert all((np.abs(below - class_colour(k)).max(axis=2) < 2).any() for k in range(11))
    for name in ("o", "m"):
        classes = TWO if name == "m" else ONE
        cases.overlay(image, reference, predicted, "a case", tmp_path / f"{name}.png", "picture", classes)
    assert (pixels(tmp_path / "m.png") != pixels(tmp_path / "o.png")).any()


# --- slices of a case


def decoded(one):
    with Image.open(io.BytesIO(one.webp)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_slice_shows_reference_prediction_and_agreement_in_their_colours(slices):
    image, reference, predicted = (a[None] for a in slices)
    found = cases.slices(image[None], reference, predicted, "picture", ONE)
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
    found = cases.slices(np.zeros((2, *reference.shape), np.float32), reference, reference, "volume", ONE, most=9)
    numbers = [one.slice for one in found.shown]
    assert len(numbers) == min(depth, 9)
    assert numbers == sorted(set(numbers))
    assert numbers[found.first] == busiest
    assert max(np.diff(numbers), default=0) <= max(1, 2 * depth / 8)


def test_large_planes_are_made_smaller_and_volumes_turned_upright():
    reference = np.zeros((2, 900, 500), np.uint8)
    reference[:, :300] = 1
    found = cases.slices(np.zeros((1, *reference.shape), np.float32), reference, 0 * reference, "volume", ONE)
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
