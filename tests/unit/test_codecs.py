import gzip
import io
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from conftest import allocating
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segpipe.data import codecs
from segpipe.errors import InputError


def picture(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


def picture_of(array):
    return picture(array, "PNG")


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


def deep_colour_png():
    """16 bits for each of three colours, which Pillow can read but not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(13))) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits_are_refused_rather_than_halved():
    with pytest.raises(InputError, match="16 bits per colour"):
        codecs.decode(deep_colour_png(), "x")


def test_a_picture_with_transparent_pixels_is_refused_and_an_opaque_one_read():
    buffer = io.BytesIO()
    picture = Image.fromarray(COLOUR).quantize(8)
    picture.save(buffer, format="PNG", transparency=b"\0\x80")
    with pytest.raises(InputError, match="x: transparent pixels, behind which anything may be; save it without"):
        codecs.decode(buffer.getvalue(), "x")
    opaque = np.dstack([COLOUR, np.full(COLOUR.shape[:2], 255, np.uint8)])
    expected = COLOUR.transpose(2, 0, 1)[:, None]
    np.testing.assert_array_equal(codecs.decode(picture_of(opaque), "x").array, expected)


OBJECT = np.zeros((20, 30), np.uint8)
OBJECT[5:12, 4:20] = 255


@pytest.mark.parametrize("grey", [0, 255, 90])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_in_the_alpha_channel_is_what_is_opaque(grey, channels):
    drawn = np.dstack([np.full((*OBJECT.shape, channels), grey, np.uint8), OBJECT])
    np.testing.assert_array_equal(codecs.decode(picture_of(drawn), "x", True).array[0, 0], OBJECT)


def test_a_mask_of_several_colours_with_transparency_is_refused():
    drawn = np.dstack([COLOUR, OBJECT])
    with pytest.raises(InputError, match="x: transparent pixels and several colours; save the mask without"):
        codecs.decode(picture_of(drawn), "x", True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_picture_is_turned_as_it_says(kind, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = Image.fromarray(np.repeat(np.repeat(GREY, 8, 0), 8, 1))
    buffer = io.BytesIO()
    plain.save(buffer, format=kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue())))
    found = codecs.decode(buffer.getvalue(), "x").array[0, 0]
    np.testing.assert_array_equal(found, np.asarray(shown))
    assert found.shape == ((240, 160) if orientation > 4 else (160, 240))
    assert (orientation == 1) == (found.shape == (160, 240) and bool((np.abs(found - np.asarray(plain)) < 40).all()))


@pytest.mark.parametrize(
    ("kind", "white_first"), [("PNG", True), ("BMP", True), ("TIFF", True), ("PNG", False), ("TIFF", False)]
)
def test_a_mask_of_two_greys_is_what_is_seen_whatever_the_order_of_its_palette(kind, white_first):
    palette = Image.fromarray((OBJECT > 0) ^ white_first).convert("L").point(lambda v: v // 255)
    palette = Image.fromarray(np.asarray(palette), mode="P")
    palette.putpalette([255] * 3 + [0] * 3 if white_first else [0] * 3 + [255] * 3)
    buffer = io.BytesIO()
    palette.save(buffer, format=kind)
    found = codecs.decode(buffer.getvalue(), "x", True).array[0, 0]
    np.testing.assert_array_equal(found > 0, OBJECT > 0)


def test_a_bmp_that_pillow_misreads_is_refused():
    picture = Image.fromarray((OBJECT > 0).astype(np.uint8), mode="P")
    picture.putpalette([0] * 3 + [255] * 3)
    buffer = io.BytesIO()
    picture.save(buffer, format="BMP")
    with pytest.raises(InputError, match="x: two colours in 8 bits a pixel, which Pillow misreads; save it as PNG"):
        codecs.decode(buffer.getvalue(), "x", True)


@pytest.mark.parametrize("array", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_min_is_white_is_inverted(array):
    most = np.iinfo(array.dtype).max
    buffer = io.BytesIO()
    Image.fromarray(most - array).save(buffer, format="TIFF")
    data = bytearray(buffer.getvalue())
    photometric = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    data[photometric + 8] = 0
    np.testing.assert_array_equal(codecs.decode(bytes(data), "x").array[0, 0], array)


def test_a_tiff_of_another_kind_names_it():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, format="TIFF")
    data = buffer.getvalue()
    bits = data.index(struct.pack("<HHIH", 258, 3, 1, 8))
    with pytest.raises(InputError, match="x: pixels of a kind that is not read; save it as 8- or 16-bit grey"):
        codecs.decode(data[: bits + 8] + struct.pack("<H", 64) + data[bits + 10 :], "x")


def test_a_big_tiff_is_read():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, format="TIFF", big_tiff=True)
    assert buffer.getvalue()[:4] == b"II+\0"
    np.testing.assert_array_equal(codecs.decode(buffer.getvalue(), "x").array[0, 0], GREY)


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


def with_forms(sform, qform, pixdim, unit="mm"):
    """A volume whose header has these forms, each None or (affine, code), and these voxel sizes."""
    image = nib.Nifti1Image(np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9), None)
    for form, stated in (("sform", sform), ("qform", qform)):
        if stated:
            getattr(image, f"set_{form}")(*stated)
    image.header["pixdim"][1:4] = pixdim
    image.header.set_xyzt_units(unit)
    return image.to_bytes()


FINE = np.diag([0.5, 0.5, 5.0, 1.0])


def test_sizes_that_contradict_each_other_are_refused_by_both():
    told = r"x: voxels of 0.5 x 0.5 x 5 by its affine, of 1 x 1 x 1 by pixdim; correct the header"
    with pytest.raises(InputError, match=told):
        codecs.decode(with_forms((FINE, 1), None, (1, 1, 1)), "x")
    with pytest.raises(InputError, match=r"x: voxel size 0 x 1 x 1 in pixdim, expected three positive numbers"):
        codecs.decode(with_forms(None, None, (0, 1, 1)), "x")
    decoded = codecs.decode(with_forms((FINE, 1), None, (0.5001, 0.5, 5)), "x")
    assert decoded.spacing == (5.0, 0.5, 0.5)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_the_unit_of_a_file_is_honoured(unit, factor):
    decoded = codecs.decode(with_forms((FINE, 1), None, (0.5, 0.5, 5), unit), "x")
    assert decoded.spacing == pytest.approx((5 * factor, 0.5 * factor, 0.5 * factor))
    np.testing.assert_allclose(np.abs(np.diag(decoded.geometry.affine)[:3]), np.array([0.5, 0.5, 5]) * factor)


@pytest.mark.parametrize("sform", [None, (AFFINES["permuted"], 4), (AFFINES["RAS"], 2)])
@pytest.mark.parametrize("qform", [None, (AFFINES["permuted"], 1)])
@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_a_mask_has_the_geometry_of_its_file_copied(sform, qform, unit):
    sizes = nib.affines.voxel_sizes((sform or qform or (np.diag([1.5, 2, 3, 1]),))[0])
    data = with_forms(sform, qform, sizes, unit)
    decoded, source = codecs.decode(data, "x"), nib.Nifti1Image.from_bytes(data).header
    mask = (decoded.array[0] > 250).astype(np.uint8)
    back = nib.Nifti1Image.from_bytes(gzip.decompress(codecs.encode_mask(mask, decoded, 1)))
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.arange(7 * 8 * 9).reshape(7, 8, 9) > 250)
    for form in ("sform", "qform"):
        (ours, our_code), (theirs, their_code) = (getattr(h, f"get_{form}")(coded=True) for h in (back.header, source))
        assert our_code == their_code
        if their_code:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_array_equal(back.header["pixdim"][1:4], source["pixdim"][1:4])
    assert back.header.get_xyzt_units()[0] == unit


def test_slices_run_along_the_bodys_axis_and_spacing_follows():
    decoded = codecs.decode(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), AFFINES["permuted"]).to_bytes(), "x")
    assert decoded.array.shape == (1, 5, 4, 6)
    assert decoded.spacing == (1.5, 2.0, 3.0)


def test_a_stack_of_volumes_is_channels():
    values = np.random.default_rng(0).random((4, 5, 6, 2)).astype(np.float32)
    decoded = codecs.decode(nib.Nifti1Image(values, np.eye(4)).to_bytes(), "x")
    np.testing.assert_array_equal(decoded.array, values.transpose(3, 2, 1, 0))


def test_a_nifti_of_the_second_version_is_read_as_well():
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    one, two = (codecs.decode(kind(values, np.eye(4)).to_bytes(), "x") for kind in (nib.Nifti1Image, nib.Nifti2Image))
    np.testing.assert_array_equal(one.array, two.array)
    assert codecs.encode_mask(one.array[0].astype(np.uint8), two, 1) == codecs.encode_mask(
        two.array[0].astype(np.uint8), one, 1
    )


PNG = picture(GREY, "PNG")
NIFTI = gzip.compress(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)).to_bytes())


def with_magic(magic):
    whole = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)).to_bytes()
    return whole[:344] + magic + whole[347:]


INVALID = {
    "empty": (b"", "empty file"),
    "text": (b"hello, this is no picture", "not a PNG"),
    "png cut short": (PNG[:200], "cut short"),
    "png header only": (PNG[:20], "not a PNG|cut short"),
    "gzip of text": (gzip.compress(b"hello"), "not a complete NIfTI"),
    "nifti cut short": (NIFTI[:80], "not a complete NIfTI"),
    "nifti data cut short": (gzip.compress(gzip.decompress(NIFTI)[:400]), "not a complete NIfTI"),
    "bomb": (None, "50000 x 50000 pixels, at most 178,956,970 are taken"),
    "another format": (picture(GREY, "GIF"), "a GIF file, which is not read; save it as PNG"),
    "no format": (b"hello", "not a PNG, JPEG, TIFF, BMP, NIfTI or DICOM file"),
    "half a pair": (with_magic(b"ni1"), "a header without its voxels"),
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
    channels, elsewhere = codecs.stack({"fine": fine, "coarse": coarse})
    assert elsewhere == ["coarse"]
    np.testing.assert_allclose(channels[1], fine.array[0], atol=1e-3)


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


VALUES = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
PLAIN = nib.Nifti1Image(VALUES, np.eye(4)).to_bytes()


def with_header(**fields):
    """A small NIfTI whose header says something else."""
    header = nib.Nifti1Header(PLAIN[:348])
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + PLAIN[348:]


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:400]) + gzip.compress(PLAIN[400:]),
        gzip.compress(PLAIN) + b"behind the data",
        gzip.compress(PLAIN + bytes(1000)),
        PLAIN + bytes(1000),
    ],
    ids=["three members", "text behind the gzip", "bytes behind the packed data", "bytes behind the data"],
)
def test_only_the_voxels_that_the_header_speaks_of_are_read(data):
    np.testing.assert_array_equal(codecs.decode(data, "x").array[0], VALUES.transpose(2, 1, 0))


def test_a_packed_file_is_checked_to_its_last_byte():
    packed = bytearray(gzip.compress(PLAIN, compresslevel=0))
    packed[-20] ^= 1
    with pytest.raises(InputError, match="incorrect data check"):
        codecs.decode(bytes(packed), "x")
    with pytest.raises(InputError, match="within a gzip member"):
        codecs.decode(gzip.compress(PLAIN)[:-4], "x")


BOMBS = {
    "a large grid": (with_header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "30000 x 30000 x 30000 voxels, at most"),
    "a large stack": (with_header(dim=[4, 100, 100, 100, 30000, 1, 1, 1]), "100 x 100 x 100 x 30000 voxels, at most"),
    "less than said": (with_header(dim=[3, 90, 90, 90, 1, 1, 1, 1]), "by its header 1,458,352"),
    "far away": (with_header(vox_offset=2e9), "voxels from byte 2,000,000,000 on"),
    "nowhere": (with_header(vox_offset=np.nan), "not a complete NIfTI"),
    "a negative axis": (with_header(dim=[3, 4, -5, 6, 1, 1, 1, 1]), "4 x -5 x 6 voxels"),
    "an empty axis": (with_header(dim=[3, 4, 0, 6, 1, 1, 1, 1]), "4 x 0 x 6 voxels"),
    "no number": (with_header(qform_code=0, sform_code=2, srow_x=[np.nan] * 4), "affine"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_a_header_that_claims_too_much_is_refused_before_anything_unfolds(name, packed):
    claimed, told = BOMBS[name]
    data = gzip.compress(claimed + bytes(1 << 22 if packed and name != "less than said" else 0))
    assert len(data) < 1 << 17
    with allocating(1 << 20), pytest.raises(InputError, match=told):
        codecs.decode(data if packed else claimed, "x", most=1_000_000)


def test_a_gzip_bomb_behind_an_honest_header_unfolds_no_further_than_that():
    bomb = gzip.compress(PLAIN + bytes(16 << 20))
    with allocating(2 << 20):
        decoded = codecs.decode(bomb, "x")
    np.testing.assert_array_equal(decoded.array[0], VALUES.transpose(2, 1, 0))


def test_a_gzip_of_endlessly_many_members_is_refused():
    with pytest.raises(InputError, match="over 32,768 gzip members"):
        codecs.decode(gzip.compress(b"") * 33_000, "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_picture_of_more_pixels_than_are_taken_is_refused(kind):
    assert codecs.decode(picture(GREY, kind), "x", most=600).array.size == 600
    with pytest.raises(InputError, match=r"x: 20 x 30 pixels, at most 599 are taken"):
        codecs.decode(picture(GREY, kind), "x", most=599)


@pytest.mark.parametrize(("kind", "count", "told"), [(4, 1, "60000 x 60000 pixels"), (2, 4, "damaged")])
def test_a_tile_larger_than_its_picture_or_of_a_size_in_words_is_refused(kind, count, told):
    tags = {256: 30, 257: 20, 258: 8, 259: 8, 262: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 0}
    entries = b"".join(
        struct.pack("<HHLL", tag, *((kind, count) if tag in (322, 323) else (4, 1)), value)
        for tag, value in tags.items()
    )
    data = b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(InputError, match=told):
        codecs.decode(data, "x")


JPEG = picture(GREY, "JPEG")
PARTS = {
    "chunks of a PNG": PNG[:33] + (bytes(4) + b"prIv" + zlib.crc32(b"prIv").to_bytes(4, "big")) * 100_000 + PNG[33:],
    "segments of a JPEG": JPEG[:2] + b"\xff\xe9\0\2" * 100_000 + JPEG[2:],
}


@pytest.mark.parametrize("name", PARTS)
def test_a_picture_of_endlessly_many_empty_parts_is_refused(name):
    with allocating(8 << 20), pytest.raises(InputError, match="too many small parts"):
        codecs.decode(PARTS[name], "x")


def test_a_jpeg_of_endlessly_many_scans_is_refused():
    start = JPEG.index(b"\xff\xda")
    scan = JPEG[start:-2]
    with pytest.raises(InputError, match="over 100 scans"):
        codecs.decode(JPEG[:start] + scan * 101 + JPEG[-2:], "x")


def test_a_packed_bmp_is_read_byte_by_byte_as_far_as_it_goes():
    rows = b"".join(b"\1\5\1\7" * 100 + b"\0\0" for _ in range(200)) + b"\0\1"
    palette = bytes(b for i in range(256) for b in (i, i, i, 0))
    head = struct.pack("<LHHL", 1078 + len(rows), 0, 0, 1078)
    info = struct.pack("<LllHHLLllLL", 40, 200, 200, 1, 8, 1, len(rows), 0, 0, 256, 0)
    decoded = codecs.decode(b"BM" + head + info + palette + rows, "x")
    np.testing.assert_array_equal(decoded.array[0, 0], np.tile([5, 7], (200, 100)))


def test_what_nibabel_mends_in_a_header_is_not_told_for_every_file(caplog):
    odd = with_header(pixdim=[5, -1, 1, 1, 1, 1, 1, 1], qform_code=30, vox_offset=353)
    codecs.decode(odd + bytes(1), "x")
    assert not caplog.records


SEEDS = [
    *(picture(array, kind) for kind in ("PNG", "JPEG", "TIFF", "BMP") for array in (GREY, COLOUR)),
    *(picture(DEEP, kind) for kind in ("PNG", "TIFF")),
    *(picture(COLOUR, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
    *(nib.Nifti1Image(VALUES.astype(kind), AFFINES["permuted"]).to_bytes() for kind in (np.uint8, np.float64)),
    nib.Nifti2Image(VALUES, np.eye(4)).to_bytes(),
    gzip.compress(PLAIN),
]


@st.composite
def damaged(draw, seeds=SEEDS):
    """A file with bytes flipped, cut or doubled; packed where it was packed, so that what is within gets damaged."""
    seed = draw(st.sampled_from(seeds))
    inside = seed[:2] == b"\x1f\x8b" and draw(st.booleans())
    data = bytearray(gzip.decompress(seed) if inside else seed)
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, min(len(data), 500) - 1))] = draw(st.integers(0, 255))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    data = draw(st.sampled_from([data, data[:start], data[:end] + data[start:]]))
    return gzip.compress(bytes(data), 1) if inside else bytes(data)


# Importing the codecs turns these off for a whole process, pytest turns them on again for each test.
@pytest.mark.filterwarnings(r"ignore:::PIL\.\w+ImagePlugin")
@settings(max_examples=300)
@given(st.one_of(damaged(), st.binary(max_size=400)), st.booleans())
def test_of_any_bytes_a_decoded_file_or_one_line_comes_out(data, raw_labels):
    try:
        decoded = codecs.decode(data, "scan 7", raw_labels, most=1 << 16)
    except InputError as error:
        told = str(error)
    else:
        assert decoded.array.dtype == np.float32
        assert decoded.array.flags.c_contiguous
        assert 0 < decoded.array[0].size <= 1 << 16
        return
    assert told.startswith("scan 7: ")
    assert len(told.splitlines()) == 1
