"""Volumes as TIFF of several pages: read, trained on, predicted and served as what they are."""

import base64
import io

import numpy as np
import pytest
from conftest import IMAGEJ, tiff, write_folder, write_stacks
from PIL import Image

import segpipe
from segpipe.config import settings
from segpipe.data import codecs, dataset_writer, encodings, readers
from segpipe.data.dataset import Dataset
from segpipe.errors import InputError
from segpipe.inference.input_assembly import gathered
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures
from segpipe.plots import cases
from segpipe.prediction import batch, results
from segpipe.prediction.inputs import find

RNG = np.random.default_rng(0)
PAGES = RNG.integers(0, 255, (5, 40, 36), dtype=np.uint8)
TINY = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}


@pytest.fixture
def stacks(tmp_path):
    return write_stacks(tmp_path)


def config_of(root, **knobs):
    return settings.load(None, {"data.format": "stacks", "data.root": str(root), **TINY, **knobs})


@pytest.fixture(scope="module")
def predictor():
    config = config_of("x")
    spec = ModelSpec(
        model=config.model, preprocess=config.preprocess, kind="volume", channels=("grey",), classes=("foreground",)
    )
    return Predictor(spec, architectures.build(spec.model, 1, 1, seed=3))


@pytest.mark.parametrize("array", [PAGES, PAGES.astype(np.uint16) * 257, RNG.random((3, 8, 9), dtype=np.float32)])
def test_pages_are_slices_and_rows_go_up(array):
    decoded = codecs.decode(tiff(array), "x")
    np.testing.assert_array_equal(decoded.array[0], array[:, ::-1].astype(np.float32))
    assert decoded.spacing is None
    assert decoded.geometry.volume
    assert not decoded.geometry.sided
    np.testing.assert_array_equal(decoded.geometry.as_stored(decoded.array[0]), np.moveaxis(array, 0, -1))


def test_coloured_pages_have_three_channels():
    colour = RNG.integers(0, 255, (4, 6, 7, 3), dtype=np.uint8)
    decoded = codecs.decode(tiff(colour), "x")
    np.testing.assert_array_equal(decoded.array, colour[:, ::-1].transpose(3, 0, 1, 2))


def test_the_spacing_of_imagej_is_read_and_given_back():
    decoded = codecs.decode(tiff(PAGES, IMAGEJ), "x")
    assert decoded.spacing == pytest.approx((0.05, 0.002, 0.004))  # 50 um, 1 / 0.5 um, 1 / 0.25 um
    labels = (decoded.array[0] > 100).astype(np.uint8)
    written = codecs.encode_mask(labels, decoded, 1)
    assert written == codecs.encode_mask(labels, decoded, 1)
    mask = codecs.decode(written, "mask", raw_labels=True)
    np.testing.assert_array_equal(mask.array[0], labels * 255)
    assert mask.spacing == decoded.spacing
    assert codecs.same_grid(decoded, mask)


@pytest.mark.parametrize(
    "text",
    ["ImageJ=1.53t\nslices=5\n", "ImageJ=1\nunit=furlong\nspacing=2\n", "ImageJ=1\nframes=some\n", "anything"],
)
def test_an_unknown_spacing_is_none(text):
    assert codecs.decode(tiff(PAGES, {**IMAGEJ, 270: text}), "x").spacing is None


REFUSED = {
    "channels": (tiff(PAGES, {270: "ImageJ=1.53t\nimages=5\nchannels=5\n"}), "pages of 5 channels"),
    "times": (tiff(PAGES, {270: "ImageJ=1.53t\nimages=5\nframes=5\n"}), "pages of 5 frames"),
    "OME": (tiff(PAGES, {270: '<OME><Pixels SizeZ="1" SizeC="5" SizeT="1"/></OME>'}), "pages of 5 channels"),
    "sizes": (tiff([PAGES[0], PAGES[1][:20]]), "pages of different sizes"),
    "kinds": (tiff([PAGES[0], np.stack([PAGES[1]] * 3, axis=-1)]), "pages of different sizes or kinds"),
    "cut short": (tiff(PAGES)[:-900], "damaged or cut short"),
}


@pytest.mark.parametrize(("data", "told"), REFUSED.values(), ids=REFUSED)
def test_pages_that_are_no_slices_are_refused(data, told):
    with pytest.raises(InputError, match=f"^x: .*{told}"):
        codecs.decode(data, "x")


def test_many_pages_are_refused_by_their_number():
    with pytest.raises(InputError, match=r"^x: 5 x 40 x 36 pixels, at most 5,000 are taken"):
        codecs.decode(tiff(PAGES), "x", most=5000)


def test_a_set_of_stacks_is_found_read_and_shown_upright(stacks, tmp_path):
    assert readers.detect(str(stacks)) == "stacks"
    config = config_of(stacks)
    reader = readers.open_reader(config)
    volume = reader.load(readers.all_cases(reader)[0])
    assert volume.image.shape == (1, *PAGES.shape)
    assert volume.spacing == pytest.approx((0.05, 0.002, 0.004))
    assert volume.mask[2, ::-1][5, 8] == 1
    assert not volume.mask[0].any()
    manifest = dataset_writer.build(config, reader, tmp_path / "dataset", lambda *_: None)
    assert manifest.kind == "volume"
    case = manifest.of("test")[0]
    assert case.volume_ml == pytest.approx(3 * 9 * 15 * 0.05 * 0.002 * 0.004 / 1000)
    image, mask = Dataset.open(tmp_path / "dataset").native(case)
    shown = np.asarray(Image.open(io.BytesIO(cases.outlined(image, mask, "volume", ("foreground",)))))
    rows = np.flatnonzero(shown.max(axis=(1, 2)) > 150)
    assert rows.mean() < shown.shape[0] / 2  # the object is at the top, as in the file


def test_pictures_and_stacks_are_told_apart(stacks, folder, tmp_path):
    assert readers.detect(str(write_folder(tmp_path / "pictures"))) == "folder"
    (stacks / "images/case0.tif").write_bytes(b"")
    assert readers.detect(str(stacks)) == "stacks"
    (stacks / "images/case0.tif").write_bytes(tiff(PAGES[:1]))
    reader = readers.open_reader(config_of(stacks))
    with pytest.raises(InputError, match=r"case0.tif: a single picture; a stack has several pages"):
        reader.load(readers.all_cases(reader)[0])
    as_pictures = readers.open_reader(settings.load(None, {"data.format": "folder", "data.root": str(stacks)}))
    with pytest.raises(InputError, match=r"case1.tif: several pages in one file.*data.format=stacks"):
        as_pictures.load(readers.all_cases(as_pictures)[1])


def test_a_mask_of_fewer_pages_is_refused(stacks):
    (stacks / "masks/case0.tif").write_bytes(tiff(PAGES[:3] // 128 * 255))
    reader = readers.open_reader(config_of(stacks))
    with pytest.raises(InputError, match=r"case0.tif: shape or affine disagrees"):
        reader.load(readers.all_cases(reader)[0])


def test_what_suits_a_model_of_stacks(predictor):
    picture = codecs.decode(codecs.encode_picture(PAGES[0]), "x")
    stack = codecs.decode(tiff(PAGES), "x")
    assert gathered({"x": stack}, predictor.spec) == (stack.array, [])
    with pytest.raises(InputError, match=r"^x: a picture; this model takes volumes: NIfTI, or TIFF of several pages"):
        gathered({"x": picture}, predictor.spec)
    with pytest.raises(InputError, match=r"^x: several pages in one file, expected one picture"):
        gathered({"x": stack}, predictor.spec.model_copy(update={"kind": "picture"}))


def test_prediction_serving_and_python_give_the_same_stack(stacks, predictor, tmp_path):
    config, output = config_of(stacks), tmp_path / "results"
    request = results.Request(
        input=str(stacks), weights_sha256="00", spec_sha256="00", threshold=0.5, tta=False, largest_component=False,
        min_area=0, comparisons=True, ignore_label=-1,
    )  # fmt: skip
    items = find(stacks, predictor.spec, config)
    assert [item.reference.name for item in items] == [f"case{n}.tif" for n in range(8)]
    batch.run(predictor, items, request, output, {"model": "x"}, lambda *_: None)
    written = (output / "outputs/case0.tif").read_bytes()
    decoded = codecs.decode((stacks / "images/case0.tif").read_bytes(), "x")
    mask = predictor.segment(decoded.array, 0.5).mask
    np.testing.assert_array_equal(codecs.decode(written, "m").array[0] > 0, mask > 0)
    assert base64.b64decode(encodings.encode(mask, decoded, ("foreground",), "tiff")) == written
    with pytest.raises(InputError, match="output=nifti: masks of this file are tiff"):
        encodings.encode(mask, decoded, ("foreground",), "nifti")
    predictor.save(tmp_path / "model")
    found = segpipe.load(tmp_path / "model").predict(stacks / "images/case0.tif")
    assert found.save(tmp_path / "saved.tif").read_bytes() == written
    with pytest.raises(InputError, match=r"is written as \.tif"):
        found.save(tmp_path / "saved.png")


def test_probabilities_of_a_stack_have_sixteen_bits():
    decoded = codecs.decode(tiff(PAGES), "x")
    foreground = RNG.random(PAGES.shape, dtype=np.float32)
    back = codecs.decode(base64.b64decode(encodings.encode_probabilities(foreground, decoded)), "p").array[0] / 65535
    np.testing.assert_allclose(back, foreground, atol=0.6 / 65535)
