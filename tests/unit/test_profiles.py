"""What training images are like, and which images are not: ranges, false alarms, and images that must be flagged."""

import json
import re

import numpy as np
import pytest
from conftest import disc, with_knobs, write_folder

from segpipe.config import settings
from segpipe.data import codecs, dataset_writer, phantom, profiles
from segpipe.data.manifest import Manifest
from segpipe.data.profiles import Profile
from segpipe.data.readers import all_cases, open_reader, reader_of
from segpipe.inference.input_assembly import unlike
from segpipe.inference.spec import ModelSpec

RNG = np.random.default_rng(0)


def textures(count, seed=0):
    """Pictures of coarse noise whose brightness varies from one to the next."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        noise = rng.normal(0, 1, (16, 16)).repeat(4, axis=0).repeat(4, axis=1)
        yield (100 + rng.normal(0, 10) + 20 * noise).astype(np.float32)[None, None]


def learn(images, validation=0, channels=("grey",), spacing=None):
    measured = [profiles.measure(image, spacing) for image in images]
    chosen = [n < validation for n in range(len(measured))]
    return Profile.learn(channels, measured, [f"p{n}" for n in range(len(measured))], chosen)


def test_there_is_a_value_for_every_trait():
    image = RNG.random((3, 2, 20, 30), dtype=np.float32)
    names = [trait.name for trait in profiles.traits(("dwi", "adc", "flair"))]
    assert len(names) == len(set(names)) == len(profiles.measure(image, (5, 1, 1)))
    assert names[0] == "side in pixels"


def test_traits_of_a_simple_image():
    plane = np.tile(np.arange(100, dtype=np.float32), (100, 1))[None, None]
    found = dict(zip((t.name for t in profiles.traits(("grey",))), profiles.measure(plane, (1, 2, 2)), strict=True))
    assert found["side in pixels"] == pytest.approx(np.log2(100))
    assert found["pixel spacing in mm"] == 1
    assert found["median of grey"] == pytest.approx(49.5)
    assert found["place of the median of grey between these"] == pytest.approx(0.5)
    contrast = found["95th percentile of grey"] - found["5th percentile of grey"]
    assert found["sharpness of grey"] == pytest.approx(np.log2(0.5 / contrast))  # steps of 1 in rows, of 0 in columns
    assert found["brightness of the middle of grey"] == pytest.approx(0, abs=1e-6)


def test_the_correlation_of_channels_is_pearson_s():
    image = RNG.random((2, 3, 16, 16), dtype=np.float32)
    expected = np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1]
    assert profiles.measure(image, None)[-1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 7), (2, 1, 9, 300), (1, 5, 400, 3), (3, 1, 8, 8)])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_flat_and_tiny_images_have_finite_traits(shape, value):
    found = profiles.measure(np.full(shape, value, np.float32), None)
    assert np.isfinite([value for value in found if value is not None]).all()


def test_own_cases_are_alike_and_at_most_one_in_twenty_of_new_ones_is_not():
    profile = learn(list(textures(60)), validation=20)
    assert profile.false_alarms <= 0.05
    flagged = [bool(profile.compare(image, None)[1]) for image in textures(200, seed=1)]
    assert np.mean(flagged) <= 0.1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a + 500, "median of grey 5"),
        (lambda a: a * 10, "percentile of grey"),
        (lambda a: a + RNG.normal(0, 60, a.shape).astype(np.float32), "grey"),
        (np.zeros_like, "grey"),
        (lambda a: np.tile(a, (1, 1, 20, 20)), "side in pixels 1.28e\\+03, in training 64 to 64"),
    ],
)
def test_what_differs_is_flagged_and_named(change, what):
    profile = learn(list(textures(40)))
    distance, told = profile.compare(change(next(textures(1, seed=1))), None)
    assert distance > 1
    assert re.match(f"unlike the training data: .*{what}", told)


def test_swapped_channels_are_flagged(tmp_path):
    root = phantom.simulate(tmp_path, 12, 0)
    reader = reader_of(settings.load(None, {"data.format": "phantom"}).data, root)
    volumes = [reader.load(case) for case in all_cases(reader)]
    measured = [profiles.measure(one.image, one.spacing) for one in volumes[:10]]
    profile = Profile.learn(("dwi", "adc"), measured, list("abcdefghij"), [False] * 10)
    assert [profile.compare(one.image, one.spacing)[1] for one in volumes[:10]].count("") >= 9
    for one in volumes:
        assert profile.compare(one.image[::-1], one.spacing)[0] > 1


def test_cases_of_one_patient_are_measured_against_the_others():
    """Ten patients with two alike cases each: a case is not made usual by its twin."""
    images = list(textures(10))
    measured = [profiles.measure(image, None) for image in images]
    alone = Profile.learn(("grey",), measured, [f"p{n}" for n in range(10)], [False] * 10)
    twice = Profile.learn(("grey",), measured * 2, [f"p{n}" for n in range(10)] * 2, [False] * 20)
    assert twice.limit == pytest.approx(alone.limit, rel=0.2)


def test_few_patients_give_no_profile():
    measured = [profiles.measure(image, None) for image in textures(20)]
    assert Profile.learn(("grey",), measured, ["a", "b"] * 10, [False] * 20) is None
    assert Profile.learn(("grey",), [()] * 20, [str(n) for n in range(20)], [False] * 20) is None


def test_identical_cases_give_a_finite_profile():
    image = next(textures(1))
    profile = learn([image] * 10)
    assert profile.compare(image, None) == (pytest.approx(0, abs=1e-3), "")
    assert profile.compare(image + 300, None)[1]


def test_a_profile_travels_from_the_data_set_to_the_warning(tmp_path):
    config = with_knobs(
        settings.load(None, {"data.format": "folder", "data.root": str(write_folder(tmp_path / "raw", cases=16))}),
        preprocess={"size": (32, 32)},
    )
    dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    manifest = Manifest.read(tmp_path / "dataset" / "manifest.json")
    spec = ModelSpec(
        model=config.model, preprocess=config.preprocess, kind="picture", channels=("grey",), classes=("foreground",),
        profile=manifest.profile({"site"}),
    )  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
    spec = ModelSpec.read(tmp_path)
    image = codecs.decode(codecs.encode_picture(disc(40, 36, 99)[0]), "x").array
    assert unlike(image, None, spec) == []
    (told,) = unlike(255 - image, None, spec)
    assert told.startswith("unlike the training data: ")
    assert unlike(255 - image, None, spec.model_copy(update={"profile": None})) == []
