import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.config import settings
from segpipe.config.sections import PreprocessConfig
from segpipe.data.transform import Fit, normalise
from segpipe.errors import InputError

sides = st.integers(5, 70)


def volume(channels, depth, height, width, seed=0):
    return np.random.default_rng(seed).normal(100, 20, (channels, depth, height, width)).astype(np.float32)


@given(sides, sides, st.sampled_from(["resize", "crop"]))
def test_every_size_fits_and_comes_back(height, width, fit):
    config = PreprocessConfig(size=(48, 32), fit=fit)
    way = Fit((height, width), config)
    image = volume(2, 3, height, width)
    slices = way.image(image)
    assert slices.shape == (3, 2, 48, 32)
    assert way.mask(np.ones((3, height, width), np.uint8)).shape == (3, 48, 32)
    assert way.back(slices).shape == image.shape


def test_crop_gives_back_exactly_what_it_kept():
    config = PreprocessConfig(size=(32, 32), fit="crop")
    image = volume(1, 2, 20, 50)
    back = Fit((20, 50), config).back(Fit((20, 50), config).image(image))
    np.testing.assert_array_equal(back[..., 9:41], image[..., 9:41])
    assert not back[..., :9].any()
    assert not back[..., 41:].any()


def test_resize_keeps_the_aspect_ratio_and_pads_the_rest():
    fit = Fit((100, 50), PreprocessConfig(size=(32, 32)))
    mask = fit.mask(np.ones((1, 100, 50), np.uint8))[0]
    assert mask.sum() == 32 * 16
    assert mask[:, 8:24].all()


def test_a_mask_survives_the_way_there_and_back():
    reference = np.zeros((1, 60, 60), np.uint8)
    reference[0, 20:45, 15:40] = 1
    fit = Fit((60, 60), PreprocessConfig(size=(96, 96)))
    back = fit.back(fit.mask(reference)[:, None].astype(np.float32))[0] >= 0.5
    np.testing.assert_array_equal(back, reference.astype(bool))


def test_zscore_is_that_of_the_voxels_that_are_not_background():
    image = volume(2, 4, 30, 30)
    image[:, :, :15] = 0
    result = normalise(image, PreprocessConfig(clip_low=0, clip_high=100))
    inside = result[:, :, 15:]
    np.testing.assert_allclose(inside.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(inside.std(axis=(1, 2, 3)), 1, atol=1e-4)


def test_minmax_spans_zero_to_one_after_clipping():
    image = volume(1, 1, 40, 40)
    image[0, 0, 0, 0] = 1e6
    result = normalise(image, PreprocessConfig(normalise="minmax"))
    assert (result.min(), result.max()) == (0, 1)
    assert np.median(result) == pytest.approx(0.5, abs=0.1)


def test_a_line_of_pixels_fits_too():
    fit = Fit((1000, 2), PreprocessConfig())
    assert fit.back(fit.image(volume(1, 1, 1000, 2))).shape == (1, 1, 1000, 2)


def test_tiny_units_are_not_taken_for_a_constant():
    image = volume(1, 1, 20, 20)
    config = PreprocessConfig()
    np.testing.assert_allclose(normalise(image * np.float32(1e-11), config), normalise(image, config), atol=1e-3)


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.floats(1, 1e6, width=32)),
    st.floats(0, 49),
    st.floats(51, 100),
    st.booleans(),
)
def test_an_image_is_clipped_at_the_percentiles_of_numpy_to_the_bit(values, low, high, beside_background):
    background = np.zeros(3 if beside_background else 0, np.float32)
    image = np.concatenate([background, values])[None, None, None]
    clipped = np.clip(values, *np.percentile(values, [low, high]).astype(np.float32))
    spread = clipped.std()
    expected = (clipped - clipped.mean()) / (spread if spread > 1e-6 * clipped.max() else 1)
    result = normalise(image, PreprocessConfig(clip_low=low, clip_high=high))
    np.testing.assert_array_equal(result[0, 0, 0, len(background) :], expected)


def test_normalising_leaves_the_image_as_it_was():
    image = volume(2, 3, 20, 20)
    before = image.copy()
    normalise(image, PreprocessConfig())
    np.testing.assert_array_equal(image, before)


def test_padding_may_be_that_of_a_larger_volume():
    image = volume(2, 3, 20, 30)
    way = Fit((20, 30), PreprocessConfig(size=(32, 32)))
    lowest = image.min(axis=(1, 2, 3))
    np.testing.assert_array_equal(way.image(image[:, 1:2], lowest), way.image(image)[1:2])


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_becomes_zero(value):
    result = normalise(np.full((1, 1, 16, 16), value, np.float32), PreprocessConfig())
    assert not result.any()


def test_clahe_spreads_a_dark_region():
    image = volume(1, 1, 64, 64)
    image[..., :32] *= 0.1
    plain, equalised = (normalise(image, PreprocessConfig(normalise="minmax", clahe=c)) for c in (False, True))
    assert equalised[..., :32].std() > 2 * plain[..., :32].std()


def test_hounsfield_units_are_scaled_alike_in_every_case_and_channel():
    config = PreprocessConfig(normalise="ct", window=(-100, 300))
    image = np.array([-2000, -100, 0, 100, 300, 5000], np.float32).reshape(1, 1, 2, 3).repeat(2, axis=0)
    found = normalise(image, config)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0].ravel(), [-1, -1, -0.5, 0, 1, 1])
    np.testing.assert_array_equal(found[:, :, :1], normalise(image[:, :, :1], config))
    assert image[0, 0, 0, 0] == -2000


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"preprocess.normalise": "ct"}, "need each other"),
        ({"preprocess.window": "-100,300"}, "need each other"),
        ({"preprocess.normalise": "ct", "preprocess.window": "300,-100"}, "must be below the second"),
        ({"preprocess.normalise": "ct", "preprocess.window": "300"}, "preprocess.window=300"),
        (
            {"preprocess.normalise": "ct", "preprocess.window": "-100,300", "preprocess.clahe": "true"},
            "preprocess.clahe has no effect with preprocess.normalise=ct",
        ),
    ],
)
def test_a_window_without_effect_or_sense_is_refused(knobs, told):
    with pytest.raises(InputError, match=told):
        settings.load(None, {"data.format": "phantom", **knobs})
