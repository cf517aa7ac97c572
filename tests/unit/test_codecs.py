import gzip
import io
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from segpipe.data import codecs
from segpipe.errors import InputError


def picture(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


def pages():
    buffer, page = io.BytesIO(), Image.new("L", (8, 8))
    page.save(buffer, format="TIFF", save_all=True, append_images=[page])
    return buffer.getvalue()


GREY = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(0, 65535, (20, 30), dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey", "colour"])
def test_pictures_keep_every_value(kind, array):
    decoded = codecs.decode(picture(array, kind), "x")
    expected = np.atleast_3d(array).transpose(2, 0, 1)[:, None]
    np.testing.assert_array_equal(decoded.array, expected)
    assert decoded.spacing is None


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_every_value(kind):
    np.testing.assert_array_equal(codecs.decode(picture(DEEP, kind), "x").array[0, 0], DEEP)


def test_a_palette_mask_gives_its_indices_and_an_image_its_colours():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG")
    np.testing.assert_array_equal(codecs.decode(buffer.getvalue(), "x", True).array[0, 0], [[0, 1], [2, 1]])
    assert codecs.decode(buffer.getvalue(), "x").array.shape[0] == 3


AFFINES = {
    "LAS oblique": np.array(
        [[-1.997, -0.116, 0.003, 118], [-0.114, 1.953, -0.417, -79], [-0.021, 0.417, 1.956, -57], [0, 0, 0, 1]]
    ),
    "permuted": np.array([[0, 0, 3.0, 0], [-2.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]]),
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("packed", [True, False])
def test_a_mask_comes_back_on_the_grid_of_its_nifti(name, packed):
    values = (np.random.default_rng(0).random((7, 8, 9)) > 0.5).astype(np.uint8)
    original = nib.Nifti1Image(values, AFFINES[name])
    data = gzip.compress(original.to_bytes()) if packed else original.to_bytes()
    decoded = codecs.decode(data, "x")
    assert decoded.array.shape[0] == 1
    mask = decoded.array[0].astype(np.uint8)
    back = nib.Nifti1Image.from_bytes(gzip.decompress(codecs.encode_mask(mask, decoded, 1)))
    np.testing.assert_array_equal(np.asarray(back.dataobj), values)
    np.testing.assert_allclose(back.affine, AFFINES[name], atol=1e-5)


def test_slices_run_along_the_bodys_axis_and_spacing_follows():
    decoded = codecs.decode(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), AFFINES["permuted"]).to_bytes(), "x")
    assert decoded.array.shape == (1, 5, 4, 6)
    assert decoded.spacing == (1.5, 2.0, 3.0)


def test_a_stack_of_volumes_is_channels():
    values = np.random.default_rng(0).random((4, 5, 6, 2)).astype(np.float32)
    decoded = codecs.decode(nib.Nifti1Image(values, np.eye(4)).to_bytes(), "x")
    np.testing.assert_array_equal(decoded.array, values.transpose(3, 2, 1, 0))


PNG = picture(GREY, "PNG")
NIFTI = gzip.compress(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)).to_bytes())
INVALID = {
    "empty": (b"", "empty file"),
    "text": (b"hello, this is no picture", "not a PNG"),
    "png cut short": (PNG[:200], "cut short"),
    "png header only": (PNG[:20], "not a PNG|cut short"),
    "gzip of text": (gzip.compress(b"hello"), "not a whole NIfTI"),
    "nifti cut short": (NIFTI[:80], "not a whole NIfTI"),
    "nifti data cut short": (gzip.compress(gzip.decompress(NIFTI)[:400]), "not a whole NIfTI"),
    "bomb": (None, "too large"),
    "two pages": (pages(), "2 pages"),
    "flat nifti": (nib.Nifti1Image(np.zeros((4, 5), np.float32), np.eye(4)).to_bytes(), "expected a 3-D volume"),
    "complex nifti": (nib.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4)).to_bytes(), "complex64"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_whole_file_is_refused_in_one_line(name):
    data, told = INVALID[name]
    data = picture(np.zeros((1, 1), np.uint8), "PNG") if data is None else data
    if name == "bomb":
        header = data.index(b"IHDR") + 4
        block = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + data[header + 8 : header + 13]
        data = data[: header - 4] + block + zlib.crc32(block).to_bytes(4, "big") + data[header + 17 :]
    with pytest.raises(InputError, match=told) as caught:
        codecs.decode(data, "scan 7")
    assert str(caught.value).startswith("scan 7: ")
    assert "\n" not in str(caught.value)


def test_colour_becomes_luminance_and_grey_is_repeated():
    colour = codecs.decode(picture(COLOUR, "PNG"), "x").array
    grey = codecs.as_channels(colour, 1, "x")
    np.testing.assert_allclose(grey[0, 0], COLOUR @ [0.299, 0.587, 0.114], rtol=1e-5)
    assert codecs.as_channels(grey, 3, "x").shape == (3, 1, 20, 30)
    with pytest.raises(InputError, match="3 channels"):
        codecs.as_channels(colour, 2, "x")


def test_resampling_a_smooth_field_onto_another_grid_follows_it():
    def field(affine, shape):
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(3, -1)
        x, y, z = affine[:3, :3] @ grid + affine[:3, 3:]
        values = (x + 2 * y - z).reshape(shape).astype(np.float32)
        return codecs.decode(nib.Nifti1Image(values, affine).to_bytes(), "x")

    coarse = field(np.array([[4.0, 0, 0, -8], [0, 4, 0, -8], [0, 0, 4, -8], [0, 0, 0, 1]]), (12, 12, 12))
    fine = field(np.array([[-2.0, 0, 0, 20], [0, 2, 0, 2], [0, 0, 3, 2], [0, 0, 0, 1]]), (8, 9, 7))
    np.testing.assert_allclose(codecs.resample(coarse, fine).array, fine.array, atol=1e-3)


def test_a_grid_is_the_same_however_it_is_stored_and_another_a_little_further_on():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    flipped = affine @ np.array([[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    stretched = np.diag([2.1, 2.0, 2.0, 1.0])
    one, same, other = (
        codecs.decode(nib.Nifti1Image(v, a).to_bytes(), "x")
        for v, a in ((values, affine), (values[::-1], flipped), (values, stretched))
    )
    assert codecs.same_grid(one, same)
    np.testing.assert_array_equal(one.array, same.array)
    assert not codecs.same_grid(one, other)


@pytest.mark.parametrize(("classes", "values"), [(1, [0, 255]), (2, [0, 1])])
def test_a_picture_mask_shows_one_class_as_white_and_several_by_number(classes, values):
    like = codecs.decode(picture(GREY, "PNG"), "x")
    mask = np.zeros((1, 20, 30), np.uint8)
    mask[0, 3, 4] = 1
    encoded = np.asarray(Image.open(io.BytesIO(codecs.encode_mask(mask, like, classes))))
    assert np.unique(encoded).tolist() == values
