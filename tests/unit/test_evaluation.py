import math

import numpy as np
import pandas as pd
import pytest

from segpipe import evaluation
from segpipe.metrics import CONVENTION


def cases(**columns):
    table = {
        "case": ["001", "NA", "c"],
        "patient": ["1", "1", "2"],
        "site": ["s", "s", "t"],
        "outcome": ["found", "both empty", "missed"],
        "dice": [0.8, np.nan, 0.0],
        "iou": [0.7, np.nan, 0.0],
        "precision": [0.9, np.nan, 0.0],
        "recall": [0.6, np.nan, 0.0],
        "volume_error_ml": [1.0, 0.0, 3.0],
    }
    return pd.DataFrame({**table, **columns})


def test_a_table_reads_back_equal_whatever_its_cases_are_called(tmp_path):
    evaluation.save(cases(), {}, tmp_path)
    pd.testing.assert_frame_equal(evaluation.read(tmp_path / "cases.csv"), cases(), check_dtype=False)


def test_a_summary_counts_what_it_leaves_out():
    summary = evaluation.summarise(cases(), 0.5, 200, seed=0)
    dice = summary["metrics"]["dice"]
    assert (dice["n"], dice["n_valid"], dice["mean"]) == (3, 2, 0.4)
    assert summary["metrics"]["volume_error_ml"]["mean"] == pytest.approx(4 / 3)
    assert summary["outcomes"] == {"found": 1, "both empty": 1, "missed": 1}
    assert (summary["patients"], summary["convention"]) == (2, CONVENTION)
    assert evaluation.headline(summary).startswith("test Dice 0.400 [0.000, 0.800], 2 of 3 cases")


def test_pictures_without_a_spacing_have_no_volume_error():
    summary = evaluation.summarise(cases(volume_error_ml=[math.nan] * 3), 0.5, 200, seed=0)
    assert "volume_error_ml" not in summary["metrics"]


def test_best_median_and_worst_are_among_cases_that_have_a_dice():
    assert evaluation.ranked(cases()) == {"best": "001", "median": "001", "worst": "c"}
    assert evaluation.ranked(cases(dice=[np.nan] * 3)) == {}
