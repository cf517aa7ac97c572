import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from skimage.measure import label

from segpipe.metrics import lesions
from segpipe.metrics.lesions import Tally

masks = hnp.arrays(np.bool_, (3, 7, 6))


def picture(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def test_lesions_are_found_by_a_single_voxel_and_may_share_a_prediction():
    reference = picture("##..#...", "##..#...", "........", "#......#")
    prediction = picture(".####...", "........", ".....#..", "#.......")
    found = lesions.match(prediction, reference)
    np.testing.assert_array_equal(found.sizes, [4, 2, 1, 1])
    np.testing.assert_array_equal(found.found, [True, True, True, False])
    np.testing.assert_array_equal(found.predicted_sizes, [4, 1, 1])
    np.testing.assert_array_equal(found.true, [True, False, True])
    assert lesions.tally([found]) == Tally(lesions=4, found=3, predicted=3, false=1)
    assert lesions.scores(lesions.tally([found])) == {
        "lesion_recall": 3 / 4,
        "lesion_precision": 2 / 3,
        "lesion_f1": 3 / (3 + (1 + 1) / 2),
    }


def test_a_lesion_in_pieces_is_found_once():
    reference, prediction = picture("#######"), picture("#.#.#.#")
    tally = lesions.tally([lesions.match(prediction, reference)])
    assert tally == Tally(1, 1, 4, 0)
    assert set(lesions.scores(tally).values()) == {1.0}


def test_voxels_that_touch_by_a_corner_are_one_lesion():
    flat = np.eye(3, dtype=bool)
    solid = np.zeros((3, 3, 3), bool)
    solid[[0, 1, 2], [0, 1, 2], [2, 1, 0]] = True
    for mask in (flat, solid):
        np.testing.assert_array_equal(lesions.match(mask, mask).sizes, [3])


@pytest.mark.parametrize(
    ("tally", "value"),
    [(Tally(0, 0, 0, 0), np.nan), (Tally(2, 0, 0, 0), 0), (Tally(0, 0, 3, 3), 0), (Tally(2, 2, 1, 0), 1)],
)
def test_scores_follow_the_convention_for_empty_masks(tally, value):
    np.testing.assert_array_equal(list(lesions.scores(tally).values()), value)


@given(masks, masks)
def test_agrees_with_components_taken_one_at_a_time(prediction, reference):
    parts, number = label(reference, connectivity=3, return_num=True)
    found = lesions.match(prediction, reference)
    each = [parts == i + 1 for i in range(number)]
    assert sorted(zip(found.sizes.tolist(), found.found.tolist(), strict=True)) == sorted(
        (int(one.sum()), bool((one & prediction).any())) for one in each
    )
    mirrored = lesions.match(reference, prediction)
    np.testing.assert_array_equal(mirrored.sizes, found.predicted_sizes)
    np.testing.assert_array_equal(mirrored.found, found.true)


@given(masks, masks)
def test_counts_of_cases_add_up(one, other):
    first, second = lesions.match(one, other), lesions.match(other, one)
    total = lesions.tally([first, second])
    np.testing.assert_array_equal(total, np.add(lesions.tally([first]), lesions.tally([second])))
