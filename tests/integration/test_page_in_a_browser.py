"""The page to try a model, in a real browser before a real server: files in, an overlay, numbers, a mask to save."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from browser import BROWSER, DONE, PATIENCE, Browser
from conftest import PROJECT, TINY, disc, wait_for, write_volume
from PIL import Image

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")
AFFINE = np.array([[-2.0, 0, 0, 50], [0, 2.0, 0, -40], [0, 0, 5.0, 10], [0, 0, 0, 1]])
NAME = "tried"
PAINTED = """(() => {
  const { width, height } = canvas, copy = Object.assign(document.createElement("canvas"), { width, height });
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return data.filter((value, i) => i % 4 === 0 && value > data[i + 1] + 30).length;
})()"""
DROP = """(() => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["no picture"], "notes.png"));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
})()"""
SEEN = "document.getElementById('canvas').toDataURL()"
PICTURE = disc(40, 36, 0)[0]


def logged(folder, reader, channels):
    """The URI of a tiny network with random weights, with a threshold that half of the pixels of a disc reach."""
    import mlflow

    from segpipe.config import settings
    from segpipe.data.readers import READERS
    from segpipe.inference.predictor import Predictor
    from segpipe.inference.spec import ModelSpec
    from segpipe.models import architectures
    from segpipe.recording import logged_models
    from segpipe.serving.served_model import ARTIFACT

    knobs = dict(knob.removeprefix("--").split("=") for knob in TINY)
    config = settings.load(None, {**knobs, "data.format": reader})
    network = architectures.build(config.model, len(channels), 1, seed=0, pretrained=False)
    shape = {"kind": READERS[reader].kind, "channels": channels, "classes": ("vessel",)}
    spec = ModelSpec(model=config.model, preprocess=config.preprocess, **shape)
    image = np.repeat(PICTURE[None, None].astype(np.float32), len(channels), axis=0)
    middle = round(float(np.median(Predictor(spec, network).segment(image, 0.5).foreground)), 4)
    Predictor(spec.model_copy(update={"threshold": middle}), network).save(folder / ARTIFACT)
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow compares the columns of an example with a range
        return f"models:/{logged_models.log(folder / ARTIFACT)}"


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    """`python -m steps.demo_page` with a champion for pictures; `crown` makes one for volumes champion."""
    from mlflow import MlflowClient

    folder, client = tmp_path_factory.mktemp("models"), MlflowClient()
    client.create_registered_model(NAME)

    def crown(reader, channels):
        model = logged(folder / reader, reader, channels)
        version = client.create_model_version(NAME, model, description=f"# A card for {reader}")
        client.set_registered_model_alias(NAME, "champion", version.version)

    crown("folder", ("grey",))
    log = folder / "log"
    knobs = ("--serving.port=0", "--serving.poll_seconds=0.3", f"--registry.model_name={NAME}")
    with log.open("w") as stderr:
        program = [sys.executable, "-m", "steps.demo_page", "--no-open", *knobs]
        process = subprocess.Popen(program, cwd=PROJECT, stderr=stderr)
    ready = re.compile(r"version 1 on (http://127\.0\.0\.1:\d+)")
    try:
        wait_for(process, lambda: ready.search(log.read_text()))
        yield SimpleNamespace(url=ready.search(log.read_text())[1], crown=crown)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.look(1280, 900)
    yield browser
    browser.close()


@pytest.fixture
def page(server, browser):
    """The page, just opened."""
    browser.console.clear()
    browser.asked.clear()
    browser.open(server.url)
    browser.wait("document.querySelectorAll('.zone').length")
    return browser


def text(browser, name):
    return browser.run(f"document.getElementById('{name}').textContent")


def move(browser, name, value):
    """A slider, as a finger moves it, and the picture that follows."""
    slider = f"document.getElementById('{name}')"
    browser.run(f"{slider}.value = {value}; {slider}.dispatchEvent(new Event('input'))")
    drawn(browser)


def drawn(browser):
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def asked_nobody_else(browser, server):
    return all(address.startswith((f"{server.url}/", "data:", f"blob:{server.url}/")) for address in browser.asked)


def version(server):
    with urllib.request.urlopen(f"{server.url}/version", timeout=10) as answer:
        return json.load(answer)["version"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "case 1.png"
    Image.fromarray(PICTURE).save(path)
    return path


def test_a_picture_gets_an_overlay_that_follows_the_threshold_and_a_mask_to_save(server, page, picture, tmp_path):
    assert "not for clinical use" in page.run("document.body.innerText")
    assert (text(page, "name"), text(page, "version")) == (NAME, "version 1")
    assert text(page, "card").strip() == "A card for folder"
    page.choose("#file-image", picture)
    page.wait(DONE)
    drawn(page)
    own, red = int(text(page, "voxels")), page.run(PAINTED)
    assert own == page.run("found.foreground_voxels") == page.run("labels(0).reduce((a, b) => a + b)")
    assert 0 < own < PICTURE.size
    assert red > 0

    threshold = page.run("threshold")
    page("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.getElementById('save').click()")
    saved, until = tmp_path / "case 1_mask.png", time.monotonic() + PATIENCE
    while not saved.exists():
        assert time.monotonic() < until, text(page, "error")
        page.run("1")
        time.sleep(0.05)
    assert np.count_nonzero(np.asarray(Image.open(saved))) == own

    move(page, "threshold", 0.99)
    assert (text(page, "voxels"), page.run(PAINTED)) == ("0", 0)
    assert "Lesions at" in text(page, "lesions-name")
    move(page, "threshold", 0.01)
    assert text(page, "voxels") == f"{PICTURE.size:,}"
    page.run("document.getElementById('reset').click()")
    drawn(page)
    assert (page.run("threshold"), int(text(page, "voxels")), page.run(PAINTED)) == (threshold, own, red)
    move(page, "opacity", 0)
    assert 0 < page.run(PAINTED) < red
    assert page.console == []
    assert asked_nobody_else(page, server)


def test_what_the_server_refuses_is_said_and_the_next_file_is_taken(page, picture):
    page.run(DROP)
    page.wait(DONE)
    assert text(page, "error").startswith("image: ")
    assert page.run("document.getElementById('viewer').hidden")
    page.choose("#file-image", picture)
    page.wait("!document.getElementById('viewer').hidden")
    assert page.run("document.getElementById('error').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_window(page, picture, scheme):
    page.look(480, 900, scheme)
    page.choose("#file-image", picture)
    page.wait(DONE)
    drawn(page)
    assert page.run("document.documentElement.scrollWidth") <= 480
    assert page.run("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'") == (scheme == "light")
    page.look(1280, 900)


def test_a_new_champion_for_volumes_takes_two_files_and_shows_their_slices(server, browser, tmp_path):
    server.crown("nifti", ("dwi", "adc"))
    until = time.monotonic() + PATIENCE
    while version(server) != "2":
        assert time.monotonic() < until
        time.sleep(0.1)
    values = np.stack([disc(40, 36, z)[0] for z in range(5)]).transpose(2, 1, 0).astype(np.float32)
    write_volume(tmp_path / "sub-1_dwi.nii.gz", values, AFFINE)
    write_volume(tmp_path / "sub-1_adc.nii", 255 - values, AFFINE)
    browser.console.clear()
    browser.asked.clear()
    browser.open(server.url)
    browser.wait("document.querySelectorAll('.zone').length === 2")
    browser.choose("#file-dwi", tmp_path / "sub-1_adc.nii", tmp_path / "sub-1_dwi.nii.gz")
    browser.wait(DONE)
    drawn(browser)
    assert (text(browser, "version"), text(browser, "zone-adc")[-13:]) == ("version 2", "sub-1_adc.nii")
    voxels = browser.run("found.foreground_voxels")
    assert browser.run("areas().reduce((a, b) => a + b)") == voxels == int(text(browser, "voxels").replace(",", ""))
    assert text(browser, "size") == f"{voxels * 0.02:.{1 if voxels * 0.02 >= 10 else 2}f} ml"

    move(browser, "slice", 2)
    seen = {browser.run(SEEN)}
    assert text(browser, "slice-told") == "2 of 5"
    browser.run("document.activeElement.blur()")
    browser.press("ArrowUp")
    drawn(browser)
    assert text(browser, "slice-told") == "3 of 5"
    seen.add(browser.run(SEEN))
    middle = browser.run("(({x, y, width, height}) => [x + width / 2, y + height / 2])(canvas.getBoundingClientRect())")
    browser("Input.dispatchMouseEvent", type="mouseWheel", x=middle[0], y=middle[1], deltaX=0, deltaY=100)
    browser.wait("document.getElementById('slice-told').textContent === '4 of 5'")
    drawn(browser)
    seen.add(browser.run(SEEN))
    move(browser, "view", 1)
    seen.add(browser.run(SEEN))
    assert len(seen) == 4

    def sides():
        return [text(browser, side) for side in ("left", "right")], browser.run("canvas.style.transform")

    assert sides() == (["L", "R"], "")
    browser.run("document.getElementById('radiological').click()")
    assert sides() == (["R", "L"], "scaleX(-1)")
    browser.run("document.getElementById('radiological').click()")
    assert sides() == (["L", "R"], "")
    assert "swapped" not in text(browser, "warnings")
    for zone, channel in (("dwi", "adc.nii"), ("adc", "dwi.nii.gz")):
        browser.choose(f"#file-{zone}", tmp_path / f"sub-1_{channel}")
    browser.wait(DONE)
    drawn(browser)
    told = text(browser, "warnings")
    assert "sub-1_adc.nii was taken for DWI, its name says ADC: were two files swapped?" in told
    assert "sub-1_dwi.nii.gz was taken for ADC, its name says DWI" in told

    browser.choose("#file-adc", tmp_path / "sub-1_adc.nii")  # the next patient: the last one's DWI is gone
    browser.wait("document.getElementById('viewer').hidden && Object.keys(row).join() === 'adc'")
    assert browser.run("document.getElementById('save').hidden")
    assert text(browser, "zone-dwi").endswith("NIfTI, or TIFF of several pages")
    assert browser.console == []
    assert asked_nobody_else(browser, server)
