"""`steps.plan`, and a chain that follows the plan."""

import pytest
import yaml
from conftest import write_folder

from segpipe.files.project import PROJECT

pytestmark = pytest.mark.usefixtures("store")
SMALL = ("--train.minutes=0.4", "--model.encoder=tu-test_resnet")


def test_a_plan_is_written_logged_and_followed(command, tmp_path):
    from segpipe.tracking import artifacts, runs

    root, target = write_folder(tmp_path / "my data", cases=12), tmp_path / "plan.yaml"
    asked = ("-m", "steps.plan", "--data.format=folder", f"--data.root={root}", f"--output={target}", *SMALL)
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    assert f"planned from 7 cases: python pipeline.py --config {target}" in done.stderr.splitlines()
    assert done.stderr.splitlines()[-1].endswith("/artifacts/plan/plan.yaml")
    text = target.read_text(encoding="utf-8")
    assert done.stdout == text
    recipe = yaml.safe_load(text)
    assert recipe["model"]["encoder"] == "tu-test_resnet"
    assert recipe["train"]["minutes"] == 0.4
    assert "root" not in recipe["data"]
    (run,) = runs.finished("plan")
    assert artifacts.local(f"runs:/{run.info.run_id}/plan/recipe.yaml").read_text(encoding="utf-8") == text
    assert sorted(path.name for path in root.iterdir()) == ["images", "masks"]

    again = command(*asked)
    assert again.returncode == 0, again.stderr
    target.write_text("mine: 1\n", encoding="utf-8")
    refused = command(*asked)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].endswith("with other content; give another --output or remove it")
    assert target.read_text(encoding="utf-8") == "mine: 1\n"

    target.write_text(text, encoding="utf-8")
    chain = ("pipeline.py", f"--config={target}", f"--data.root={root}", "--gate.min_patients=1", "--in-process")
    done = command(*chain, "--registry.model_name=planned", "--evaluate.bootstrap_samples=100")
    assert done.returncode == 0, done.stderr
    evaluated = runs.finished("evaluate")[0]
    trained = runs.finished("train")[0]
    assert trained.data.params["cfg.preprocess.fit"] == "patch"
    assert all(int(trained.data.params[f"cfg.train.{name}_planned"]) >= 1 for name in ("epochs", "patches"))
    assert "validation cases" in artifacts.local(f"runs:/{evaluated.info.run_id}/evaluation/summary.json").read_text()


def params(run):
    return {name.removeprefix("cfg."): value for name, value in run.data.params.items()}


def test_a_chain_without_a_recipe_plans_first(command, tmp_path):
    from segpipe.tracking import runs

    root = write_folder(tmp_path / "pictures", cases=12)
    small = ("--model.encoder=tu-test_resnet", "--train.epochs=1", "--evaluate.bootstrap_samples=100")
    chain = ("pipeline.py", f"--data.root={root}", "--registry.model_name=alone", "--gate.min_patients=1", *small)
    done = command(*chain, "--plan")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "plan: run: because train.minutes 0.4 -> 0.0",
        "preprocess and the steps after it follow from the plan",
    ]
    done = command(*chain, "--in-process")
    assert done.returncode == 0, done.stderr
    planned = runs.finished("plan")[0]
    parent, trained = runs.finished("pipeline")[0], runs.finished("train")[0]
    for run in (parent, trained):
        assert (params(run)["preprocess.fit"], params(run)["preprocess.size"]) == ("patch", "40,40")
        assert (params(run)["data.format"], params(run)["train.epochs"], params(run)["train.minutes"]) == (
            "folder",
            "1",
            "0.0",
        )
    assert parent.data.tags["segpipe.run.plan"] == planned.info.run_id
    assert not (PROJECT / "plan.yaml").exists()

    done = command(*chain, "--plan")
    assert done.stdout.splitlines()[0] == f"plan: reuse {planned.info.run_id}"
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["reuse"] * 5
    done = command(*chain, "--plan", "--train.minutes=3")
    assert done.returncode == 0
    assert done.stdout.startswith("plan: run: because train.minutes 0.0 -> 3.0")
    done = command(*chain, "--plan", "--fresh")
    assert done.stdout.startswith("plan: run: because it was asked for")
    done = command(*chain, "--plan", "--plan.auto=false")
    assert "plan:" not in done.stdout


def test_what_a_folder_holds_is_found_out_or_asked_for(command, tmp_path):
    (tmp_path / "nothing known").mkdir()
    (tmp_path / "nothing known" / "notes.txt").write_text("x")
    done = command("pipeline.py", f"--data.root={tmp_path / 'nothing known'}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "nothing known: holds neither sub-*/ and derivatives/ (nifti), or images/ and masks/ (folder or stacks); "
        "give data.format"
    )
    assert sorted(path.name for path in (tmp_path / "nothing known").iterdir()) == ["notes.txt"]


def test_what_can_not_be_planned_is_told_in_a_line(command, tmp_path):
    done = command("-m", "steps.plan", "--data.format=folder", f"--data.root={tmp_path / 'none'}")
    assert done.returncode != 0
    assert "no such folder" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
