"""The page of a check: an artifact of `check` always, of `preprocess` where something is found."""

import json

import mlflow
import numpy as np
import pytest
from conftest import write_folder
from PIL import Image

from segpipe.tracking import locations

KNOBS = ("--preprocess.size=32,32",)


def last_run(name):
    (run,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`segpipe.step` = '{name}'",
        order_by=["start_time DESC"],
        max_results=1,
        output_format="list",
    )
    return run


def page_of(run):
    folder = locations.local_root(run.info.artifact_uri) / "check"
    return (folder / "data_report.html") if folder.is_dir() else None


@pytest.mark.parametrize("name", ["check", "preprocess"])
def test_a_faulty_set_fails_with_its_page(store, step, tmp_path, name):
    root = write_folder(tmp_path / "raw", cases=10)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks/case3.png")
    (root / "images/case4.png").write_bytes(b"")
    code, shown = step(name, f"--data.root={root}", *KNOBS)
    run = last_run(name)
    assert (code, run.info.status) == (1, "FAILED")
    assert "2 faults, the first:" in shown
    page = page_of(run)
    assert str(page) in shown
    told = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert [one["severity"] for one in told["findings"]] == ["error", "error"]
    assert not (page.parents[1] / "dataset").exists()


def test_preprocess_has_a_page_only_where_something_is_found(store, step, tmp_path):
    root = write_folder(tmp_path / "raw", cases=10)
    code, shown = step("preprocess", f"--data.root={root}", *KNOBS)
    assert (code, page_of(last_run("preprocess"))) == (0, None), shown
    Image.fromarray(np.zeros((40, 36), np.uint8)).save(root / "masks/case3.png")
    code, shown = step("preprocess", f"--data.root={root}", *KNOBS)
    assert code == 0, shown
    assert "note: case case3: mask empty" in shown
    assert page_of(last_run("preprocess")).is_file()
