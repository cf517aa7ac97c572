import base64
import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco
from skimage.draw import polygon2mask

from segpipe.data import codecs, encodings
from segpipe.errors import InputError

planes = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
CLASSES = ("lesion", "oedema")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11


def picture(shape):
    return codecs.decode(codecs.encode_picture(np.zeros(shape, np.uint8)), "x")


def volume(values):
    affine = np.array([[0, 0, 3.0, 0], [-2.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])
    return codecs.decode(nib.Nifti1Image(values, affine).to_bytes(), "x")


def unrolled(entry):
    height, width = entry["size"]
    return coco.decode(coco.frPyObjects({"size": entry["size"], "counts": entry["counts"]}, height, width)) > 0


def filled(entries, shape):
    """How many outlines each pixel's centre lies within, less the holes."""
    within = np.zeros(shape, int)
    for entry in entries:
        points = np.array(entry["points"])[:, ::-1] - 0.5
        within += polygon2mask(shape, points) * (-1 if entry["hole"] else 1)
    return within


@given(planes)
def test_run_lengths_are_those_of_coco(plane):
    entry = encodings.run_lengths(plane)
    np.testing.assert_array_equal(unrolled(entry), plane)
    assert sum(entry["counts"]) == plane.size
    assert all(isinstance(count, int) for count in entry["counts"])


@given(planes)
def test_outlines_less_their_holes_give_back_every_pixel(plane):
    np.testing.assert_array_equal(filled(encodings.outlines(plane), plane.shape), plane.astype(int))


@pytest.mark.parametrize("seed", range(4))
def test_outlines_of_large_blobs_with_islands_in_their_holes_give_back_every_pixel(seed):
    y, x = np.mgrid[:90, :70]
    rings = np.sin(np.hypot(y - 40 - seed, x - 35) / 3) + np.random.default_rng(seed).normal(0, 0.3, y.shape) > 0
    found = encodings.outlines(rings)
    assert {entry["hole"] for entry in found} == {True, False}
    np.testing.assert_array_equal(filled(found, rings.shape), rings.astype(int))


def test_a_straight_side_is_two_points():
    block = np.zeros((9, 9), bool)
    block[2:7, 3:8] = True
    (entry,) = encodings.outlines(block)
    assert len(entry["points"]) == 8
    assert np.min(entry["points"], axis=0).tolist() == [3, 2]
    assert np.max(entry["points"], axis=0).tolist() == [8, 7]


@given(hnp.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)))
def test_entries_of_a_volume_fit_the_array_that_its_file_stores(values):
    like = volume(values)
    mask = like.array[0].astype(np.uint8)
    lengths = encodings.encode(mask, like, CLASSES, "rle")
    lines = encodings.encode(mask, like, CLASSES, "polygons")
    for number, name in enumerate(CLASSES, 1):
        for k in range(values.shape[2]):
            plane = values[:, :, k] == number
            entries = [entry for entry in lengths if (entry["class"], entry["slice"]) == (name, k)]
            assert len(entries) == plane.any()
            for entry in entries:
                np.testing.assert_array_equal(unrolled(entry), plane)
            outlines = [entry for entry in lines if (entry["class"], entry["slice"]) == (name, k)]
            np.testing.assert_array_equal(filled(outlines, plane.shape) > 0, plane)


@pytest.mark.parametrize("output", ["rle", "polygons"])
def test_an_empty_mask_has_no_entries(output):
    assert encodings.encode(np.zeros((1, 4, 5), np.uint8), picture((4, 5)), CLASSES, output) == []


def test_files_are_the_masks_of_the_codecs():
    values = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.uint8)
    like, flat = volume(values), picture((4, 5))
    mask, plane = like.array[0].astype(np.uint8), np.ones((1, 4, 5), np.uint8)
    for output in ("auto", "nifti"):
        assert base64.b64decode(encodings.encode(mask, like, CLASSES, output)) == codecs.encode_mask(mask, like, 2)
    for output in ("auto", "png"):
        assert base64.b64decode(encodings.encode(plane, flat, CLASSES, output)) == codecs.encode_mask(plane, flat, 2)
    assert encodings.encode(mask, like, CLASSES, "none") is None


def test_an_output_that_does_not_fit_the_file_is_refused():
    flat, solid = picture((4, 5)), volume(np.zeros((3, 4, 5), np.uint8))
    for like, output, told in (
        (flat, "nifti", "masks of this file are png; ask for png, rle"),
        (solid, "png", "masks of this file are nifti; ask for nifti, rle"),
        (flat, "polygon", r"nearest: polygons"),
    ):
        with pytest.raises(InputError, match=told):
            encodings.encode(np.zeros(like.array.shape[1:], np.uint8), like, CLASSES, output)


def test_probabilities_of_a_picture_keep_sixteen_bits():
    foreground = np.random.default_rng(0).random((1, 6, 7), dtype=np.float32)
    foreground[0, 0, :2] = [0, 1]
    encoded = base64.b64decode(encodings.encode_probabilities(foreground, picture((6, 7))))
    back = np.asarray(Image.open(io.BytesIO(encoded)))
    assert back.dtype == np.uint16
    assert back[0, :2].tolist() == [0, 65535]
    np.testing.assert_allclose(back / 65535, foreground[0], atol=0.5 / 65535 + 1e-7)


def test_probabilities_of_a_volume_lie_on_its_grid():
    values = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    like = volume(values)
    encoded = base64.b64decode(encodings.encode_probabilities(like.array[0], like))
    back = nib.Nifti1Image.from_bytes(gzip.decompress(encoded))
    np.testing.assert_array_equal(np.asarray(back.dataobj), values)
    np.testing.assert_allclose(back.affine, like.geometry.image.affine)
