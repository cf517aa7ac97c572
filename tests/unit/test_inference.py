import numpy as np
import pytest
import torch

from segpipe import models
from segpipe.config import ModelConfig, PreprocessConfig
from segpipe.data import transform
from segpipe.inference import SLICES_PER_FORWARD, ModelSpec, Predictor


def predictor(arch="unet", classes=("foreground",)):
    config = ModelConfig(arch=arch, encoder=models.ARCHITECTURES[arch].test_encoder, encoder_depth=3)
    spec = ModelSpec(
        model=config,
        preprocess=PreprocessConfig(size=(32, 32)),
        reader="nifti",
        channels=("dwi", "adc"),
        classes=classes,
    )
    return Predictor(spec, models.build(config, 2, len(classes), seed=0))


IMAGE = np.random.default_rng(0).normal(size=(2, SLICES_PER_FORWARD + 3, 40, 36)).astype(np.float32)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_every_architecture_says_what_its_encoder_sees(arch):
    embedding = predictor(arch).embedding(IMAGE)
    assert embedding.dtype == np.float32
    assert embedding.ndim == 1
    assert np.isfinite(embedding).all()
    assert embedding.std() > 0


def test_an_embedding_is_the_mean_over_slices_however_they_are_batched():
    model = predictor()
    fit = transform.Fit(IMAGE.shape[2:], model.spec.preprocess)
    slices = torch.from_numpy(fit.image(transform.normalise(IMAGE, model.spec.preprocess)))
    with torch.no_grad():
        expected = model.model.features(slices).mean(dim=(0, 2, 3))
    np.testing.assert_allclose(model.embedding(IMAGE), expected, rtol=1e-4, atol=1e-5)


def test_forward_gives_probabilities_of_each_class():
    model = predictor(classes=("a", "b", "c"))
    found = model.forward(np.zeros((SLICES_PER_FORWARD + 1, 2, 32, 32), np.float32))
    assert found.shape == (SLICES_PER_FORWARD + 1, 3, 32, 32)
    assert ((found >= 0) & (found <= 1)).all()
    assert model.segment(IMAGE, 0.5).foreground.max() <= 1


def test_features_do_not_depend_on_how_the_input_was_padded():
    network = predictor().model
    with torch.no_grad():
        exact = network.features(torch.zeros(1, 2, 64, 64))
        padded = network.features(torch.zeros(1, 2, 61, 57))
    assert exact.shape == padded.shape
