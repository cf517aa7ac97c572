"""`segpipe.load` in Python: what goes in, what comes out."""

import io
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import disc, write_nifti
from PIL import Image

import segpipe
from segpipe.data import codecs, components
from segpipe.data.readers import READERS, channel_names
from segpipe.errors import InputError
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures

TINY = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}
PICTURE = disc(40, 36, 0)[0]


def predictor_of(kind):
    from segpipe.config import settings

    config = settings.load(None, {"data.format": kind, **TINY})
    names = channel_names(config.data)
    shape = {"kind": READERS[kind].kind, "channels": names, "classes": config.data.class_names}
    spec = ModelSpec(model=config.model, preprocess=config.preprocess, threshold=0.5, **shape)
    return Predictor(spec, architectures.build(spec.model, len(names), 1, seed=3))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a model")
    predictor_of("folder").save(folder / "artifacts" / "segpipe")
    return segpipe.load(folder)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    predictor_of("nifti").save(folder)
    return segpipe.load(str(folder))


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "png")
    return file.getvalue()


def test_importing_segpipe_imports_nothing_heavy():
    program = "import sys, segpipe; print(sorted({'torch', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="module 'segpipe' has no attribute 'laod'"):
        segpipe.laod  # noqa: B018


def test_a_path_bytes_and_an_array_of_a_picture_have_one_answer(pictures, png, tmp_path):
    (tmp_path / "x.png").write_bytes(png)
    (one, two), three = pictures.predict([tmp_path / "x.png", png]), pictures.predict(PICTURE)
    expected = predictor_of("folder").segment(PICTURE[None, None].astype(np.float32), 0.5)
    for found in (one, two, three, pictures.predict(str(tmp_path / "x.png"))):
        np.testing.assert_array_equal(found.mask, expected.mask[0])
        np.testing.assert_array_equal(found.probabilities, expected.foreground[0])
    assert (one.voxels, one.lesions) == ({"foreground": int(one.mask.sum())}, components.count(one.mask[None]))
    assert (one.mm2, one.ml, one.classes, one.warnings) == (None, None, ("foreground",), ())
    assert pictures.predict(PICTURE, spacing=(0.5, 0.2)).mm2 == pytest.approx(0.1 * one.mask.sum())


def test_a_colour_array_for_a_grey_model_is_turned_to_grey_with_a_warning(pictures):
    found = pictures.predict(np.stack([PICTURE] * 3, axis=2))
    assert found.warnings == ("array: colour turned to grey",)


def test_the_mask_is_saved_in_the_images_own_geometry(pictures, volumes, png, tmp_path):
    found = pictures.predict(png)
    saved = np.asarray(Image.open(found.save(tmp_path / "mask.png")))
    np.testing.assert_array_equal(saved, found.mask * 255)
    root = write_nifti(tmp_path / "data") / "sub-case0" / "ses-0001" / "dwi"
    files = {name: root / f"sub-case0_ses-0001_{name}.nii.gz" for name in ("dwi", "adc")}
    found = volumes.predict(files)
    assert found.mask.ndim == 3
    assert found.ml == pytest.approx(found.mask.sum() * 2 * 2 * 5 / 1000)
    mask, image = nib.load(found.save(tmp_path / "mask.nii.gz")), nib.load(files["dwi"])
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.shape == image.shape
    whole = np.stack([codecs.decode(path.read_bytes(), "x").array[0] for path in files.values()])
    from_array = volumes.predict(whole, spacing=(5, 2, 2))
    np.testing.assert_array_equal(from_array.mask, found.mask)
    assert from_array.ml == found.ml


def test_a_notebook_shows_a_picture(pictures, png):
    shown = Image.open(io.BytesIO(pictures.predict(png)._repr_png_()))
    assert shown.width > shown.height > 300


@pytest.mark.parametrize(
    ("image", "asked", "told"),
    [
        ("no such file.png", {}, "no such file.png: No such file or directory"),
        (b"no image", {}, "image: not a PNG"),
        (np.zeros((2, 3, 4, 5)), {}, r"array of shape \(2, 3, 4, 5\): expected H,W or H,W,3"),
        (PICTURE, {"treshold": 0.5}, "treshold: no such option; there are threshold, tta"),
        (PICTURE, {"spacing": (1,)}, r"spacing \(1,\): expected height, width"),
        ({"dwi": b"", "adc": b""}, {}, "dwi, adc: the model takes grey, or one file of all"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(pictures, image, asked, told):
    with pytest.raises(InputError, match=told):
        pictures.predict(image, **asked)


def test_wrong_places_and_names_are_told(pictures, volumes, png, tmp_path, store):
    with pytest.raises(InputError, match="no model of segpipe in this folder"):
        segpipe.load(tmp_path)
    with pytest.raises(InputError, match="elsewhere: no folder, no run ID and no models:/NAME@champion"):
        segpipe.load("elsewhere")
    with pytest.raises(InputError, match="no such model or alias"):
        segpipe.load("models:/nobody@champion")
    with pytest.raises(InputError, match=r"mask.nii.gz: the mask is written as .png; give a name with that suffix"):
        pictures.predict(png).save(tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="an array has no geometry of a file"):
        volumes.predict(np.zeros((2, 3, 40, 36))).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"array of shape \(3, 40, 36\): the model takes 2 channels"):
        volumes.predict(np.zeros((3, 40, 36)))
