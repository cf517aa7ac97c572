"""The model behind the real `mlflow models serve`: what it answers, and what it says to abuse."""

import base64
import gzip
import io
import json
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scoring import AFFINE, JSON, Server, dicom, logged, picture, spec, text
from skimage.draw import polygon2mask

from segpipe.data import codecs

RNG = np.random.default_rng(0)
GREY, RED = RNG.integers(0, 256, (40, 50), dtype=np.uint8), RNG.integers(0, 256, (33, 20, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (64, 30), dtype=np.uint16)
BRAIN = RNG.random((20, 24, 5), dtype=np.float32)
MOST = 1 << 16


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    """A server of a model of pictures with a limit of 2^16 pixels."""
    home = tmp_path_factory.mktemp("home")
    limits = json.dumps({"max_pixels": MOST})
    started = Server(logged(spec(), home / "segpipe"), home, SERVING_MODEL_CONFIG=limits)
    try:
        started.wait()
        yield started
    finally:
        started.close()


def volume(values=BRAIN):
    return codecs.encode_nifti(values, AFFINE)


def bomb():
    """A PNG that says it is 50 000 x 50 000."""
    data = picture(np.zeros((1, 1), np.uint8))
    start = data.index(b"IHDR")
    block = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + data[start + 12 : start + 17]
    return data[:start] + block + zlib.crc32(block).to_bytes(4, "big") + data[start + 21 :]


def large_nifti(data=b""):
    """A NIfTI that says it is 2000 x 2000 x 2000, with that many bytes or fewer."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2000, 2000, 2000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    return gzip.compress(header.binaryblock + bytes(4) + data, 1)


HOLE = BRAIN.copy()
HOLE[3, 4, 2] = np.nan
ONE = {"image": text(picture(GREY))}
ROWS = {
    "not base64": ("hello, world", "image: not base64"),
    "not an image": (text(b"hello, world"), "image: not a PNG"),
    "cut short": (text(picture(GREY)[:900]), "image: damaged or cut short"),
    "PNG bomb": (text(bomb()), "image: 50000 x 50000 pixels, at most 65,536 are taken"),
    "gzip bomb": (text(large_nifti(bytes(1 << 26))), "at most 65,536 are taken"),
    "more than max_pixels": (
        text(picture(np.zeros((257, 256), np.uint8))),
        "257 x 256 pixels, at most 65,536 are taken",
    ),
    "NaN volume": (text(volume(HOLE)), "NaN or infinite voxels"),
    "empty": ("", "image: empty file"),
    "no pixel": ([[[]]], "image: numbers of shape (1, 1, 0), expected C,H,W"),
    "path": ("/data/scan_01.png", "image: looks like a path or URL; send the file's bytes as base64"),
    "URL": ("https://example.org/scan.png", "image: looks like a path or URL; send the file's bytes as base64"),
    "null": (None, "column 'image' is missing"),
}


def test_each_bad_row_is_blamed_alone_in_a_batch_and_by_400_when_it_is_the_only_one(server):
    together = server.ask([ONE, *({"image": cell} for cell, _ in ROWS.values()), ONE])
    assert together[0] == together[-1] == server.ask([ONE])[0]
    assert together[0]["error"] is None
    for (cell, told), row in zip(ROWS.values(), together[1:-1], strict=True):
        assert told in row.pop("error")
        assert set(row.values()) == {None}
        status, answer = server.send(json.dumps({"dataframe_records": [{"image": cell}]}).encode())
        assert status == 400
        fault = json.loads(answer)
        assert fault == {
            "error_code": "INVALID_PARAMETER_VALUE",
            "message": f"row 0: {fault['reason']}",
            "row": 0,
            "reason": fault["reason"],
        }
        assert told in fault["reason"]
        assert "\n" not in answer
        assert "Traceback" not in answer


def asked(rows=(ONE,), **params):
    return json.dumps({"dataframe_records": rows, "params": params}).encode()


OURS = {
    "wrong column": (asked([{"imgae": "x"}]), JSON, "unknown column 'imgae' (nearest: image); this model takes image"),
    "no rows": (asked([]), JSON, "no row with image"),
    "65 rows": (asked([ONE] * 65), JSON, "65 rows, at most 64 are taken: send several requests"),
    "threshold 0": (asked(threshold=0), JSON, "threshold 0.0 is not between 0 and 1"),
    "threshold 1": (asked(threshold=1), JSON, "threshold 1.0 is not between 0 and 1"),
    "threshold 2": (asked(threshold=2), JSON, "threshold 2.0 is not between 0 and 1"),
    "threshold NaN": (asked(threshold=float("nan")), JSON, "threshold nan is not between 0 and 1"),
    "output": (
        asked(output="ngp"),
        JSON,
        "output 'ngp' (nearest: png) is none of auto, png, nifti, tiff, rle, polygons, none",
    ),
    "min_area": (asked(min_area=-1), JSON, "min_area -1 is below 0"),
    "numbers N,H": (b'{"instances": [[1, 2], [3, 4]]}', JSON, "expected numbers N,C,H,W with C=1"),
    "chat": (b'{"messages": []}', JSON, "unknown column 'messages'"),
    "CSV column": (b"imgae\nx", {"Content-Type": "text/csv"}, "unknown column 'imgae'"),
}


def test_a_request_at_fault_is_refused_in_one_line_of_ours(server):
    for body, headers, told in OURS.values():
        status, answer = server.send(body, headers)
        fault = json.loads(answer)
        assert status == 400
        assert set(fault) == {"error_code", "message"}
        assert fault["message"].startswith(told) or told in fault["message"]
        assert "Traceback" not in answer


MLFLOWS = {  # body, headers, status, what it says: before the model sees the request, echo and traceback as they are
    "malformed JSON": (b'{"dataframe_records": [{"image": "echoed', JSON, 400, "echoed"),
    "empty body": (b"", JSON, 400, "Expecting value"),
    "list": (b"[1]", JSON, 400, "Received a list"),
    "no rows at all": (b"{}", JSON, 400, "exactly one of the input fields"),
    "ragged": (b'{"instances": [[1, 2], [3]]}', JSON, 400, "inhomogeneous"),
    "threshold x": (asked(threshold="x"), JSON, 400, "Can not safely convert"),
    "params": (b'{"dataframe_records": [], "params": [1]}', JSON, 400, "Parameters must be a dictionary"),
    "no content type": (asked(), {}, 500, "Internal Server Error"),
    "other content type": (asked(), {"Content-Type": "text/xml"}, 415, "only supports the following content types"),
    "empty CSV": (b"", {"Content-Type": "text/csv"}, 400, "Traceback"),
    "no parquet": (b"x", {"Content-Type": "application/vnd.apache.parquet"}, 400, "Traceback"),
}


def test_what_mlflow_says_before_the_model_sees_a_request(server):
    for body, headers, expected, told in MLFLOWS.values():
        status, answer = server.send(body, headers)
        assert status == expected
        assert told in answer
    assert server.ask([ONE], treshold=0.999) == server.ask([ONE])  # MLflow drops what it does not know


def test_every_codec_and_size_is_answered_in_one_request(server):
    kinds = [("PNG", GREY), ("JPEG", GREY), ("TIFF", GREY), ("BMP", GREY), ("PNG", DEEP), ("TIFF", DEEP), ("PNG", RED)]
    files = [picture(array, kind) for kind, array in kinds]
    files += [dicom(DEEP, PixelSpacing=[0.5, 0.25]), volume(), volume(BRAIN[:9, :8, :1])]
    answers = server.ask([{"image": text(data)} for data in files])
    for data, row in zip(files, answers, strict=True):
        like = codecs.decode(data, "x")
        assert row["error"] is None
        mask = codecs.decode(base64.b64decode(row["mask"]), "x")
        assert mask.array.shape[1:] == like.array.shape[1:]
        assert row["foreground_voxels"] == np.count_nonzero(mask.array)
    assert answers[6]["warnings"] == ["image: colour turned to grey"]
    assert answers[7]["foreground_mm2"] == answers[7]["foreground_voxels"] * 0.125
    assert [row["foreground_ml"] is None for row in answers] == [True] * 8 + [False] * 2


def rasterised(outlines, shape):
    """The mask of polygons, X,Y of the first pixel's centre at 0.5."""
    mask = np.zeros(shape, bool)
    for outline in outlines:
        points = np.array(outline["points"])[:, ::-1] - 0.5
        mask[..., outline["slice"]] ^= polygon2mask(shape[:2], points)
    return mask


def runs(parts, shape):
    """The mask of COCO's run lengths."""
    mask = np.zeros(shape, bool)
    for part in parts:
        values = np.repeat(np.arange(len(part["counts"])) % 2, part["counts"])
        mask[..., part["slice"]] |= values.reshape(part["size"], order="F").astype(bool)
    return mask


def stored(mask):
    """The mask of a base64 PNG or NIfTI, as the file stores it; a picture with a third axis."""
    data = base64.b64decode(mask)
    if data.startswith(b"\x89PNG"):
        return np.asarray(Image.open(io.BytesIO(data)))[..., None] > 0
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(data)).dataobj) > 0


@pytest.mark.parametrize(("data", "own", "other"), [(picture(GREY), "png", "nifti"), (volume(), "nifti", "png")])
def test_every_output_says_the_same_mask(server, data, own, other):
    rows = [{"image": text(data)}]
    (auto,), (same,), (none,) = (server.ask(rows, output=name) for name in ("auto", own, "none"))
    expected = stored(auto["mask"])
    assert 0 < expected.mean() < 1
    assert auto == same
    assert none == auto | {"mask": None}
    np.testing.assert_array_equal(runs(server.ask(rows, output="rle")[0]["mask"], expected.shape), expected)
    outlines = server.ask(rows, output="polygons")[0]["mask"]
    np.testing.assert_array_equal(rasterised(outlines, expected.shape), expected)
    status, answer = server.send(asked(rows, output=other))
    assert status == 400
    assert json.loads(answer)["reason"].startswith(f"output={other}")


def test_flips_probabilities_and_components_are_asked_for_by_name(server):
    (plain,) = server.ask([ONE | {"spacing": [0.5, 0.25]}])
    assert plain["foreground_mm2"] == plain["foreground_voxels"] * 0.125
    assert plain["uncertainty"] is plain["probabilities"] is None
    (flipped,) = server.ask([ONE], tta=True, return_probabilities=True)
    assert 0 < flipped["uncertainty"] <= 0.25
    steps = np.asarray(Image.open(io.BytesIO(base64.b64decode(flipped["probabilities"]))))
    assert steps.max() / 65535 == pytest.approx(flipped["max_probability"], abs=1e-5)
    (one,) = server.ask([ONE], largest_component=True)
    (none,) = server.ask([ONE], min_area=10_000)
    assert (one["lesions"], none["lesions"], none["foreground_voxels"]) == (1, 0, 0)


def test_tensors_split_frames_and_csv_are_the_same_rows(server):
    expected = server.ask([ONE, ONE])
    bodies = {
        "dataframe_split": {"columns": ["image"], "data": [[ONE["image"]]] * 2},
        "instances": [[GREY.tolist()]] * 2,
        "inputs": [GREY.tolist()] * 2,
    }
    bodies["named"] = bodies["instances"]
    for key, rows in bodies.items():
        body = {"instances": [{"image": one} for one in rows]} if key == "named" else {key: rows}
        status, answer = server.send(json.dumps(body).encode())
        assert (status, json.loads(answer)["predictions"]) == (200, expected)
    csv = f'image,spacing\n{ONE["image"]},\n{ONE["image"]},"0.5,0.25"\n'.encode()
    status, answer = server.send(csv, {"Content-Type": "text/csv"})
    assert json.loads(answer)["predictions"][0] == expected[0]
    assert json.loads(answer)["predictions"][1]["foreground_mm2"] == expected[0]["foreground_voxels"] * 0.125
