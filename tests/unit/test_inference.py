from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from double_precision import SINGLE, Double
from torch import nn

from segpipe.config.sections import ModelConfig, PreprocessConfig
from segpipe.data import transform
from segpipe.data.windows import Windows
from segpipe.errors import InputError
from segpipe.inference.predictor import LARGEST, SLICES_PER_FORWARD, Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures


def predictor(arch="unet", classes=("foreground",), fit="resize"):
    config = ModelConfig(arch=arch, encoder=architectures.ARCHITECTURES[arch].test_encoder, encoder_depth=3)
    spec = ModelSpec(
        model=config,
        preprocess=PreprocessConfig(size=(32, 32), fit=fit),
        kind="volume",
        channels=("dwi", "adc"),
        classes=classes,
    )
    return Predictor(spec, architectures.build(config, 2, len(classes), seed=0))


def by_hand(network, classes=("foreground",), fit="resize", size=(32, 32)):
    """A predictor of grey images around a hand-made network."""
    preprocess = PreprocessConfig(size=size, fit=fit)
    spec = ModelSpec(model=ModelConfig(), preprocess=preprocess, kind="volume", channels=("dwi",), classes=classes)
    return Predictor(spec, network)


class Pointwise(nn.Module):
    """Looks at each pixel alone, so that it answers a flipped image with a flipped answer."""

    def __init__(self, slopes):
        super().__init__()
        self.slopes = torch.tensor(slopes)[:, None, None]

    def forward(self, images):
        return images[:, :1] * self.slopes


class Leaning(nn.Module):
    """Adds to each pixel what its row and its column in the network's plane say."""

    def __init__(self, ramps):
        super().__init__()
        self.ramps = torch.from_numpy(ramps)

    def forward(self, images):
        return images[:, :1] + self.ramps


IMAGE = np.random.default_rng(0).normal(size=(2, SLICES_PER_FORWARD + 3, 40, 36)).astype(np.float32)
SHAPES = [(1, 32, 32), (2, 33, 57), (SLICES_PER_FORWARD + 3, 40, 36), (1, 90, 7)]


def volume(*shape):
    return np.random.default_rng(shape).normal(100, 20, shape).astype(np.float32)


@pytest.mark.parametrize("arch", architectures.ARCHITECTURES)
def test_every_architecture_says_what_its_encoder_sees(arch):
    model = predictor(arch)
    embedding = model.embedding(model.prepare(IMAGE))
    assert embedding.dtype == np.float32
    assert embedding.ndim == 1
    assert np.isfinite(embedding).all()
    assert embedding.std() > 0


@pytest.mark.parametrize("fit", ["resize", "crop", "patch"])
def test_an_embedding_is_the_mean_over_slices_or_windows_however_they_are_batched(fit):
    model = predictor(fit=fit)
    model.model = Double(model.model)
    prepared = model.prepare(IMAGE)
    assert isinstance(prepared.lying, Windows) == (fit != "resize")
    if isinstance(prepared.lying, Windows):
        slices = np.concatenate(list(prepared.lying.cut(prepared.image, prepared.lowest, 7)))
    else:
        slices = prepared.lying.image(prepared.image)
    with torch.no_grad():
        expected = model.model.features(torch.from_numpy(slices)).mean(dim=(0, 2, 3))
    np.testing.assert_allclose(model.embedding(prepared), expected, rtol=4 * SINGLE)


def test_forward_gives_probabilities_of_each_class():
    model = predictor(classes=("a", "b", "c"))
    found = model.forward(np.zeros((SLICES_PER_FORWARD + 1, 2, 32, 32), np.float32))
    assert found.shape == (SLICES_PER_FORWARD + 1, 3, 32, 32)
    assert ((found >= 0) & (found <= 1)).all()
    assert model.segment(IMAGE, 0.5).foreground.max() <= 1


@pytest.mark.parametrize("classes", [("a",), ("a", "b", "c")])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_volume_in_batches_is_to_the_bit_the_volume_at_once(shape, classes):
    model, brighter = predictor(classes=classes), np.linspace(0, 900, shape[0], dtype=np.float32)
    image = volume(2, *shape) + brighter[:, None, None]
    fit = transform.Fit(shape[1:], model.spec.preprocess)
    probabilities = fit.back(model.forward(fit.image(transform.normalise(image, model.spec.preprocess))))
    foreground = np.minimum(probabilities.sum(axis=0), 1)
    threshold = float(np.median(foreground))
    found = model.segment(image, threshold)
    np.testing.assert_array_equal(found.foreground, foreground)
    np.testing.assert_array_equal(found.mask, np.where(foreground >= threshold, probabilities.argmax(axis=0) + 1, 0))
    assert (found.mask.dtype, found.foreground.dtype, found.variance) == (np.uint8, np.float32, None)
    assert 0 < np.count_nonzero(found.mask) < found.mask.size


def test_a_crop_that_holds_the_whole_image_is_no_window():
    model, image = predictor(fit="crop"), volume(2, 2, 32, 20)
    assert isinstance(model.prepare(image).lying, transform.Fit)
    fit = transform.Fit((32, 20), model.spec.preprocess)
    expected = fit.back(model.forward(fit.image(transform.normalise(image, model.spec.preprocess))))
    np.testing.assert_array_equal(model.segment(image, 0.5).foreground, expected[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_sees_the_whole_of_a_larger_image(shape):
    model, image = by_hand(Pointwise([3.0]), fit="crop"), volume(1, *shape)
    normalised = transform.normalise(image, model.spec.preprocess)[0]
    found = model.segment(image, 0.5)
    np.testing.assert_allclose(
        found.foreground, 1 / (1 + np.exp(-3 * normalised)), rtol=64 * SINGLE
    )  # the exponent, up to 9, and four windows
    np.testing.assert_array_equal(found.mask, found.foreground >= 0.5)


def test_features_do_not_depend_on_how_the_input_was_padded():
    network = predictor().model
    with torch.no_grad():
        exact = network.features(torch.zeros(1, 2, 64, 64))
        padded = network.features(torch.zeros(1, 2, 61, 57))
    assert exact.shape == padded.shape


# --- flips


@pytest.mark.parametrize("fit", ["resize", "crop", "patch"])
@pytest.mark.parametrize("classes", [("a",), ("a", "b")])
@pytest.mark.parametrize("shape", SHAPES)
def test_where_flips_say_the_same_nothing_varies(shape, classes, fit):
    model = by_hand(Pointwise([2.0] if len(classes) == 1 else [1.0, 2.0, -3.0]), classes, fit)
    plain, flipped = (model.segment(volume(1, *shape), 0.5, tta) for tta in (False, True))
    np.testing.assert_array_equal(flipped.variance, np.zeros(shape, np.float32))
    np.testing.assert_array_equal(flipped.foreground, plain.foreground)
    np.testing.assert_array_equal(flipped.mask, plain.mask)


@pytest.mark.parametrize("several", [False, True])
def test_flips_are_undone_before_they_are_averaged(several):
    shape = (18, 16)
    ramps = np.random.default_rng(1).normal(size=(3 if several else 1, *shape)).astype(np.float32)
    model = by_hand(Leaning(ramps), ("a", "b") if several else ("a",), "crop", shape)
    image = volume(1, SLICES_PER_FORWARD + 1, *shape)
    normalised = transform.normalise(image, model.spec.preprocess)[0].astype(np.float64)
    probabilities = []
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        logits = normalised + ramps[:, None, ::rows, ::columns]
        powers = np.exp(logits)
        probabilities.append((powers / powers.sum(axis=0))[1:] if several else 1 / (1 + 1 / powers))
    foreground = np.sum(probabilities, axis=1)
    found = model.segment(image, 0.6, tta=True)
    np.testing.assert_allclose(found.foreground, foreground.mean(axis=0), atol=8 * SINGLE)
    np.testing.assert_allclose(found.variance, foreground.var(axis=0), atol=8 * SINGLE)
    labels = np.mean(probabilities, axis=0).argmax(axis=0) + 1
    np.testing.assert_array_equal(found.mask, np.where(foreground.mean(axis=0) >= 0.6, labels, 0))
    assert found.variance.max() > 0.01
    assert found.variance.dtype == np.float32


# --- what is refused, and threads


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "NaN or infinite voxels"),
        (np.inf, "NaN or infinite voxels"),
        (-np.inf, "NaN or infinite voxels"),
        (-2 * LARGEST, r"intensities from -2e\+15 to .*, beyond 1e\+15; rescale them"),
        (3e38, r"beyond 1e\+15"),
    ],
)
def test_a_voxel_that_can_not_be_normalised_is_refused(value, reason):
    image = IMAGE.copy()
    image[1, 3, 4, 5] = value
    with pytest.raises(InputError, match=reason):
        predictor().prepare(image)


def test_the_largest_intensities_are_still_normalised():
    image = IMAGE.clip(-1, 1) * np.float32(LARGEST)
    assert np.isfinite(predictor().prepare(image).image).all()


def test_channels_are_counted():
    with pytest.raises(InputError, match=r"1 channels, the model takes 2: \('dwi', 'adc'\)"):
        predictor().segment(IMAGE[:1], 0.5)


@pytest.mark.parametrize("fit", ["resize", "crop", "patch"])
def test_threads_at_once_give_the_bytes_of_one(fit):
    model = predictor(fit=fit)
    images = [volume(2, 3, 40 + k, 50) for k in range(8)]

    def answer(image):
        found = model.segment(image, 0.5, tta=True)
        return b"".join(part.tobytes() for part in found)

    alone = [answer(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, images * 2)) == alone * 2
