"""Which masks are looked at first."""

import math

import numpy as np
import pytest
import torch
from cleanlab.segmentation.rank import get_label_quality_scores
from conftest import write_folder
from PIL import Image
from test_inference import by_hand
from torch import nn

from segpipe.config import settings
from segpipe.config.sections import EvaluateConfig
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.data.volume import IGNORE
from segpipe.evaluation import choosing, suspects

SHAPE = (1, 12, 9)
# Sums of so many terms, each rounded, in whichever order.
ROUNDING = 4 * math.prod(SHAPE) * np.finfo(np.float64).eps


def draw(seed, classes=1):
    """Foreground probabilities float32, most probable classes and a reference, D,h,w each."""
    rng = np.random.default_rng(seed)
    foreground = rng.beta(0.5, 0.5, SHAPE).astype(np.float32)
    labels = rng.integers(1, classes + 1, SHAPE).astype(np.uint8)
    return foreground, labels, rng.integers(0, classes + 1, SHAPE).astype(np.uint8)


def oracle(probabilities, reference):
    """The score of cleanlab, from the probabilities K,h,w of background and classes."""
    ((found,), _) = get_label_quality_scores(
        reference.astype(np.int64), probabilities[None], method="softmin", temperature=0.1, verbose=False
    )
    return found


# --- the score


@pytest.mark.parametrize("seed", range(5))
def test_the_score_of_one_class_is_that_of_cleanlab(seed):
    foreground, labels, reference = draw(seed)
    (p,) = foreground.astype(np.float64)
    wanted = oracle(np.stack([1 - p, p]), reference)
    assert suspects.score(foreground, labels, reference) == pytest.approx(wanted, rel=ROUNDING)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_of_several_classes_is_that_of_cleanlab_where_each_pixel_is_between_two_labels(seed):
    foreground, labels, reference = draw(seed, classes=3)
    probabilities = np.zeros((4, *SHAPE[1:]))
    (p,) = foreground.astype(np.float64)
    probabilities[0] = 1 - p
    np.put_along_axis(probabilities, labels.astype(np.int64), p[None], axis=0)
    reference = np.where(reference == labels, reference, 0).astype(np.uint8)
    wanted = oracle(probabilities, reference)
    assert suspects.score(foreground, labels, reference) == pytest.approx(wanted, rel=ROUNDING)


@pytest.mark.parametrize("seed", range(5))
def test_another_class_than_the_most_probable_counts_little_where_the_model_is_sure_of_either(seed):
    foreground, labels, reference = draw(seed, classes=3)
    other = (reference != labels) & (reference > 0)
    found = suspects.quality(foreground, labels, reference)[other.ravel()]
    p = foreground[other].astype(np.float64)
    assert (found <= 0.5).all()
    np.testing.assert_array_equal(found, np.where(p < 0.5, p, 1 - p))


def planes(*values):
    return np.array(values, dtype=np.float32)[None, None]


def test_a_model_that_is_sure_of_every_label_scores_one():
    reference = np.array([[[0, 1, 2, 0]]], np.uint8)
    assert suspects.score(planes(0, 1, 1, 0), np.array([[[1, 1, 2, 2]]], np.uint8), reference) == 1


@pytest.mark.parametrize("size", [2, 100, 10_000])
def test_one_wrong_pixel_among_many_weighs_as_the_softmin_says(size):
    foreground, labels = np.zeros((1, 1, size), np.float32), np.ones((1, 1, size), np.uint8)
    reference = np.zeros((1, 1, size), np.uint8)
    reference[..., 0] = 1
    right = (size - 1) * math.exp(-10)
    assert suspects.score(foreground, labels, reference) == pytest.approx(right / (1 + right), rel=size * 1e-15)


def test_a_class_for_another_and_a_missed_one_are_suspicious_alike():
    reference, labels = np.array([[[2, 2]]], np.uint8), np.array([[[1, 1]]], np.uint8)
    swapped, missed = (suspects.score(planes(p, p), labels, reference) for p in (1.0, 0.0))
    assert swapped == missed == 0


def test_what_is_ignored_counts_nowhere():
    foreground, labels, reference = draw(0)
    hidden = reference.copy()
    hidden[:, 6:] = IGNORE
    seen = suspects.score(foreground[:, :6], labels[:, :6], reference[:, :6])
    assert suspects.score(foreground, labels, hidden) == pytest.approx(seen, rel=ROUNDING)
    assert math.isnan(suspects.score(foreground, labels, np.full_like(reference, IGNORE)))


def test_a_volume_is_scored_over_all_its_slices_together():
    foreground, labels, reference = draw(0)
    whole = [array.reshape(4, 3, 9) for array in (foreground, labels, reference)]
    assert suspects.score(*whole) == pytest.approx(suspects.score(foreground, labels, reference), rel=ROUNDING)


def test_the_lowest_come_first_and_what_has_no_score_last():
    scores = [0.5, math.nan, 0.1, 0.5, *[0.9] * suspects.COUNT]
    assert suspects.lowest(scores) == [2, 0, 3, 4, 5, 6]
    assert suspects.lowest([math.nan]) == suspects.lowest([]) == []
    table = suspects.table([(f"c{k}", f"p{k}") for k in range(3)], [0.2, math.nan, 0.1], np.array([0.3, 0.4, np.nan]))
    assert tuple(table) == suspects.COLUMNS
    assert list(table["case"]) == ["c2", "c0", "c1"]
    assert list(table["patient"]) == ["p2", "p0", "p1"]
    np.testing.assert_array_equal(table["dice"], [np.nan, 0.3, 0.4])


# --- a planted mask


class Bright(nn.Module):
    """Says that what is bright is foreground."""

    def forward(self, images):
        return 6 * (images[:, :1] - torch.tensor(1.2))


def swapped(mask):
    return mask[::-1, ::-1]


def shifted(mask):
    return np.roll(mask, 8, axis=(0, 1))


def emptied(mask):
    return np.zeros_like(mask)


@pytest.mark.parametrize(
    ("spoil", "knobs"),
    [(swapped, {}), (shifted, {"threshold": 0.97}), (emptied, {"tta": "auto", "postprocess": "auto"})],
)
def test_a_planted_wrong_mask_comes_first(tmp_path, spoil, knobs):
    root, validation = write_folder(tmp_path / "data", cases=12), range(3, 12)
    splits = [f"case{k},{'val' if k in validation else ('train', 'test')[k % 2]}" for k in range(12)]
    (root / "cases.csv").write_text("\n".join(["case,split", *splits]), encoding="utf-8")
    path = root / "masks" / "case7.png"
    Image.fromarray(np.ascontiguousarray(spoil(np.asarray(Image.open(path))))).save(path)
    config = settings.load(None, {"data.format": "folder", "data.root": str(root), "preprocess.size": "32"})
    manifest = dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    dataset = Dataset(tmp_path / "dataset", manifest)
    table, labels = choosing.choose(by_hand(Bright()), dataset, EvaluateConfig(**knobs)).look_first
    assert table["case"][0] == table["patient"][0] == "case7"
    assert table["score"][0] < 0.5 * table["score"][1]
    assert table["score"].is_monotonic_increasing
    assert set(table["case"]) == {f"case{k}" for k in validation}
    assert table["dice"][0] == table["dice"].min()
    assert len(labels) == suspects.COUNT < len(table)
    records = {case.case: case for case in manifest.of("val")}
    for name, dice, found in zip(table["case"], table["dice"], labels, strict=False):
        reference = dataset.stored(records[name])[1]
        assert (found.shape, found.dtype) == (reference.shape, np.uint8)
        assert dice == pytest.approx(2 * (found & reference).sum() / (found.sum() + reference.sum()), abs=1e-9)
