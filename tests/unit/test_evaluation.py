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
from segpipe.evaluation.choosing import Choice
from segpipe.evaluation.suspects import Suspects
from segpipe.inference.spec import Labelling
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
    labels = np.array([[50, 2], [3, 4]])
    return measuring.Measurement(table, lesions, histogram, histogram, confusion, labels, curve, features, 12.5)


CHOICE = Choice(Labelling(0.4, tta=True, min_area=8), "given", np.zeros(len(measuring.THRESHOLDS)), ("because",))
WEIGHTS = ("0" * 64, 3.25)


def pickled(path):
    np.savez(path.with_suffix(".npz"), band=np.array([{}], dtype=object))
    path.with_suffix(".npz").replace(path)


def summarised(**columns):
    return measuring.summarise(measurement(cases(**columns)), CHOICE, WEIGHTS, 200, seed=0)


def first(count=2):
    """Three cases to look at first, one without a Dice, one without a score, and the labels of some."""
    names = {"case": ["7", "NA", "003"], "patient": ["07", "nan", "3"]}
    table = pd.DataFrame(names | {"score": [0.01, 0.25, np.nan], "dice": [0.5, np.nan, 1.0]})
    return Suspects(table, tuple(np.full((k + 1, 4, 5), k, np.uint8) for k in range(count)))


def keep(folder, look_first=None):
    masks = {"worst": np.eye(3, dtype=np.uint8)[None], "best": np.zeros((2, 4, 5), np.uint8)}
    whole = kept.Kept(measurement(cases()), summarised(), CHOICE.val_dice + 0.5, masks, look_first)
    whole.write(folder)
    return whole


def test_what_is_kept_reads_back_equal_whatever_its_cases_are_called(tmp_path):
    wrote = keep(tmp_path, first())
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
    pd.testing.assert_frame_equal(read.look_first.table, wrote.look_first.table)
    for labels, written in zip(read.look_first.labels, wrote.look_first.labels, strict=True):
        np.testing.assert_array_equal(labels, written, strict=True)


def test_an_evaluation_without_masks_to_look_at_first_has_no_such_table(tmp_path):
    keep(tmp_path)
    assert not (tmp_path / kept.LOOK_FIRST).exists()
    assert kept.Kept.read(tmp_path).look_first is None


def test_cases_without_a_score_are_in_the_table_alone(tmp_path):
    keep(tmp_path, first(0))
    pd.testing.assert_frame_equal(kept.Kept.read(tmp_path).look_first.table, first().table)


@pytest.mark.parametrize("file", ["cases.csv", "lesions.csv", "look_first.csv", "measured.npz", "summary.json"])
@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PK"), pickled])
def test_what_is_kept_and_damaged_is_refused_in_a_line(tmp_path, file, spoil):
    keep(tmp_path, first())
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
    assert (summary.tta, summary.largest_component, summary.min_area) == (True, False, 8)
    assert summary.labelling_from == ("because",)
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
        self.spec = SimpleNamespace(channels=channels, classes=("foreground",), profile=None)

    def prepare(self, image, _spacing):
        return image

    def answer(self, image, labelling):
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
    dataset, model = Dataset(tmp_path / "dataset", manifest), Everything("dwi", "adc")
    found = measuring.evaluate(model, dataset, Labelling(0.5), config.evaluate, lambda *_: None)
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
    arguments = Dataset(tmp_path / "dataset", manifest), Labelling(0.5)
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
