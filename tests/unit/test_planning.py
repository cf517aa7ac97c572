"""What a data set is like, and the recipe that follows."""

import numpy as np
import pytest
from conftest import write_folder, write_nifti
from PIL import Image

from segpipe.config import settings
from segpipe.errors import InputError
from segpipe.metrics import centreline
from segpipe.models import encoders
from segpipe.planning import fingerprint, rules
from segpipe.planning.fingerprint import Fingerprint

VESSELS = Fingerprint(
    kind="picture", cases=50, patients=40, channels=("grey",), classes=("foreground",), plane=(960, 999),
    largest=(1168, 1752), depth=1, spacing=None, foreground=0.08, filled=1.0, thickness=3.0, coloured=1.0,
    survival={128: 0.7, 256: 0.8, 384: 0.97, 448: 0.982, 512: 0.99, 640: 0.995}, pixels=None, lowest=0.0,
    window=(20.0, 120.0),
)  # fmt: skip
BRAINS = VESSELS.model_copy(
    update={
        "kind": "volume", "channels": ("dwi", "adc"), "plane": (112, 112), "largest": (112, 128), "depth": 73,
        "spacing": (2.0, 2.0, 2.0), "pixels": (2.0, 2.0), "survival": {}, "foreground": 0.001, "filled": 0.1,
        "thickness": 12.0, "coloured": 0.0,
    }
)  # fmt: skip
SKIN = VESSELS.model_copy(
    update={
        "thickness": 200.0,
        "plane": (2000, 3000),
        "largest": (2000, 3000),
        "survival": {64: 0.97, 128: 0.985, 512: 0.99},
    }
)


def measured(root, **knobs):
    config = settings.load(None, {"data.root": str(root), **knobs})
    return fingerprint.measure(config, lambda *_: None)


def planned(found, minutes=10):
    return {setting.knob: setting.value for setting in rules.plan(found, minutes)}


# --- fingerprints


@pytest.mark.parametrize("width", [3, 5, 9, 21])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_bar_is_as_thick_as_it_is_wide(width, turn):
    mask = np.zeros((120, 80), bool)
    mask[20:100, 30 : 30 + width] = True
    assert centreline.thickness(np.rot90(mask, turn)) == pytest.approx(width, abs=1)


def test_a_mask_of_all_or_nothing_is_as_thick_as_the_plane():
    assert centreline.thickness(np.ones((20, 30), bool)) == centreline.thickness(np.zeros((20, 30), bool)) == 20


def test_pictures_are_measured_on_training_cases_alone(folder):
    found = measured(folder, **{"data.format": "folder"})
    assert (found.kind, found.cases, found.patients, found.channels) == ("picture", 5, 5, ("grey",))
    assert (found.plane, found.largest, found.depth, found.spacing) == ((40, 36), (40, 36), 1, None)
    assert (found.filled, found.coloured) == (1.0, 0.0)
    assert 0.05 < found.foreground < 0.2
    assert 8 < found.thickness < 18


def test_the_thinnest_class_or_background_counts(tmp_path):
    root = write_folder(tmp_path / "data", height=200, width=200)
    labels = np.ones((200, 200), np.uint8)
    labels[:, 100:] = 2
    labels[20:180, 60:63] = 3
    for path in (root / "masks").iterdir():
        Image.fromarray(labels).save(path)
    found = measured(root, **{"data.format": "folder", "data.classes": "left,right,wire"})
    assert found.thickness == pytest.approx(3, abs=1)
    assert found.foreground == 1
    assert found.survival[64] < 0.9


def test_colour_is_found_where_there_is_any(folder):
    for path in sorted((folder / "images").iterdir()):
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey, grey // 2, grey // 4], axis=-1)).save(path)
    assert measured(folder, **{"data.format": "folder"}).coloured == 1


def test_volumes_have_a_spacing(tmp_path):
    found = measured(write_nifti(tmp_path / "data"), **{"data.format": "nifti"})
    assert (found.kind, found.depth, found.channels) == ("volume", 3, ("dwi", "adc"))
    assert found.spacing == pytest.approx((5, 2, 2))
    assert found.coloured == 0


def test_without_foreground_there_is_nothing_to_plan(tmp_path):
    root = write_folder(tmp_path / "data")
    for path in (root / "masks").iterdir():
        Image.fromarray(np.zeros((40, 36), np.uint8)).save(path)
    with pytest.raises(InputError, match="no training case has any foreground"):
        measured(root, **{"data.format": "folder"})


@pytest.mark.parametrize(("width", "survives"), [(1, False), (40, True)])
def test_fine_structures_do_not_survive_a_smaller_scale_and_coarse_ones_do(width, survives):
    mask = np.zeros((400, 300), bool)
    mask[20:380, 100 : 100 + width] = True
    assert (fingerprint.survival(mask, 100) > 0.9) == survives
    assert fingerprint.survival(~mask, 100) > 0.9
    assert fingerprint.survival(mask, 400) == fingerprint.survival(mask, 1000) == 1


# --- rules


def test_fine_structures_in_large_pictures_are_seen_in_windows_at_the_scale_they_survive():
    found = planned(VESSELS)
    assert (found["preprocess.fit"], found["preprocess.size"]) == ("patch", [256, 256])
    assert found["preprocess.longest"] == 896
    delicate = VESSELS.model_copy(update={"survival": dict.fromkeys(VESSELS.survival, 0.9)})
    assert "preprocess.longest" not in planned(delicate)
    nearly = VESSELS.model_copy(update={"largest": (900, 980)})
    assert "preprocess.longest" not in planned(nearly)


def test_volumes_of_several_spacings_are_worked_on_at_the_median():
    assert "preprocess.spacing" not in planned(BRAINS)
    several = BRAINS.model_copy(update={"pixels": (1.0, 3.0)})
    assert planned(several)["preprocess.spacing"] == [2.0, 2.0]
    large = BRAINS.model_copy(update={"plane": (512, 512), "largest": (512, 512), "survival": {128: 0.9, 192: 0.99}})
    found = planned(large)
    assert (found["preprocess.spacing"], found["preprocess.fit"]) == ([2.667, 2.667], "patch")


def test_pictures_begin_with_the_weights_that_are_bundled():
    found = planned(VESSELS)
    assert found["model.encoder_weights"] == "bundled"
    assert found["model.encoder"] in encoders.BUNDLED
    assert "model.encoder" not in planned(BRAINS)


def test_hounsfield_units_are_windowed_alike_in_all_cases():
    assert "preprocess.normalise" not in planned(BRAINS)
    found = planned(BRAINS.model_copy(update={"lowest": -1024.0, "window": (-120.04, 310.0)}))
    assert (found["preprocess.normalise"], found["preprocess.window"]) == ("ct", [-120.0, 310.0])


def test_colour_and_batch_of_a_plan_for_vessels():
    found = planned(VESSELS)
    assert (found["data.channels"], found["augment.rotation"]) == (["red", "green", "blue"], 180.0)
    assert (found["model.encoder_depth"], found["train.batch_size"]) == (4, 4)
    assert (found["train.minutes"], found["evaluate.tta"]) == (10, "auto")


def test_planes_that_fit_are_seen_whole():
    found = planned(BRAINS)
    assert (found["preprocess.fit"], found["preprocess.size"]) == ("patch", [112, 128])
    assert "data.channels" not in found
    assert (found["model.encoder_depth"], found["train.batch_size"]) == (3, 16)
    assert (found["augment.flip_vertical"], found["augment.rotation"]) == (0.0, 30.0)


def test_coarse_structures_in_large_pictures_are_seen_whole_and_smaller():
    found = planned(SKIN)
    assert (found["preprocess.fit"], found["preprocess.size"]) == ("resize", [224, 320])
    assert found["model.encoder_depth"] == 4 or found["model.encoder_depth"] == 5


@pytest.mark.parametrize("found", [VESSELS, BRAINS, SKIN, VESSELS.model_copy(update={"largest": (17, 40)})])
def test_a_recipe_says_why_and_is_read_back(found, tmp_path):
    planned = rules.plan(found, 5)
    text = rules.recipe(planned, found)
    assert text == rules.recipe(rules.plan(found, 5), found)
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    config = settings.load(tmp_path / "plan.yaml", {"data.format": "folder", "data.root": "x"})
    values = config.model_dump(mode="json")
    for setting in planned:
        section, _, name = setting.knob.partition(".")
        assert values[section][name] == setting.value
        assert setting.reason in text
    height, width = config.preprocess.size
    assert height % 2**config.model.encoder_depth == width % 2**config.model.encoder_depth == 0


@pytest.mark.parametrize(
    ("given", "kept", "left"),
    [
        ({"train.epochs": "3"}, ("train", "epochs", 3), ("train", "minutes", 0)),
        ({"model.encoder": "resnet34"}, ("model", "encoder", "resnet34"), ("model", "encoder_weights", "none")),
        ({"preprocess.fit": "resize"}, ("preprocess", "fit", "resize"), ("preprocess", "longest", 0)),
        ({"train.lr": "0.1"}, ("train", "lr", 0.1), ("augment", "enabled", True)),
    ],
)
def test_a_plan_gives_way_to_what_is_given_and_to_what_no_longer_fits(tmp_path, given, kept, left):
    plan, recipe = tmp_path / "plan.yaml", tmp_path / "recipe.yaml"
    plan.write_text(rules.recipe(rules.plan(VESSELS, 5), VESSELS), encoding="utf-8")
    ((knob, value),) = given.items()
    section, _, name = knob.partition(".")
    recipe.write_text(f"{section}:\n  {name}: {value}\nseed: 7\n", encoding="utf-8")
    data = {"data.format": "folder", "data.root": "x"}
    for config in (settings.load(None, data | given, plan), settings.load(recipe, data, plan)):
        for section, name, value in (kept, left):
            assert getattr(getattr(config, section), name) == value
        assert config.train.batch_size == 4
    assert settings.load(recipe, data, plan).seed == 7
