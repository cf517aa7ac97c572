import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import allocating
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from segpipe.config import settings as settings_module
from segpipe.data import codecs
from segpipe.data.readers import all_cases, open_reader
from segpipe.errors import InputError
from segpipe.files.project import PROJECT

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 4096, (20, 30), dtype=np.uint16)
SIGNED = np.random.default_rng(2).integers(-2048, 2048, (20, 30), dtype=np.int16)
COLOUR = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def dataset(pixels, **elements):
    """The elements of an image of rows x columns, or rows x columns x 3."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored = 12 if pixels.itemsize == 2 else 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def written(ds, syntax=uid.ExplicitVRLittleEndian):
    if syntax.is_encapsulated:
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def framed(pixels, kind, syntax, **elements):
    """A file whose one frame is a JPEG or JPEG 2000."""
    frame = io.BytesIO()
    Image.fromarray(pixels).save(frame, format=kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    return written(dataset(pixels, PixelData=encapsulate([frame.getvalue()]), **elements), syntax), frame.getvalue()


def packed(pixels):
    ds = dataset(pixels)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.compress(uid.RLELossless, generate_instance_uid=False)
    return written(ds, uid.RLELossless)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("pixels", [GREY, DEEP, SIGNED, COLOUR], ids=["grey", "deep", "signed", "colour"])
def test_uncompressed_pixels_keep_every_value(pixels, syntax):
    decoded = codecs.decode(written(dataset(pixels), syntax), "x")
    np.testing.assert_array_equal(decoded.array, np.atleast_3d(pixels).transpose(2, 0, 1)[:, None])
    assert decoded.spacing is None
    assert not decoded.geometry.volume


@pytest.mark.parametrize("pixels", [GREY, DEEP, SIGNED, COLOUR], ids=["grey", "deep", "signed", "colour"])
def test_run_lengths_keep_every_value(pixels):
    decoded = codecs.decode(packed(pixels), "x")
    np.testing.assert_array_equal(decoded.array, np.atleast_3d(pixels).transpose(2, 0, 1)[:, None])


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_jpeg_frame_is_what_pillow_makes_of_it(pixels):
    kind = "YBR_FULL_422" if pixels.ndim == 3 else "MONOCHROME2"
    data, frame = framed(pixels, "JPEG", uid.JPEGBaseline8Bit, PhotometricInterpretation=kind)
    expected = np.atleast_3d(np.asarray(Image.open(io.BytesIO(frame)))).transpose(2, 0, 1)[:, None]
    np.testing.assert_allclose(codecs.decode(data, "x").array, expected, atol=3)


def test_a_lossless_jpeg_2000_keeps_every_value():
    data, _ = framed(GREY, "JPEG2000", uid.JPEG2000Lossless)
    np.testing.assert_array_equal(codecs.decode(data, "x").array[0, 0], GREY)


def test_colour_in_planes_is_the_same_as_colour_by_pixels():
    planes = dataset(COLOUR, PlanarConfiguration=1, PixelData=COLOUR.transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(codecs.decode(written(planes), "x").array[:, 0], COLOUR.transpose(2, 0, 1))


def test_stored_values_are_rescaled():
    data = written(dataset(DEEP, RescaleSlope="0.5", RescaleIntercept="-1024"))
    np.testing.assert_array_equal(codecs.decode(data, "x").array[0, 0], DEEP * 0.5 - 1024)


@pytest.mark.parametrize(("pixels", "expected"), [(DEEP, 4095.0 - DEEP), (SIGNED, -1.0 - SIGNED)])
def test_what_is_shown_bright_is_high(pixels, expected):
    data = written(dataset(pixels, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(codecs.decode(data, "x").array[0, 0], expected)


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.25], "SliceThickness": "3"}, (3.0, 0.5, 0.25)),
        ({"PixelSpacing": [0.5, 0.25], "SliceThickness": "0"}, (1.0, 0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, (1.0, 0.3, 0.2)),
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [0.3, 0.2]}, (1.0, 0.5, 0.25)),
        ({"SliceThickness": "3"}, None),
    ],
)
def test_spacing_is_that_of_the_patient_or_else_of_the_detector(elements, spacing):
    assert codecs.decode(written(dataset(GREY, **elements)), "x").spacing == spacing


def test_its_mask_is_a_picture():
    like = codecs.decode(written(dataset(GREY)), "x")
    mask = (GREY > 100).astype(np.uint8)[None]
    back = np.asarray(Image.open(io.BytesIO(codecs.encode_mask(mask, like, 1))))
    np.testing.assert_array_equal(back, mask[0] * 255)


def lut():
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [1, 0, 16], [7], "US"
    return dataset(DEEP, ModalityLUTSequence=[item])


def without(*names):
    ds = dataset(GREY)
    for name in names:
        delattr(ds, name)
    return ds


REFUSED = {
    "frames": (written(dataset(GREY, NumberOfFrames=2, PixelData=GREY.tobytes() * 2)), "2 frames"),
    "palette": (written(dataset(GREY, PhotometricInterpretation="PALETTE COLOR")), "interpretation PALETTE COLOR"),
    "look-up table": (written(lut()), "rescale slope and intercept"),
    "no pixels": (written(without("PixelData")), "no pixel data"),
    "no rows": (written(without("Rows")), "'Rows'"),
    "no bits": (written(without("BitsStored")), "Bits Stored"),
    "zero rows": (written(dataset(GREY, Rows=0)), "0 x 30 pixels"),
    "huge": (written(dataset(GREY, Rows=50_000, Columns=50_000)), "50000 x 50000 pixels, at most 1,000,000 are taken"),
    "pixels cut short": (written(dataset(GREY, Rows=400)), "not a complete DICOM file"),
    "bad spacing": (written(dataset(GREY, PixelSpacing=[0, 1])), r"voxel size \[1.0, 0.0, 1.0\] mm"),
    "lossless": (framed(GREY, "JPEG", uid.JPEGLosslessSV1)[0], r"JPEG Lossless.*gdcmconv --raw"),
    "twelve bits": (framed(GREY, "JPEG", uid.JPEGExtended12Bit, BitsAllocated=16, BitsStored=12)[0], "JPEG Extended"),
    "a larger frame": (framed(GREY, "JPEG", uid.JPEGBaseline8Bit, Rows=10)[0], "20 x 30 pixels, by its header 10 x 30"),
    "pieces": (
        written(dataset(GREY, PixelData=b"\xfe\xff\0\xe0\0\0\0\0" * 5000), uid.JPEGBaseline8Bit),
        "4,096 pieces",
    ),
    "scans": (
        written(dataset(GREY, PixelData=encapsulate([b"\xff\xd8" + b"\xff\xda" * 101])), uid.JPEGBaseline8Bit),
        "over 100 scans",
    ),
    "no frame": (written(dataset(GREY, PixelData=encapsulate([b"no JPEG"])), uid.JPEGBaseline8Bit), "not a complete"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_read_is_refused_in_one_line(name):
    data, told = REFUSED[name]
    with pytest.raises(InputError, match=told) as caught:
        codecs.decode(data, "scan 7", most=1_000_000)
    assert str(caught.value).startswith("scan 7: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_deflated_file_is_refused_before_it_unfolds():
    data = written(dataset(np.zeros((4000, 4000), np.uint8)), uid.DeflatedExplicitVRLittleEndian)
    codecs.decode(written(dataset(GREY)), "x")
    with allocating(1 << 20), pytest.raises(InputError, match="Deflated"):
        codecs.decode(data, "x")


def test_run_lengths_of_more_pixels_than_the_header_says_are_refused_before_they_unfold():
    bomb = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 200_000
    data = written(dataset(GREY, PixelData=encapsulate([bomb])), uid.RLELossless)
    codecs.decode(packed(GREY), "x")
    with allocating(4 << 20), pytest.raises(InputError, match="run lengths of more pixels"):
        codecs.decode(data, "x")


EMPTY = {
    "items": struct.pack("<HH2sHL", 0x7000, 0x10, b"SQ", 0, 0xFFFFFFFF)
    + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 50_000,
    "elements": struct.pack("<HH2sH", 0x7000, 0x10, b"LO", 0) * 50_000,
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_header_of_endlessly_many_empty_parts_is_refused(name):
    data = written(without("PixelData")) + EMPTY[name]
    with allocating(20 << 20), pytest.raises(InputError, match="not a complete DICOM file"):
        codecs.decode(data, "x")


def test_odd_values_are_not_told_for_every_file(tmp_path):
    data = written(dataset(GREY, PixelData=GREY.tobytes() + bytes(100), SpecificCharacterSet="ISO_IR 100"))
    (tmp_path / "odd.dcm").write_bytes(data.replace(b"ISO_IR 100", b"ISO_IR 1x0"))
    program = (
        "import pathlib, sys; from segpipe.data import codecs; "
        "print(codecs.decode(pathlib.Path(sys.argv[1]).read_bytes(), 'x').array.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "odd.dcm"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("(1, 1, 20, 30)\n", "")


def test_a_folder_may_hold_dicom_images_with_pictures_as_masks(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    spacing = {"PixelSpacing": [0.5, 0.25]}
    (tmp_path / "images" / "a.dcm").write_bytes(written(dataset(DEEP, **spacing)))
    Image.fromarray(((DEEP > 99) * 255).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    reader = open_reader(settings_module.load(None, {"data.format": "folder", "data.root": str(tmp_path)}))
    volume = reader.load(all_cases(reader)[0])
    assert volume.spacing == (1.0, 0.5, 0.25)
    np.testing.assert_array_equal(volume.image[0, 0], DEEP)
    np.testing.assert_array_equal(volume.mask[0], DEEP > 99)
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "a.dcm")
    with pytest.raises(InputError, match="not a picture"):
        all_cases(reader)


SEEDS = [
    *(written(dataset(pixels)) for pixels in (GREY, SIGNED, COLOUR)),
    written(dataset(DEEP, RescaleSlope="2", PixelSpacing=[1, 1]), uid.ImplicitVRLittleEndian),
    packed(GREY),
    packed(COLOUR),
    framed(COLOUR, "JPEG", uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")[0],
    framed(GREY, "JPEG2000", uid.JPEG2000Lossless)[0],
    written(lut()),
]


@st.composite
def damaged(draw):
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(132, len(data) - 1))] = draw(st.integers(0, 255))
    start, end = sorted(draw(st.tuples(*[st.integers(132, len(data))] * 2)))
    return bytes(draw(st.sampled_from([data, data[:start], data[:end] + data[start:]])))


# Importing the codec turns these off for a whole process, pytest turns them on again for each test.
@pytest.mark.filterwarnings("ignore:::pydicom", r"ignore:::PIL\.\w+ImagePlugin")
@settings(max_examples=300)
@given(st.one_of(damaged(), st.binary(max_size=300).map(lambda text: bytes(128) + b"DICM" + text)))
def test_of_any_bytes_a_decoded_file_or_one_line_comes_out(data):
    try:
        decoded = codecs.decode(data, "scan 7", most=1 << 16)
    except InputError as error:
        told = str(error)
    else:
        assert decoded.array.dtype == np.float32
        assert 0 < decoded.array[0].size <= 1 << 16
        return
    assert told.startswith("scan 7: ")
    assert len(told.splitlines()) == 1
