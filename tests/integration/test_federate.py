"""Comparisons of sites that train apart and together."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import TINY, write_folder, write_sites

# MLflow logs a model with pandas in a way that pandas warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")
MODELS = ["local:a", "local:b", "local:c", "central", "fedavg", "fedprox", "fedbn"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("of sites") / "raw data")


@pytest.fixture
def federate(store, raw, capfd, tmp_path_factory):
    """Run the comparison in this process: its exit code, stdout and stderr."""
    knobs = [*TINY, f"--data.root={raw}", f"--tracking.outputs={tmp_path_factory.getbasetemp() / 'out puts'}"]

    def run(*more):
        import pipeline

        capfd.readouterr()
        try:
            pipeline.command().main(["federate", "--in-process", *knobs, "--registry.model_name=sites", *more])
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return SimpleNamespace(returncode=code, **capfd.readouterr()._asdict())

    return run


def table_of(run):
    from segpipe.tracking import artifacts

    return {
        name: pd.read_csv(artifacts.local(f"runs:/{run.info.run_id}/federate/{name}.csv"))
        for name in ("sites", "rounds")
    }


def test_each_training_is_measured_at_each_site_and_the_best_federation_goes_on(federate, tmp_path_factory):
    from segpipe.tracking import artifacts, connection, runs

    done = federate()
    assert done.returncode == 0, done.err
    connection.connect()
    run = runs.finished("federate")[0]
    client, tables = runs.MlflowClient(), table_of(run)
    board = tables["sites"]
    assert list(board[board["site"] == "a"]["model"]) == MODELS
    assert list(board["site"].unique()) == ["a", "b", "c", "all sites"]
    assert set(board[board["site"] == "b"]["patients"]) == {2}
    assert set(board[board["site"] == "all sites"]["patients"]) == {6}
    assert (board["dice_ci_low"] <= board["dice"]).all()
    assert set(tables["rounds"]["model"]) == {"fedavg", "fedprox", "fedbn"}
    assert len(tables["rounds"]) == 3 * 2 * 3
    page = Path(artifacts.local(f"runs:/{run.info.run_id}/federate/report.html")).read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in page for name in MODELS)
    assert page.count("data:image/png") == 2
    assert str(tmp_path_factory.getbasetemp()) not in page
    assert all(name in done.out for name in MODELS)

    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    trained = {
        child.data.params["cfg.federate.strategy"]: child
        for child in children
        if child.data.tags["segpipe.step"] == "train" and child.data.params["cfg.federate.strategy"] != "local"
    }
    assert set(trained) == {"central", "fedavg", "fedprox", "fedbn"}
    for strategy, child in trained.items():
        below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{child.info.run_id}'")
        sites = {one.data.tags["segpipe.site"]: one for one in below}
        assert sorted(sites) == ([] if strategy == "central" else ["a", "b", "c"])
        rows = board[board["model"] == strategy].set_index("site")["dice"]
        assert client.get_run(child.info.run_id).data.metrics["b_test_dice"] == pytest.approx(rows["b"])
        for one in sites.values():
            assert one.info.status == "FINISHED"
            assert {"round_train_loss", "round_train_dice", "round_val_loss", "round_val_dice"} <= set(one.data.metrics)
    best = max(("fedavg", "fedprox", "fedbn"), key=lambda name: trained[name].data.metrics["best_val_dice"])
    assert run.data.tags["segpipe.best"] == best
    assert client.get_model_version_by_alias("sites", "champion").tags["train_run"] == trained[best].info.run_id


def test_a_second_time_everything_is_reused_and_plan_says_so(federate):
    planned = federate("--plan")
    assert planned.returncode == 0, planned.err
    assert planned.out.count(": reuse ") == 8, planned.out
    again = federate("--then", "evaluate")
    assert again.returncode == 0, again.err
    assert ": run: because" not in again.err


def test_two_sites_are_needed(command, store, tmp_path):
    raw = write_folder(tmp_path / "raw")
    done = command("pipeline.py", "federate", "--in-process", *TINY, f"--data.root={raw}")
    assert done.returncode == 1
    assert "needs cases of two sites or more; give each case its own in cases.csv" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("knob", "told"),
    [
        ("--train.minutes=3", "train.minutes measures one training; give federate.rounds instead"),
        ("--train.processes=2", "a site trains in one process; give 1"),
        ("--train.schedule=plateau", "waits for every epoch's validation; give cosine or another"),
        ("--federate.strategy=local", "strategy local: name one site in federate.sites"),
        ("--federate.sites=a,a", "a site is named twice"),
    ],
)
def test_knobs_that_do_not_go_together_are_told_at_once(command, raw, knob, told):
    done = command("-m", "steps.train", "--no-mlflow", f"--data.root={raw}", "--federate.strategy=fedavg", knob)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
