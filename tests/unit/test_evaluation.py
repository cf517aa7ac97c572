import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import write_folder, write_nifti

from segpipe.config import settings
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.errors import InputError
from segpipe.evaluation import kept, measuring
from segpipe.inference.predictor import Segmentation
from segpipe.metrics import pixels
from segpipe.metrics.catalogue import CONVENTION, METRICS


def cases(**columns):
    table = {
        "case": ["001", "NA", "c"],
        "patient": ["1", "1", "2"],
        "site": ["s", "s", "t"],
        "scanner": ["1.5", "3", "nan"],
        "outcome": ["found", "both empty", "missed"],
        "size": ["medium", "none", "medium"],
        **{name: [0.5, np.nan, 0.0] for name in METRICS},
        "dice": [0.8, np.nan, 0.0],
        "volume_error_ml": [1.0, 0.0, 3.0],
        "reference_voxels": [4, 0, 5],
        "lesions": [2, 0, 1],
        "lesions_found": [1, 0, 0],
        "lesions_predicted": [3, 0, 0],
        "lesions_false": [2, 0, 0],
    }
    return pd.DataFrame({**table, **columns})


def measurement(table):
    histogram, lesions = np.zeros((2, pixels.BINS), np.int64), pd.DataFrame({"class": ["1"], "found": [1]})
    confusion = dict(zip(("tp", "fp", "fn", "tn"), (1, 2, 3, 4), strict=True))
    curve, features = np.zeros(len(measuring.THRESHOLDS)), np.zeros((len(table), 2), np.float32)
    return measuring.Measurement(table, lesions, histogram, histogram, confusion, curve, features, 12.5)


CHOICE = measuring.Choice(0.4, "given", np.zeros(len(measuring.THRESHOLDS)))
WEIGHTS = ("0" * 64, 3.25)


def pickled(path):
    np.savez(path.with_suffix(".npz"), band=np.array([{}], dtype=object))
    path.with_suffix(".npz").replace(path)


def summarised(**columns):
    return measuring.summarise(measurement(cases(**columns)), CHOICE, WEIGHTS, 200, seed=0)


def keep(folder):
    masks = {"worst": np.eye(3, dtype=np.uint8)[None], "best": np.zeros((2, 4, 5), np.uint8)}
    whole = kept.Kept(measurement(cases()), summarised(), CHOICE.val_dice + 0.5, masks)
    whole.write(folder)
    return whole


def test_what_is_kept_reads_back_equal_whatever_its_cases_are_called(tmp_path):
    wrote = keep(tmp_path)
    read = kept.Kept.read(tmp_path)
    pd.testing.assert_frame_equal(read.found.cases, cases(), check_dtype=False)
    pd.testing.assert_frame_equal(read.found.lesions, wrote.found.lesions)
    assert read.summary == wrote.summary
    for name in kept.MEASURED:
        np.testing.assert_array_equal(getattr(read.found, name), getattr(wrote.found, name), strict=True)
    np.testing.assert_array_equal(read.val_dice, wrote.val_dice)
    assert read.masks.keys() == wrote.masks.keys()
    for rank, mask in read.masks.items():
        np.testing.assert_array_equal(mask, wrote.masks[rank], strict=True)


@pytest.mark.parametrize("file", ["cases.csv", "lesions.csv", "measured.npz", "summary.json"])
@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PK"), pickled])
def test_what_is_kept_and_damaged_is_refused_in_a_line(tmp_path, file, spoil):
    keep(tmp_path)
    spoil(tmp_path / file)
    with pytest.raises(InputError, match=r"no summary of an evaluation|not what evaluate keeps"):
        kept.Kept.read(tmp_path)


def test_a_summary_counts_what_it_leaves_out(tmp_path):
    summary = summarised()
    dice = summary.metrics["dice"]
    assert (dice.n, dice.n_valid, dice.mean) == (3, 2, 0.4)
    assert summary.metrics["volume_error_ml"].mean == pytest.approx(4 / 3)
    assert summary.outcomes == {"found": 1, "both empty": 1, "missed": 1}
    assert summary.lesions == {"lesions": 3, "found": 1, "predicted": 3, "false": 2}
    assert (summary.patients, summary.convention) == (2, CONVENTION)
    assert (summary.threshold, summary.threshold_from, summary.latency_ms) == (0.4, "given", 12.5)
    assert (summary.weights_sha256, summary.size_mb) == WEIGHTS
    assert summary.headline().startswith("test Dice 0.400 [0.000, 0.800], 2 of 3 cases")


def test_pictures_without_a_spacing_have_no_volume_error():
    assert "volume_error_ml" not in summarised(volume_error_ml=[math.nan] * 3).metrics


def test_best_median_and_worst_are_among_cases_that_have_a_dice():
    assert measuring.ranked(cases()) == {"best": "001", "median": "001", "worst": "c"}
    assert measuring.ranked(cases(dice=[np.nan] * 3)) == {}


def test_subgroups_are_told_by_any_column():
    table = measuring.subgroups(cases(), ("site", "scanner"), 200, seed=0)
    assert set(zip(table["column"], table["group"], strict=True)) == {
        *(("site", s) for s in "st"),
        *(("scanner", s) for s in ("1.5", "3", "nan")),
    }
    row = table[(table["group"] == "s") & (table["metric"] == "dice")].iloc[0]
    assert (row["mean"], row["n"], row["n_valid"], row["patients"]) == (0.8, 2, 1, 1)
    assert measuring.subgroups(cases(), (), 200, seed=0).empty


# --- what is measured


class Everything:
    """Calls every voxel foreground."""

    def __init__(self, *channels):
        self.spec = SimpleNamespace(channels=channels, classes=("foreground",))

    def prepare(self, image):
        return image

    def label(self, image, threshold):
        shape = image.shape[1:]
        return SimpleNamespace(mask=np.ones(shape, np.uint8), foreground=np.ones(shape, np.float32))

    def embedding(self, image):
        return image.mean(axis=(1, 2, 3))


def built(tmp_path, **knobs):
    config = settings.load(None, {"preprocess.size": "32", **knobs})
    return config, dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)


def test_ignored_voxels_count_in_no_metric_and_no_volume(tmp_path):
    root = write_nifti(tmp_path / "data")
    for path in (root / "derivatives").rglob("*_msk.nii.gz"):
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[:18] = 9
        nib.save(nib.Nifti1Image(values, image.affine), path)
    knobs = {"data.format": "nifti", "data.root": str(root), "data.ignore_label": "9"}
    config, manifest = built(tmp_path, **knobs)
    found = measuring.evaluate(
        Everything("dwi", "adc"), Dataset(tmp_path / "dataset", manifest), 0.5, config.evaluate, lambda *_: None
    )
    kept, voxel_ml = 3 * 40 * 18, 2 * 2 * 5 / 1000
    for row, case in zip(found.cases.to_dict("records"), manifest.of("test"), strict=True):
        wanted = case.voxels["foreground"]
        assert (row["predicted_voxels"], row["reference_voxels"]) == (kept, wanted)
        assert row["predicted_ml"] == pytest.approx(kept * voxel_ml)
        assert row["volume_error_ml"] == pytest.approx((kept - wanted) * voxel_ml)
        assert row["dice"] == pytest.approx(2 * wanted / (kept + wanted) if wanted else 0)
        assert (row["lesions_predicted"], row["specificity"]) == (1, 0)
    assert found.whole.sum() == kept * len(found.cases)
    assert found.embeddings.shape == (len(found.cases), 2)


def test_columns_of_the_data_become_subgroups(tmp_path):
    root = write_folder(tmp_path / "data")
    rows = [f"case{k},patient{k},{'f' if k % 2 else 'm'}" for k in range(8)]
    (root / "cases.csv").write_text("\n".join(["case,patient,sex", *rows]), encoding="utf-8")
    knobs = {"data.format": "folder", "data.root": str(root), "split.test": "0.5", "evaluate.subgroups": "sex,size"}
    config, manifest = built(tmp_path, **knobs)
    arguments = Dataset(tmp_path / "dataset", manifest), 0.5
    found = measuring.evaluate(Everything("grey"), *arguments, config.evaluate, lambda *_: None)
    assert set(found.cases["sex"]) <= {"f", "m"}
    assert list(found.cases["case"].str[-1].astype(int) % 2) == list((found.cases["sex"] == "f").astype(int))
    unknown = config.evaluate.model_copy(update={"subgroups": ("sax",)})
    with pytest.raises(InputError, match=r"evaluate.subgroups=sax: no such column.*sex"):
        measuring.evaluate(Everything("grey"), *arguments, unknown, lambda *_: None)


def test_a_column_named_as_a_result_is_refused(tmp_path):
    root = write_folder(tmp_path / "data", cases=1)
    (root / "cases.csv").write_text("case,dice\ncase0,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"cases.csv: column 'dice' has the name of one of the results"):
        built(tmp_path, **{"data.format": "folder", "data.root": str(root)})


# --- the decision threshold


class Certain:
    """Says the reference with one probability, and everything else with another, case after case."""

    def __init__(self, masks, probabilities):
        self.masks, self.probabilities, self.case = masks, probabilities, -1

    def fit(self, image):
        return image

    def label(self, prepared, threshold):
        self.case += 1
        inside, outside = self.probabilities[self.case]
        foreground = np.where(self.masks[self.case], inside, outside).astype(np.float32)
        assert foreground.shape == prepared.shape[1:]
        return Segmentation(foreground >= threshold, foreground, None)


@pytest.fixture
def three(tmp_path):
    """Three validation cases of one slice each."""
    root = write_folder(tmp_path / "data", cases=6)
    knobs = {"data.format": "folder", "data.root": str(root), "split.val": "0.5", "split.test": "0.2"}
    _, manifest = built(tmp_path, **knobs)
    dataset = Dataset(tmp_path / "dataset", manifest)
    return dataset.array("val_masks")[:, None] > 0, dataset


@pytest.mark.parametrize(
    ("probabilities", "chosen"),
    [
        ([(0.9, 0.1)] * 3, 0.5),
        ([(0.9, 0.7)] * 3, 0.71),
        ([(0.3, 0.1)] * 3, 0.3),
        ([(0.9, 0.62), (0.9, 0.1), (0.9, 0.1)], 0.5),
    ],
    ids=["any threshold is as good", "background is loud", "foreground is shy", "one case is no evidence"],
)
def test_the_threshold_is_the_one_nearest_to_a_half_that_is_as_good_as_the_best(three, probabilities, chosen):
    masks, dataset = three
    choice = measuring.choose(Certain(masks, probabilities), dataset, "auto")
    assert choice.threshold == pytest.approx(chosen)
    assert "3 validation patients" in choice.origin
    assert choice.val_dice[choice.threshold == measuring.THRESHOLDS] > 0.5


def test_a_threshold_that_is_given_is_taken_and_the_curve_is_shown_all_the_same(three):
    masks, dataset = three
    choice = measuring.choose(Certain(masks, [(0.9, 0.1)] * 3), dataset, 0.95)
    assert (choice.threshold, choice.origin) == (0.95, "given")
    assert choice.val_dice[40] == 1


def test_nothing_can_be_chosen_without_a_validation_case(three):
    masks, dataset = three
    tested = dataset.manifest.model_copy(update={"cases": dataset.where(split="test").cases})
    alone = Dataset(dataset.folder, tested)
    with pytest.raises(InputError, match=r"evaluate.threshold=auto: the validation split has no case"):
        measuring.choose(Certain(masks, []), alone, "auto")
    assert measuring.choose(Certain(masks, []), alone, 0.3).threshold == 0.3
