import numpy as np
import pytest
import torch
from double_precision import SINGLE, Double
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from segpipe.config.sections import ModelConfig, PreprocessConfig
from segpipe.data.windows import Windows
from segpipe.inference.predictor import SLICES_PER_FORWARD, Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures

SIZE = (32, 40)
OF_FOUR = 16 * SINGLE  # roundings in the weighted mean of four windows
sides = st.integers(1, 40)


def predictor(classes, fit):
    config = ModelConfig(arch="unet", encoder="tu-test_resnet", encoder_depth=3)
    preprocess = PreprocessConfig(size=SIZE, fit=fit, normalise="minmax")
    spec = ModelSpec(
        model=config, preprocess=preprocess, kind="volume", channels=("dwi", "adc"), classes=tuple("abc"[:classes])
    )
    return Predictor(spec, architectures.build(config, 2, classes, seed=0))


def volume(*shape):
    return np.random.default_rng(shape).normal(100, 20, shape).astype(np.float32)


@given(sides, sides, st.integers(1, 3), st.sampled_from([(8, 8), (7, 12), (16, 5)]), st.booleans())
def test_what_is_cut_and_not_changed_comes_back(height, width, depth, size, mirror):
    image = volume(2, depth, height, width)
    windows = Windows((height, width), size, 0.5, mirror=mirror)
    back = windows.blend(windows.cut(image, image.min(axis=(1, 2, 3)), 5), 2, depth)
    np.testing.assert_allclose(back, image, rtol=OF_FOUR)


@pytest.mark.parametrize(
    ("side", "starts"), [(8, [0]), (9, [0, 1]), (12, [0, 4]), (13, [0, 4, 5]), (20, [0, 4, 8, 12]), (5, [0])]
)
def test_windows_overlap_by_half_and_the_last_ends_at_the_border(side, starts):
    windows = Windows((side, 3), (8, 3), 0.5)
    assert [rows.start for (rows, _), _ in windows.places] == starts
    assert max(rows.stop for (rows, _), _ in windows.places) == side


def test_a_plane_smaller_in_a_direction_lies_in_the_middle_of_its_windows():
    image = np.ones((1, 1, 3, 20), np.float32)
    (batch,) = Windows((3, 20), (8, 8), 0.5).cut(image, np.array([-5], np.float32), 9)
    assert batch.shape == (4, 1, 8, 8)
    assert (batch[:, 0, 2:5] == 1).all()
    assert (batch[:, 0, [0, 1, 5, 6, 7]] == -5).all()


def test_a_smaller_plane_is_mirrored_where_that_is_asked():
    image = volume(2, 1, 3, 20)
    (batch,) = Windows((3, 20), (8, 8), 0.5, mirror=True).cut(image, np.zeros(2, np.float32), 9)
    wide = np.pad(image[:, 0], ((0, 0), (2, 3), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(batch[1], wide[:, :, 4:12])


def test_batches_are_full_across_planes_and_never_larger_than_asked():
    sizes = [
        len(batch) for batch in Windows((20, 20), (8, 8), 0.5).cut(volume(1, 3, 20, 20), np.zeros(1, np.float32), 10)
    ]
    assert sizes == [10, 10, 10, 10, 8]


@pytest.mark.parametrize(("classes", "fit"), [(1, "crop"), (3, "crop"), (3, "patch")])
@pytest.mark.parametrize(
    "shape", [(1, 64, 80), (2, 71, 93), (SLICES_PER_FORWARD + 2, 33, 41), (1, 21, 101), (3, 97, 7)]
)
def test_windows_say_what_monai_says(shape, classes, fit):
    model, image = predictor(classes, fit), volume(2, *shape)
    model.model = Double(model.model)
    prepared = model.prepare(image)

    def network(slices):
        logits = model.model(slices)
        return logits.sigmoid() if classes == 1 else logits.softmax(dim=1)[:, 1:]

    with torch.inference_mode():
        short = [max(side - n, 0) for side, n in zip(SIZE, shape[1:], strict=True)] if fit == "patch" else [0, 0]
        around = [(n // 2, n - n // 2) for n in short]
        overlap = 0.25 if fit == "patch" else 0.5
        slices = np.pad(prepared.image.transpose(1, 0, 2, 3), [(0, 0), (0, 0), *around], mode="symmetric")
        expected = sliding_window_inference(
            torch.from_numpy(slices), SIZE, 4, network, overlap, "gaussian", 0.125
        ).numpy()
        within = (slice(before, before + n) for (before, _), n in zip(around, shape[1:], strict=True))
        expected = expected[..., *within]
    windows = prepared.lying
    assert isinstance(windows, Windows)
    batches = windows.cut(prepared.image, prepared.lowest, SLICES_PER_FORWARD)
    found = windows.blend(map(model.forward, batches), classes, shape[0])
    np.testing.assert_allclose(found, expected.transpose(1, 0, 2, 3), atol=OF_FOUR, rtol=0)
    foreground = model.label(prepared, 0.5).foreground
    np.testing.assert_allclose(foreground, expected.sum(axis=1), atol=OF_FOUR, rtol=0)
