import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import measure

from segpipe.data import components

masks = hnp.arrays(np.uint8, (2, 6, 7), elements=st.integers(0, 2))


def picture(*rows):
    return np.array([[[int(c) if c != "." else 0 for c in row] for row in rows]], np.uint8)


def test_components_touch_by_corners_and_belong_to_one_class():
    mask = picture("1...", ".1..", "..2.", "2...")
    assert components.count(mask) == 3
    np.testing.assert_array_equal(components.label(mask > 0)[0], picture("1...", ".1..", "..1.", "2..."))


def test_an_empty_mask_has_no_component():
    empty = np.zeros((2, 3, 4), np.uint8)
    assert components.count(empty) == 0
    np.testing.assert_array_equal(components.clean(empty, True, 5), empty)


@pytest.mark.parametrize(
    ("largest", "fewest", "left"),
    [
        (False, 0, ("11.2", "11..", "...1", "22..")),
        (False, 2, ("11..", "11..", "....", "22..")),
        (False, 5, ("....", "....", "....", "....")),
        (True, 0, ("11..", "11..", "....", "22..")),
        (True, 3, ("11..", "11..", "....", "....")),
    ],
)
def test_small_components_go_class_by_class(largest, fewest, left):
    mask = picture("11.2", "11..", "...1", "22..")
    np.testing.assert_array_equal(components.clean(mask, largest, fewest), picture(*left))


def test_of_equally_large_components_the_first_is_left():
    np.testing.assert_array_equal(components.clean(picture("11.11"), True, 0), picture("11..."))


def test_slices_that_touch_are_one_component():
    mask = np.zeros((3, 4, 4), np.uint8)
    mask[[0, 1, 2], [0, 1, 2], [2, 1, 0]] = 1
    assert components.count(mask) == 1
    assert components.clean(mask, False, 3).sum() == 3


@given(masks, st.booleans(), st.integers(0, 6))
def test_agrees_with_components_taken_one_at_a_time(mask, largest, fewest):
    expected, total = np.zeros_like(mask), 0
    for number in (1, 2):
        regions = measure.regionprops(measure.label(mask == number, connectivity=3))
        total += len(regions)
        best = max((region.area for region in regions), default=0)
        kept = [region for region in regions if region.area >= fewest and (not largest or region.area == best)]
        for region in kept[:1] if largest else kept:
            expected[tuple(region.coords.T)] = number
    assert components.count(mask) == total
    np.testing.assert_array_equal(components.clean(mask, largest, fewest), expected)
