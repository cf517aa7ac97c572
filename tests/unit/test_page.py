"""What the page is told: exact numbers, exact probabilities, a model's card, and one line for what is wrong."""

import base64
import gzip
import io
import json

import numpy as np
import pytest
from conftest import TINY, disc
from mlflow.types import ParamSchema
from PIL import Image

from segpipe.config import settings
from segpipe.config.sections import ServingConfig
from segpipe.data import codecs
from segpipe.data.readers import READERS
from segpipe.errors import InputError
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures
from segpipe.server.loaded_model import Served
from segpipe.server.messages import Request, RequestError
from segpipe.server.page import display, routes
from segpipe.serving import request

MOST = ServingConfig().max_pixels
AFFINE = np.array([[-2.0, 0, 0, 50], [0, 2.0, 0, -40], [0, 0, 5.0, 10], [0, 0, 0, 1]])
JSON = "application/json"


def served(reader, channels, classes=("foreground",), threshold=0.5):
    """A tiny network with random weights, as the server hands it to a route."""
    knobs = dict(knob.removeprefix("--").split("=") for knob in TINY)
    config = settings.load(None, {**knobs, "data.format": reader})
    spec = ModelSpec(
        model=config.model, preprocess=config.preprocess,
        kind=READERS[reader].kind, channels=channels, classes=classes, threshold=threshold,
    )  # fmt: skip
    network = architectures.build(config.model, len(channels), len(classes), seed=0, pretrained=False)
    facts = {"name": None, "version": None, "model_id": "m-1"}
    return Served(None, Predictor(spec, network), ParamSchema([]), facts, "")


def asked(model, kind=JSON):
    return Request("POST", "/page/segment", {"content-type": kind}, "1", model)


def picture(plane):
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def volume(values):
    return base64.b64encode(codecs.encode_nifti(values, AFFINE)).decode()


def unpacked(text, kind, *shape):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=kind).reshape(shape)


def shape(answer):
    return answer["depth"], answer["height"], answer["width"]


def median_threshold(model, image):
    """A threshold that about half of the pixels reach."""
    return float(np.median(model.predictor.segment(image, 0.5).foreground))


def test_a_picture_comes_back_with_probabilities_and_the_numbers_of_a_served_row():
    plane = disc(40, 36, 0)[0]
    model = served("folder", ("grey",))
    image = plane[None, None].astype(np.float32)
    model = served("folder", ("grey",), threshold=median_threshold(model, image))
    answer = routes.segment({"image": picture(plane)}, model, MOST)
    found = model.predictor.segment(image, model.predictor.spec.threshold)
    sent = unpacked(answer["probability"], "<u2", *shape(answer))
    assert np.abs(sent / display.FULL - found.foreground).max() <= 0.5 / display.FULL + 1e-7
    assert 0 < answer["foreground_voxels"] == found.mask.sum() < plane.size
    assert np.count_nonzero(sent >= answer["threshold"] * display.FULL) == answer["foreground_voxels"]
    assert (answer["unit"], answer["volume"], answer["warnings"]) == (None, False, [])
    (view,) = answer["views"]
    grey = unpacked(view["pixels"], "u1", *shape(answer))
    assert np.corrcoef(grey.ravel(), plane.ravel())[0, 1] > 0.98
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_are_those_of_the_masks_at_each_threshold(seed):
    foreground = np.random.default_rng([seed]).random((2, 30, 31), dtype=np.float32)
    foreground[0, :10] = np.round(foreground[0, :10], 2)
    counts = display.reached(foreground)
    assert counts == [int(np.count_nonzero(foreground >= k / 100)) for k in range(1, 100)]


def test_a_volume_is_shown_upright_from_inferior_to_superior_with_each_of_its_channels():
    values = np.zeros((12, 10, 4), dtype=np.float32)
    values[0:3, 7:10, 3] = 100  # AFFINE runs from right to left and from posterior to anterior: right, in front, on top
    row = {"dwi": volume(values), "adc": volume(100 - values)}
    model = served("nifti", ("dwi", "adc"))
    answer = routes.segment(row, model, MOST)
    assert shape(answer) == (4, 10, 12)
    dwi, adc = (unpacked(view["pixels"], "u1", *shape(answer)) for view in answer["views"])
    assert [view["name"] for view in answer["views"]] == ["dwi", "adc"]
    assert np.argwhere(dwi == 255).min(axis=0).tolist() == [3, 0, 9]
    assert np.argwhere(dwi == 255).max(axis=0).tolist() == [3, 2, 11]
    assert np.array_equal(adc, 255 - dwi)
    _, image, _ = request.read(row, model.predictor.spec, MOST)
    expected = model.predictor.segment(image, 0.5).foreground[:, ::-1]
    sent = unpacked(answer["probability"], "<u2", *shape(answer)) / display.FULL
    assert np.abs(sent - expected).max() < 1e-4
    assert answer["unit"] == {"name": "ml", "each": pytest.approx(0.02)}
    assert answer["aspect"] == pytest.approx(1.2)


def test_several_classes_come_with_each_pixels_most_probable_class():
    plane = disc(40, 36, 1)[0]
    model = served("folder", ("grey",), classes=("left", "right"))
    answer = routes.segment({"image": picture(plane)}, model, MOST)
    mask = model.predictor.segment(plane[None, None].astype(np.float32), 0.5).mask
    classes = unpacked(answer["classes"], "u1", *shape(answer))
    reaches = unpacked(answer["probability"], "<u2", *shape(answer)) >= 0.5 * display.FULL
    assert set(np.unique(classes)) == {1, 2}
    assert np.array_equal(np.where(reaches, classes, 0), mask)


def test_a_large_picture_is_shown_smaller_with_the_numbers_of_the_whole():
    plane = np.random.default_rng([0]).integers(0, 256, (1500, 90), dtype=np.uint8)
    model = served("folder", ("grey",))
    answer = routes.segment({"image": picture(plane)}, model, MOST)
    assert shape(answer) == (1, 750, 45)
    found = model.predictor.segment(plane[None, None].astype(np.float32), 0.5)
    assert answer["reached"][49] == answer["foreground_voxels"] == np.count_nonzero(found.mask)
    assert (answer["total"], answer["coarser"], len(answer["warnings"])) == (plane.size, 2, 1)
    assert answer["aspect"] == pytest.approx(90 / 1500)


def test_blocks_are_means_and_those_at_the_edge_are_smaller():
    planes = np.arange(15, dtype=np.float32).reshape(1, 3, 5)
    assert display.coarser(planes, 2).tolist() == [[[3, 5, 6.5], [10.5, 12.5, 14]]]
    colour = np.stack([planes, planes + 1, planes + 2], axis=-1)
    assert display.coarser(colour, 2)[..., 2].tolist() == [[[5, 7, 8.5], [12.5, 14.5, 16]]]


def test_a_colour_picture_keeps_its_colours_on_one_scale():
    colours = np.zeros((1, 20, 20, 3), dtype=np.float32)
    colours[..., :10, 0], colours[..., 10:, 2] = 200, 100
    grey = display.grey(colours)
    assert grey[0, 0, 0].tolist() == [255, 0, 0]
    assert grey[0, 0, 19].tolist() == [0, 0, 128]


def test_what_is_sent_is_bounded_whatever_comes():
    assert display.step((64, 512, 512), 4) == 1
    assert display.step((256, 512, 512), 4) == 2
    with pytest.raises(InputError, match="67,108,864 slices are too many to show"):
        display.step((1 << 26, 1, 1), 3)


def test_the_routes_refuse_what_is_not_a_row():
    handlers, model = routes.routes(ServingConfig()), served("nifti", ("dwi", "adc"))
    segment = handlers["POST", "/page/segment"]
    for body, reason in (
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "'dwi' is missing"),
        (b'{"dwi": "/etc/passwd", "adc": ""}', "dwi: looks like a path or URL"),
    ):
        with pytest.raises(InputError, match=reason):
            segment(asked(model), body)
    with pytest.raises(RequestError, match="Content-Type"):
        segment(asked(model, "text/plain"), b"{}")


def test_the_page_holds_all_it_needs_and_may_not_be_framed():
    answer = routes.routes(ServingConfig())["GET", "/"](asked(served("folder", ("grey",))), b"")
    text = answer.body.decode()
    assert "http://" not in text
    assert "https://" not in text
    assert "not for clinical use" in text
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def test_nothing_in_a_card_is_run():
    text = "# carded\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<script>alert(1)</script> [x](javascript:alert(1))"
    card = routes.render(text)
    assert "<h1>carded</h1>" in card
    assert "<td>1</td>" in card
    assert "<script" not in card
    assert "href" not in card


def test_a_model_that_is_not_registered_has_no_card():
    handlers = routes.routes(ServingConfig())
    told = json.loads(handlers["GET", "/page/model"](asked(served("folder", ("grey",))), b"").body)
    assert (told["name"], told["version"], told["card"], told["pictures"]) == ("segpipe", "m-1", "", True)
