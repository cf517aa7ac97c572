import base64
import gzip
import io
import json
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image

from segpipe.config.sections import ModelConfig, PreprocessConfig
from segpipe.data import codecs, components, encodings
from segpipe.errors import InputError
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures
from segpipe.serving import request, served_model
from segpipe.serving.request import Refusal
from segpipe.serving.served_model import ANSWER, ServedModel

MOST = 1 << 20
TINY = ModelConfig(encoder="tu-test_resnet", encoder_depth=3)
PLANE = PreprocessConfig(size=(32, 32))
GREY = ModelSpec(model=TINY, preprocess=PLANE, kind="picture", channels=("grey",), classes=("thing",), threshold=0.4)
COLOUR = GREY.model_copy(update={"channels": ("red", "green", "blue")})
VOLUMES = GREY.model_copy(update={"kind": "volume", "channels": ("dwi", "adc")})
AFFINE = np.array([[-2.0, 0, 0, 50], [0, 1.5, 0, -40], [0, 0, 5.0, 10], [0, 0, 0, 1]])
RNG = np.random.default_rng(0)
PLAIN, RED = RNG.integers(0, 256, (20, 30), dtype=np.uint8), RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
BRAIN = RNG.random((6, 7, 3), dtype=np.float32)


def text(data):
    return base64.b64encode(data).decode()


def picture(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind)
    return text(buffer.getvalue())


def volume(values=BRAIN, affine=AFFINE):
    return text(codecs.encode_nifti(values, affine))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A function that gives the served model of a spec, loaded as MLflow loads it."""
    home = tmp_path_factory.mktemp("models")
    known = {}

    def load(spec, **limits):
        key = (spec.kind, len(spec.channels), len(spec.classes), spec.labelling, *limits.items())
        if key not in known:
            folder = home / str(len(known))
            network = architectures.build(spec.model, len(spec.channels), len(spec.classes), seed=0)
            Predictor(spec, network).save(folder)
            known[key] = ServedModel()
            known[key].load_context(PythonModelContext({served_model.ARTIFACT: str(folder)}, limits))
        return known[key]

    return load


def answers(model, rows, **params):
    return model.predict(pd.DataFrame(rows), params).to_dict(orient="records")


def test_a_model_is_served_as_it_was_measured_and_says_what_a_request_leaves_out(served):
    measured = GREY.model_copy(update={"tta": True, "largest_component": True, "min_area": 5})
    model, row = served(measured), {"image": picture(PLAIN)}
    predictor = model.predictor
    (plain,) = answers(model, [row])
    expected = predictor.answer(predictor.prepare(PLAIN[None, None].astype(np.float32)), measured.labelling)
    assert plain["mask"] == encodings.encode(
        expected.mask, codecs.decode(base64.b64decode(row["image"]), "x"), ("thing",), "auto"
    )
    assert plain["uncertainty"] is not None
    assert plain["warnings"] == []
    (less,) = answers(model, [row], tta=False, largest_component=False, min_area=2)
    assert less["warnings"] == [
        "tta is off, the model was measured with it",
        "largest_component is off, the model was measured with it",
        "min_area is 2, the model was measured with 5",
    ]
    assert less["uncertainty"] is None
    (more,) = answers(served(GREY), [row], tta=True, largest_component=True)
    assert more["warnings"] == []
    assert {p.name: p.default for p in served_model.signature(measured).params.params}["tta"] is True


def test_a_row_has_every_field_and_no_nan(served):
    (row,) = answers(served(GREY), [{"image": picture(PLAIN), "spacing": [0.5, 0.25]}], tta=True)
    assert list(row) == list(ANSWER)
    predictor = served(GREY).predictor
    expected = predictor.segment(PLAIN[None, None].astype(np.float32), 0.4, tta=True)
    voxels = int(expected.mask.sum())
    assert base64.b64decode(row["mask"]) == codecs.encode_mask(expected.mask, codecs.Decoded(PLAIN, None), 1)
    assert row["foreground_voxels"] == voxels
    assert row["foreground_mm2"] == voxels * 0.125
    assert row["lesions"] == components.count(expected.mask)
    assert row["max_probability"] == expected.foreground.max()
    assert row["mean_probability"] == pytest.approx(expected.foreground[expected.mask > 0].mean())
    assert row["uncertainty"] == pytest.approx(expected.variance[expected.mask > 0].mean())
    assert row["warnings"] == []
    assert row["foreground_ml"] is row["probabilities"] is row["error"] is row["by_class"] is None
    json.dumps(row, allow_nan=False)


def test_several_classes_have_their_own_amounts(served):
    spec = GREY.model_copy(update={"classes": ("wall", "lumen")})
    (row,) = answers(served(spec), [{"image": picture(PLAIN), "spacing": [0.5, 0.25]}])
    mask = codecs.decode(base64.b64decode(row["mask"]), "mask").array[0, 0]
    assert list(row["by_class"]) == ["wall", "lumen"]
    for label, found in enumerate(row["by_class"].values(), start=1):
        voxels = int((mask == label).sum())
        assert (found["voxels"], found["mm2"], found["ml"]) == (voxels, voxels * 0.125, None)
        assert found["lesions"] == components.count((mask == label)[None].astype(np.uint8))
    assert sum(found["lesions"] for found in row["by_class"].values()) == row["lesions"]


def test_an_empty_mask_has_no_mean_and_still_an_uncertainty(served):
    (row,) = answers(served(GREY), [{"image": picture(PLAIN)}], threshold=0.999, tta=True)
    assert (row["foreground_voxels"], row["lesions"], row["mean_probability"]) == (0, 0, None)
    assert 0 < row["uncertainty"] <= 0.25


def test_a_volume_has_millilitres_and_a_mask_on_its_own_grid(served):
    (row,) = answers(served(VOLUMES), [{"dwi": volume(), "adc": volume(1 - BRAIN)}])
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(row["mask"])))
    assert mask.shape == BRAIN.shape
    np.testing.assert_allclose(mask.affine, AFFINE)
    assert np.count_nonzero(mask.dataobj) == row["foreground_voxels"]
    assert row["foreground_ml"] == pytest.approx(row["foreground_voxels"] * 0.015)
    assert row["foreground_mm2"] is None


def test_bytes_and_wrapped_base64_and_tensors_are_answered_alike(served):
    model, data = served(GREY), base64.b64decode(picture(PLAIN))
    (expected,) = answers(model, [{"image": text(data)}])
    cells = [
        data,
        bytearray(data),
        memoryview(data),
        base64.encodebytes(data).decode(),
        PLAIN[None],
        PLAIN[None].tolist(),
    ]
    assert answers(model, [{"image": cell} for cell in cells]) == [expected] * len(cells)
    stack = np.stack([PLAIN, PLAIN]).astype(np.float64)
    wholes = [
        stack,
        stack[:, None],
        {"image": stack[:, None]},
        {"image": np.array([text(data)] * 2)},
        [{"image": np.array(text(data))}, {"image": text(data)}],
    ]
    for whole in wholes:
        assert model.predict(whole).to_dict(orient="records") == [expected] * 2
    assert model.predict({"image": np.array(text(data))}).to_dict(orient="records") == [expected]


def test_colour_and_grey_are_converted_with_a_warning(served):
    grey = codecs.as_channels(RED.transpose(2, 0, 1)[:, None].astype(np.float32), 1, "x")
    (row,) = answers(served(GREY), [{"image": picture(RED)}])
    (same,) = answers(served(GREY), [{"image": grey[:, 0]}])
    assert row.pop("warnings") == ["image: colour turned to grey"]
    assert same.pop("warnings") == []
    assert row == same
    (row,) = answers(served(COLOUR), [{"image": picture(PLAIN)}])
    assert row["warnings"] == ["image: grey repeated 3 times"]


def test_a_volume_for_a_model_of_pictures_is_segmented_slice_by_slice(served):
    (row,) = answers(served(GREY), [{"image": volume()}])
    slices = codecs.decode(base64.b64decode(volume()), "x").array
    expected = served(GREY).predictor.segment(slices, 0.4)
    assert row["foreground_voxels"] == np.count_nonzero(expected.mask)
    assert row["foreground_ml"] == pytest.approx(row["foreground_voxels"] * 0.015)


def test_a_channel_on_another_grid_is_resampled_with_a_warning(served):
    finer = volume(RNG.random((12, 7, 3), dtype=np.float32), AFFINE @ np.diag([0.5, 1, 1, 1]))
    rows = [{"dwi": volume(), "adc": finer}, {"dwi": volume(), "adc": volume()}]
    other, same = answers(served(VOLUMES), rows)
    assert other["warnings"] == ["adc: resampled, it lies on another grid than dwi"]
    assert same["warnings"] == []


@pytest.mark.parametrize(
    "given", [[0.5, 0.25], [3, 0.5, 0.25], "0.5,0.25", "[0.5, 0.25]", np.array([0.5, 0.25])], ids=str
)
def test_spacing_is_a_list_or_text(given):
    first, _, warnings = request.read({"image": picture(PLAIN), "spacing": given}, GREY, MOST)
    assert first.spacing[1:] == (0.5, 0.25)
    assert warnings == []


@pytest.mark.parametrize(
    "given", [[0.5], [1, 2, 3, 4], [0, 1], [-1, 1], "a,b", 0.5, {}, [float("inf"), 1], [10**400, 1]], ids=str
)
def test_a_spacing_that_is_none_is_refused(given):
    with pytest.raises(InputError, match=r"^spacing: expected "):
        request.read({"image": picture(PLAIN), "spacing": given}, GREY, MOST)


def test_a_file_that_tells_its_spacing_keeps_it():
    first, _, warnings = request.read({"image": volume(), "spacing": [9, 9]}, GREY, MOST)
    assert first.spacing == (5.0, 1.5, 2.0)
    assert warnings == ["spacing: ignored, the file tells its own"]


def test_one_bad_row_of_three_has_its_error_alone(served):
    good, bad = {"image": picture(PLAIN)}, {"image": "aGVsbG8="}
    first, middle, last = answers(served(GREY), [good, bad, good])
    assert first == last == answers(served(GREY), [good])[0]
    assert middle.pop("error").startswith("image: not a ")
    assert set(middle.values()) == {None}


def test_where_no_row_is_good_the_first_ones_reason_is_the_answer(served):
    with pytest.raises(Refusal) as caught:
        answers(served(GREY), [{"image": "!"}, {"image": None}])
    caught.value.message = f"Failed to predict data, as MLflow puts in front: {caught.value.message}"
    assert json.loads(caught.value.serialize_as_json()) == {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": "row 0: image: not base64",
        "row": 0,
        "reason": "image: not base64",
    }
    assert caught.value.get_http_status_code() == 400


def singular():
    """A volume whose sform gives two axes one direction."""
    data = bytearray(gzip.decompress(base64.b64decode(volume())))
    data[280:328] = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()
    return text(bytes(data))


FLAT, DEEP = picture(PLAIN), volume(np.stack([BRAIN, BRAIN], axis=-1))
BAD_ROWS = {
    "no image": (GREY, {}, "column 'image' is missing"),
    "null": (GREY, {"image": None}, "column 'image' is missing"),
    "nan": (GREY, {"image": float("nan")}, "column 'image' is missing"),
    "number": (GREY, {"image": 5}, "image: int, expected a file's bytes as base64 text"),
    "object": (GREY, {"image": {}}, "image: dict, expected a file's bytes as base64 text"),
    "empty text": (GREY, {"image": ""}, "image: empty file"),
    "padding": (GREY, {"image": FLAT[:-1]}, "image: not base64"),
    "accents": (GREY, {"image": "é" * 8}, "image: not base64"),
    "path": (GREY, {"image": "/data/scan_01/dwi.nii.gz"}, "image: looks like a path or URL; send the file's bytes"),
    "relative path": (GREY, {"image": "scans/a_b.png"}, "image: looks like a path or URL"),
    "windows path": (GREY, {"image": "C:\\scans\\a"}, "image: looks like a path or URL"),
    "url": (GREY, {"image": "https://example.org/a?b=c"}, "image: looks like a path or URL"),
    "data url": (GREY, {"image": "data:image/png;base64,AAAA"}, "image: looks like a path or URL"),
    "text": (GREY, {"image": "aGVsbG8="}, "image: not a PNG"),
    "no numbers": (GREY, {"image": [["a"]]}, "image: expected numbers C,H,W"),
    "ragged": (GREY, {"image": [[[1, 2], [3]]]}, "image: expected numbers C,H,W"),
    "too great": (GREY, {"image": [[[10**400]]]}, "image: expected numbers C,H,W"),
    "overflow": (GREY, {"image": [[[1e300]]]}, "NaN or infinite voxels"),
    "nan pixel": (GREY, {"image": [[[float("nan")]]]}, "NaN or infinite voxels"),
    "flat tensor": (GREY, {"image": [[1, 2], [3, 4]]}, "image: numbers of shape (2, 2), expected C,H,W"),
    "no pixel": (GREY, {"image": [[[]]]}, "image: numbers of shape (1, 1, 0), expected C,H,W"),
    "three channels": (GREY, {"image": np.zeros((3, 4, 4))}, "3 channels, the model takes 1"),
    "two channels": (COLOUR, {"image": DEEP}, "2 channels, the model takes 3"),
    "large": (GREY, {"image": np.zeros((1, 1025, 1024))}, "image: 1025 x 1024 pixels, at most 1,048,576 are taken"),
    "no channel": (VOLUMES, {}, "column 'dwi' is missing"),
    "one channel": (VOLUMES, {"dwi": volume()}, "column 'adc' is missing"),
    "a picture": (
        VOLUMES,
        {"image": FLAT},
        "image: a picture; this model takes volumes: NIfTI, or TIFF of several pages",
    ),
    "a picture among files": (VOLUMES, {"dwi": volume(), "adc": FLAT}, "adc: expected a NIfTI file with one volume"),
    "two volumes": (VOLUMES, {"dwi": DEEP, "adc": volume()}, "dwi: expected a NIfTI file with one volume"),
    "singular": (VOLUMES, {"dwi": volume(), "adc": singular()}, "adc: its affine has no inverse"),
    "both": (VOLUMES, {"image": DEEP, "dwi": volume()}, "image and dwi are both given"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_told_in_a_line(served, name):
    spec, row, told = BAD_ROWS[name]
    with pytest.raises(Refusal) as caught:
        served(spec, max_pixels=MOST).predict([row])
    assert caught.value.reason.startswith(told)
    assert caught.value.line == f"row 0: {caught.value.reason}"
    assert "\n" not in caught.value.line


def test_the_limit_on_pixels_is_asked_before_a_file_is_unfolded(served):
    with pytest.raises(Refusal, match="at most 599 are taken"):
        answers(served(GREY, max_pixels=599), [{"image": FLAT}])
    assert answers(served(GREY, max_pixels=600), [{"image": FLAT}])[0]["error"] is None


BAD_REQUESTS = {
    "no row": (pd.DataFrame({"image": []}), "no row with image"),
    "empty list": ([], "no row with image"),
    "misspelt": (
        pd.DataFrame({"imgae": [FLAT]}),
        "unknown column 'imgae' (nearest: image); this model takes image, spacing",
    ),
    "one of them": ([{"image": FLAT}, {"mask": FLAT}], "unknown column 'mask'"),
    "no names": (pd.DataFrame([[FLAT]]), "unknown column '0'"),
    "long name": (pd.DataFrame({FLAT: [1]}), f"unknown column '{FLAT[:40]}'"),
    "twice": (pd.DataFrame([[FLAT, FLAT]], columns=["image", "image"]), "a column is there twice"),
    "unequal": ({"image": [FLAT], "spacing": [1, 2]}, "columns of unequal length"),
    "too many": ([{"image": FLAT}] * 4, "4 rows, at most 3 are taken: send several requests"),
    "flat array": (np.zeros((4, 4)), "float64 of shape (4, 4): expected numbers N,C,H,W with C=1"),
    "texts": (np.array(["a", "b"]), "<U1 of shape (2,): expected numbers N,C,H,W with C=1"),
    "text": ("a", "str: expected rows with image"),
    "mixed list": ([{"image": FLAT}, 1], "list: expected rows with image"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_at_fault_is_refused_as_a_whole(served, name):
    given, told = BAD_REQUESTS[name]
    with pytest.raises(Refusal) as caught:
        served(GREY, max_batch=3).predict(given)
    assert caught.value.line.startswith(told)
    assert json.loads(caught.value.serialize_as_json()).keys() == {"error_code", "message"}


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"threshold": 0.0}, "threshold 0.0 is not between 0 and 1"),
        ({"threshold": 1}, "threshold 1.0 is not between"),
        ({"threshold": float("nan")}, "threshold nan is not between"),
        ({"threshold": "0.5"}, "threshold takes double, not str"),
        ({"threshold": True}, "threshold takes double, not bool"),
        ({"treshold": 0.5}, "unknown parameter 'treshold' (nearest: threshold)"),
        ({"output": "ngp"}, "output 'ngp' (nearest: png) is none of auto, png, nifti, tiff, rle, polygons, none"),
        ({"output": 1}, "output takes string, not int"),
        ({"tta": 1}, "tta takes boolean, not int"),
        ({"min_area": -1}, "min_area -1 is below 0"),
        ({"min_area": 1.0}, "min_area takes long, not float"),
    ],
)
def test_a_parameter_out_of_range_is_named(served, params, told):
    with pytest.raises(Refusal) as caught:
        answers(served(GREY), [{"image": FLAT}], **params)
    assert caught.value.line.startswith(told)


def test_null_means_the_default_and_numpys_scalars_are_numbers(served):
    expected = answers(served(GREY), [{"image": FLAT}])
    assert answers(served(GREY), [{"image": FLAT}], threshold=None, output=None) == expected
    assert answers(served(GREY), [{"image": FLAT}], threshold=np.float64(0.4), min_area=np.int64(0)) == expected


def test_small_components_go_before_anything_is_counted(served):
    model = served(GREY)
    segmentation = model.predictor.segment(PLAIN[None, None].astype(np.float32), 0.4)
    threshold = float(np.quantile(segmentation.foreground, 0.8))
    mask = model.predictor.segment(PLAIN[None, None].astype(np.float32), threshold).mask
    assert components.count(mask) > 1
    for largest, fewest in ((True, 0), (False, 5), (True, 1000)):
        cleaned = components.clean(mask, largest, fewest)
        (row,) = answers(model, [{"image": FLAT}], threshold=threshold, largest_component=largest, min_area=fewest)
        assert row["mask"] == encodings.encode(cleaned, codecs.Decoded(PLAIN, None), ("thing",), "auto")
        assert (row["foreground_voxels"], row["lesions"]) == (np.count_nonzero(cleaned), components.count(cleaned))


@pytest.mark.parametrize("output", [output for output in encodings.OUTPUTS if output != "tiff"])
def test_every_output_is_the_mask_or_says_what_would_be(served, output):
    (plain, deep) = answers(
        served(GREY), [{"image": FLAT}, {"image": volume()}], output=output, return_probabilities=True
    )
    for row, data, other in ((plain, FLAT, "nifti"), (deep, volume(), "png")):
        if output == other:
            assert row["error"].startswith(f"output={output}")
            continue
        first, image, _ = request.read({"image": data}, GREY, MOST)
        segmentation = served(GREY).predictor.segment(image, 0.4)
        assert row["mask"] == encodings.encode(segmentation.mask, first, ("thing",), output)
        assert row["probabilities"] == encodings.encode_probabilities(segmentation.foreground, first)
        assert (row["mask"] is None) == (output == "none")


class Broken(torch.nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, _):
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("secret"), "not enough memory for an image of this size"),
        (torch.OutOfMemoryError("secret"), "not enough memory for an image of this size"),
        (KeyError("secret"), "internal error, see the server's log"),
    ],
)
def test_what_nobody_foresaw_is_a_line_for_the_client_and_a_traceback_in_the_log(served, caplog, error, told):
    model = ServedModel()
    model.limits, model.predictor = served(GREY).limits, Predictor(GREY, Broken(error))
    with pytest.raises(Refusal) as caught:
        answers(model, [{"image": FLAT}])
    assert caught.value.line == f"row 0: {told}"
    assert caught.value.get_http_status_code() == 500
    assert "Traceback" in caplog.text
    assert "secret" not in caught.value.serialize_as_json()


@pytest.mark.parametrize("limits", [{"max_pixels": 0}, {"max_batch": "many"}])
def test_a_limit_that_makes_no_sense_stops_the_server(served, limits):
    with pytest.raises(InputError, match=f"^model_config {next(iter(limits))}="):
        served(GREY, **limits)


def test_threads_answer_as_one_does(served):
    rows = [{"image": picture(RNG.integers(0, 256, (20 + n, 30), dtype=np.uint8))} for n in range(8)]
    expected = answers(served(GREY), rows)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: answers(served(GREY), [row])[0], rows)) == expected


def test_the_signature_tells_parameters_and_answers_and_takes_any_column():
    signature = served_model.signature(GREY)
    assert signature.inputs is None
    assert signature.outputs.input_names() == list(ANSWER)
    assert {p.name: p.default for p in signature.params.params}["threshold"] == 0.4


def test_an_example_is_what_the_model_takes(served):
    for spec in (GREY, COLOUR, VOLUMES):
        example = served_model.example(spec)
        assert tuple(example.columns) == request.columns(spec)
        assert served(spec).predict(example)["error"].tolist() == [None]
