import numpy as np
import pytest
from conftest import write_folder, write_nifti
from PIL import Image

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.evaluation import trivial
from segpipe.evaluation.trivial import EVERYTHING, MEAN_MASK, NOTHING
from segpipe.metrics import centreline


def painted(root, *masks):
    """A data set of pictures with these masks, each twelve times."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(12 * len(masks)):
        mask = masks[number % len(masks)]
        Image.fromarray(np.full(mask.shape, number, np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


def opened(root, **knobs):
    given = {"data.format": "folder", "data.root": str(root), "preprocess.size": "64", **knobs}
    config = settings.load(None, given)
    folder = root.parent / f"{root.name} dataset"
    return Dataset(folder, dataset_writer.build(config, open_reader(config), folder, lambda *_: None))


def left(height, width, label=1):
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = label
    return mask


@pytest.mark.parametrize("fit", ["resize", "patch"])
@pytest.mark.parametrize("shape", [(40, 160), (96, 64), (20, 20)])
def test_the_mean_of_equal_masks_is_that_mask_on_any_grid_and_in_padded_planes(tmp_path, shape, fit):
    mask = left(*shape)
    dataset = opened(painted(tmp_path / "data", mask), **{"preprocess.fit": fit})
    found = {name: trivial.dice(labels, mask[None], 1) for name, labels in trivial.learn(dataset).items()}
    assert found == {NOTHING: 0.0, EVERYTHING: pytest.approx(2 / 3), MEAN_MASK: pytest.approx(1, abs=0.02)}


def test_the_mean_mask_is_the_picture_with_the_highest_dice_over_all_masks(tmp_path):
    """A third of the masks has the left half, two thirds have its upper half as well: that is where they agree most."""
    upper = left(64, 64)
    upper[32:] = 0
    dataset = opened(painted(tmp_path / "data", left(64, 64), upper, upper))
    labels = trivial.learn(dataset)[MEAN_MASK]
    cases = dataset.where(split="train").cases
    masks = [dataset.stored(case)[1] for case in cases]

    def pooled(picture):
        both = sum(2 * (picture & (mask > 0)).sum() for mask in masks)
        return both / sum(picture.sum() + mask.sum() for mask in masks)

    best = pooled(labels > 0)
    assert best == pytest.approx(max(pooled(left(64, 64)[None] > 0), pooled(upper[None] > 0)))


def test_everything_is_the_class_that_fills_most_and_a_class_that_is_nowhere_is_nothing(tmp_path):
    mask = left(64, 64)
    mask[:8, 40:48] = 2
    dataset = opened(painted(tmp_path / "data", mask), **{"data.classes": "large,small,absent"})
    constants = trivial.learn(dataset)
    np.testing.assert_array_equal(constants[MEAN_MASK], mask[None])
    assert np.unique(constants[EVERYTHING]).tolist() == [1]
    assert trivial.dice(constants[EVERYTHING], mask[None], 3) == pytest.approx((2 / 3 + 0) / 2)


def test_what_is_ignored_counts_neither_in_the_mean_nor_against_it(tmp_path):
    mask = left(64, 64)
    mask[32:] = 9
    dataset = opened(painted(tmp_path / "data", mask), **{"data.ignore_label": "9", "data.classes": "one"})
    labels = trivial.learn(dataset)[MEAN_MASK]
    assert labels[0, :32].sum() == mask[:32].sum()
    reference = dataset.native(dataset.where(split="test").cases[0])[1]
    assert trivial.dice(labels, reference, 1) == 1.0


def test_volumes_have_a_constant_volume(tmp_path):
    dataset = opened(write_nifti(tmp_path / "data"), **{"data.format": "nifti"})
    constants = trivial.learn(dataset)
    assert {labels.shape for labels in constants.values()} == {trivial.CELLS}
    (case, *_) = dataset.where(split="test").cases
    reference = dataset.native(case)[1]
    share = (reference > 0).mean()
    assert trivial.dice(constants[EVERYTHING], reference, 1) == pytest.approx(2 * share / (1 + share))
    assert 0 < trivial.dice(constants[MEAN_MASK], reference, 1) <= 1


def test_silence_where_there_is_nothing_has_no_dice(tmp_path):
    dataset = opened(write_folder(tmp_path / "data"))
    constants, empty = trivial.learn(dataset), np.zeros((1, 40, 36), np.uint8)
    assert np.isnan(trivial.dice(constants[NOTHING], empty, 1))
    assert trivial.dice(constants[EVERYTHING], empty, 1) == 0


# How elongated masks are


def disc(radius):
    y, x = np.mgrid[-40:41, -40:41]
    return y**2 + x**2 <= radius**2


def test_vessels_are_elongated_and_lesions_are_not():
    vessel, ball = np.zeros((90, 90), bool), np.zeros((30, 30, 30), bool)
    vessel[10:80, 20:23] = vessel[40:43, 20:80] = True
    z, y, x = np.mgrid[-15:15, -15:15, -15:15]
    ball[z**2 + y**2 + x**2 < 100] = True
    assert centreline.elongation(vessel) > 30
    for blob in (disc(20), disc(3), ball, np.ones((8, 24), bool)):
        assert centreline.elongation(blob) < 5


def test_components_count_by_their_size():
    both = np.zeros((100, 100), bool)
    both[5:75, 5:75] = disc(30)[5:75, 5:75]
    alone = centreline.elongation(both)
    both[90:93, 10:90] = True
    assert alone < centreline.elongation(both) < 15
    assert np.isnan(centreline.elongation(np.zeros((4, 4), bool)))
