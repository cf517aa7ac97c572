"""`steps.plan`, and a chain that follows the plan."""

import pytest
import yaml
from conftest import write_folder

pytestmark = pytest.mark.usefixtures("store")
SMALL = ("--train.minutes=0.4", "--model.encoder=tu-test_resnet")


def test_a_plan_is_written_logged_and_followed(command, tmp_path):
    from segpipe.tracking import artifacts, runs

    root, target = write_folder(tmp_path / "my data", cases=12), tmp_path / "plan.yaml"
    asked = ("-m", "steps.plan", "--data.format=folder", f"--data.root={root}", f"--output={target}", *SMALL)
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"planned from 7 cases: python pipeline.py --config {target}"
    text = target.read_text(encoding="utf-8")
    assert done.stdout == text
    recipe = yaml.safe_load(text)
    assert recipe["model"]["encoder"] == "tu-test_resnet"
    assert recipe["train"]["minutes"] == 0.4
    assert "root" not in recipe["data"]
    (run,) = runs.finished("plan")
    assert artifacts.local(f"runs:/{run.info.run_id}/plan/plan.yaml").read_text(encoding="utf-8") == text
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


def test_what_can_not_be_planned_is_told_in_a_line(command, tmp_path):
    done = command("-m", "steps.plan", "--data.format=folder", f"--data.root={tmp_path / 'none'}")
    assert done.returncode != 0
    assert "no such folder" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
