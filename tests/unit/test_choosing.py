"""How a model's probabilities become labels, chosen on validation cases."""

import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import training_set, write_folder

from segpipe.config import settings
from segpipe.config.sections import EvaluateConfig
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.errors import InputError
from segpipe.evaluation import choosing, suspects
from segpipe.evaluation.measuring import THRESHOLDS
from segpipe.inference.predictor import Segmentation
from segpipe.inference.spec import Labelling

GIVEN = {"threshold": 0.5}
SPEC = SimpleNamespace(precision="fp32", sites=())


class Certain:
    """Says the reference with one probability, and everything else with another, case after case."""

    spec = SPEC

    def __init__(self, masks, probabilities):
        self.masks, self.probabilities, self.case = masks, probabilities, -1

    def fit(self, image):
        return image

    def label(self, prepared, threshold, tta):
        assert not tta
        self.case += 1
        inside, outside = self.probabilities[self.case]
        foreground = np.where(self.masks[self.case], inside, outside).astype(np.float32)
        assert foreground.shape == prepared.shape[1:]
        return Segmentation(foreground >= threshold, foreground, None)


class Painted:
    """Answers each case with the labels of `paint(reference, tta)`."""

    spec = SPEC

    def __init__(self, dataset, paint):
        self.stored = [dataset.stored(case) for case in dataset.where(split="val").cases]
        self.references = [reference for _, reference in self.stored]
        self.paint, self.fitted, self.asked = paint, -1, []

    def fit(self, image):
        (self.fitted,) = [n for n, (stored, _) in enumerate(self.stored) if np.array_equal(stored, image)]
        return self.references[self.fitted]

    def label(self, prepared, threshold, tta):
        self.asked.append((self.fitted, tta))
        mask = self.paint(np.array(prepared), tta).astype(np.uint8)
        return Segmentation(mask, (mask > 0).astype(np.float32), None)


@pytest.fixture
def three(tmp_path):
    """Three validation cases of one slice each."""
    root = write_folder(tmp_path / "data", cases=6)
    knobs = {"data.format": "folder", "data.root": str(root), "split.val": "0.5", "split.test": "0.2"}
    config = settings.load(None, {"preprocess.size": "32", **knobs})
    manifest = dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    dataset = Dataset(tmp_path / "dataset", manifest)
    return dataset.array("val_masks")[:, None] > 0, dataset


@pytest.fixture
def own_scale(tmp_path):
    return Dataset.open(training_set(tmp_path, **{"preprocess.fit": "patch"})[2])


def chosen(dataset, paint, **knobs):
    return choosing.choose(Painted(dataset, paint), dataset, EvaluateConfig(**(GIVEN | knobs)))


# --- the threshold


@pytest.mark.parametrize(
    ("probabilities", "threshold"),
    [
        ([(0.9, 0.1)] * 3, 0.5),
        ([(0.9, 0.7)] * 3, 0.71),
        ([(0.3, 0.1)] * 3, 0.3),
        ([(0.9, 0.62), (0.9, 0.1), (0.9, 0.1)], 0.5),
    ],
    ids=["any threshold is as good", "background is loud", "foreground is shy", "one case is no evidence"],
)
def test_the_threshold_is_the_one_nearest_to_a_half_that_is_as_good_as_the_best(three, probabilities, threshold):
    masks, dataset = three
    choice = choosing.choose(Certain(masks, probabilities), dataset, EvaluateConfig())
    assert choice.labelling == Labelling(pytest.approx(threshold))
    assert "3 validation patients" in choice.origin
    assert choice.reasons == ()
    assert choice.val_dice[choice.labelling.threshold == THRESHOLDS] > 0.5


def test_a_threshold_that_is_given_is_taken_and_the_curve_is_shown_all_the_same(three):
    masks, dataset = three
    choice = choosing.choose(Certain(masks, [(0.9, 0.1)] * 3), dataset, EvaluateConfig(threshold=0.95))
    assert (choice.labelling.threshold, choice.origin) == (0.95, "given")
    assert choice.val_dice[40] == 1


@pytest.mark.parametrize("knobs", [{}, {"tta": "auto", **GIVEN}, {"postprocess": "auto", **GIVEN}])
def test_nothing_can_be_chosen_without_a_validation_case(three, knobs):
    masks, dataset = three
    tested = dataset.manifest.model_copy(update={"cases": dataset.where(split="test").cases})
    alone = Dataset(dataset.folder, tested)
    with pytest.raises(InputError, match=r"evaluate\.\w+=auto: the validation split has no case"):
        choosing.choose(Certain(masks, []), alone, EvaluateConfig(**knobs))
    choice = choosing.choose(Certain(masks, []), alone, EvaluateConfig(threshold=0.3))
    assert (choice.labelling, choice.look_first) == (Labelling(0.3), None)


# --- flips


@pytest.mark.parametrize(("better", "kept"), [(True, True), (False, False)])
def test_flips_are_averaged_only_if_that_helps(three, better, kept):
    def paint(reference, tta):
        found = reference > 0
        return found if tta == better else np.roll(found, 2, axis=-1)

    choice = chosen(three[1], paint, tta="auto")
    assert choice.labelling == Labelling(0.5, kept)
    (reason,) = choice.reasons
    told = (
        r"averaging flips: mean Dice on validation cases 0\.\d+ -> 1\.0000" if kept else "averaging flips does not help"
    )
    assert __import__("re").match(told, reason)
    assert choice.val_dice[45] == pytest.approx(1)
    assert (choice.look_first.table[["score", "dice"]] == 1).all(axis=None)


def test_what_is_asked_for_is_done_without_a_look(three):
    for tta, postprocess in ((True, "largest_component"), (False, "largest_component"), (True, "none")):
        choice = chosen(three[1], lambda reference, tta: reference > 0, tta=tta, postprocess=postprocess)
        assert choice.labelling == Labelling(0.5, tta, postprocess == "largest_component")
        assert choice.reasons == ()


# --- components


def specks(reference, tta):
    """The reference, and many specks of four pixels each."""
    found = reference == 1
    found[..., ::8, ::8] = found[..., 1::8, ::8] = found[..., ::8, 1::8] = found[..., 1::8, 1::8] = True
    return found


def test_specks_are_dropped_by_the_area_that_helps_most(own_scale):
    choice = chosen(own_scale, specks, postprocess="min_area")
    assert choice.labelling.min_area == 8
    assert not choice.labelling.largest_component
    (reason,) = choice.reasons
    assert "keeping those of 8 pixels or voxels and more" in reason


def test_the_largest_component_is_kept_where_that_helps_most(three):
    choice = chosen(three[1], specks, postprocess="auto")
    assert choice.labelling == Labelling(0.5, largest_component=True)
    assert "keeping the largest of each class" in choice.reasons[0]


def test_what_does_not_help_is_left_out(own_scale):
    for postprocess in ("auto", "min_area"):
        choice = chosen(own_scale, lambda reference, tta: reference == 1, postprocess=postprocess)
        assert choice.labelling == Labelling(0.5)
        assert choice.reasons == ("dropping components does not help on validation cases",)


def test_what_helps_one_class_and_harms_another_is_left_out():
    before = np.array([[0.5, 0.9], [0.5, 0.9]])
    assert choosing._helps(before + np.array([0.2, 0.0]), before)
    assert not choosing._helps(before + np.array([0.3, -0.01]), before)
    assert not choosing._helps(before, before)


def test_areas_of_resized_cases_are_refused(three):
    with pytest.raises(InputError, match=r"evaluate.postprocess=min_area: resized cases have no areas"):
        chosen(three[1], specks, postprocess="min_area")


def test_flips_are_chosen_before_components(own_scale):
    def paint(reference, tta):
        return specks(reference, tta) if tta else np.roll(reference == 1, 6, axis=-1)

    choice = chosen(own_scale, paint, tta="auto", postprocess="auto")
    assert choice.labelling == Labelling(0.5, True, choice.labelling.largest_component, choice.labelling.min_area)
    assert choice.labelling != Labelling(0.5, True)
    flips, dropped = choice.reasons
    assert flips.startswith("averaging flips: ")
    assert dropped.startswith("dropping components, keeping ")


def test_each_case_is_segmented_once_each_way(own_scale):
    model = Painted(own_scale, lambda reference, tta: reference == 1)
    choosing.choose(model, own_scale, EvaluateConfig(tta="auto", postprocess="auto"))
    assert sorted(model.asked) == [(n, tta) for n in range(len(model.stored)) for tta in (False, True)]


def test_masks_to_look_at_cost_no_further_segmentation_and_no_more_space_than_they_take(three, tmp_path, monkeypatch):
    monkeypatch.setattr(suspects, "COUNT", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = []

    def paint(reference, tta):
        kept.append(len([*tmp_path.glob("segpipe-*/*.npz")]))
        return reference > 0

    model = Painted(three[1], paint)
    table, labels = choosing.choose(model, three[1], EvaluateConfig()).look_first
    assert model.asked == [(n, False) for n in range(3)]
    assert kept == [0, 1, 1]
    assert (len(table), len(labels)) == (3, 1)
