"""The registry under many hands: registrations at once, kills, approval, rollback, history, dry runs."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import training_set
from registrations import Prepared, Registrar

QUALITIES = (0.55, 0.9, 0.6, 0.75, 0.7, 0.85, 0.65, 0.8)
KNOBS = ("--evaluate.bootstrap_samples=200",)


@pytest.fixture(scope="module")
def prepared(store, tmp_path_factory):
    import os

    return Prepared(tmp_path_factory.mktemp("prepared"), os.environ["MLFLOW_EXPERIMENT_ID"])


@pytest.fixture(scope="module")
def evaluations(prepared):
    """Run IDs by how good the model is; evaluated when first asked for."""

    class Known(dict):
        def __missing__(self, quality):
            self[quality] = prepared.evaluation(quality)
            return self[quality]

    return Known()


@pytest.fixture(scope="module")
def jobs(store, tmp_path_factory):
    registrar = Registrar(tmp_path_factory.mktemp("jobs"))
    yield registrar
    registrar.close()


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient()


class Model:
    """A registered model of its own for a test, and the commands about it."""

    def __init__(self, name, client, evaluations, run, jobs):
        self.name, self.client, self.evaluations, self.run, self.jobs = name, client, evaluations, run, jobs

    def command(self, quality, *more):
        about = (f"--evaluate-run={self.evaluations[quality]}", f"--registry.model_name={self.name}")
        return (*about, "--by=Ada", *KNOBS, *more)

    def register(self, quality, *more):
        return self.run(*self.command(quality, *more))

    def say(self, *words):
        return self.run(*words, f"--registry.model_name={self.name}", "--by=Grace")

    def state(self):
        """Aliases, tags of the model, tags and description of each version: everything that register may touch."""
        model = self.client.get_registered_model(self.name)
        found = self.client.search_model_versions(f"name = '{self.name}'")
        versions = {str(v.version): (v.tags, v.description) for v in found}
        return {k: str(v) for k, v in model.aliases.items()}, dict(model.tags), versions

    def champions(self):
        """The champions one after the other; one now, no turn left, and aliases that agree with the record."""
        from segpipe.registry import record

        aliases, tags, versions = self.state()
        assert not [tag for tag in tags if tag.startswith("segpipe.turn.")]
        moves = record.history(self.name)
        assert moves[-1].version == aliases["champion"]
        assert [m.before for m in moves] == ["", *(m.version for m in moves[:-1])]
        assert [m.at for m in moves] == sorted({m.at for m in moves})
        line = record.line(moves, set(versions))
        assert aliases.get("previous") == (line[-2] if len(line) > 1 else None)
        assert aliases.get("challenger") != aliases["champion"]
        assert versions[aliases["champion"]][0]["decision"] == "promoted"
        return [m.version for m in moves]

    def tags(self, version):
        return self.state()[2][version][0]


@pytest.fixture
def run(store, capfd):
    """The exit code and the output of a command line, in this process: a new one takes seconds to import."""
    from steps import register

    def call(*arguments):
        capfd.readouterr()
        try:
            register.main.main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, "".join(capfd.readouterr())

    return call


@pytest.fixture
def model(request, client, evaluations, run, jobs):
    name = "".join(c if c.isalnum() else " " for c in request.node.name).strip()
    return Model(name, client, evaluations, run, jobs)


def test_of_eight_registrations_at_once_the_best_becomes_champion(model):
    results = model.jobs.all_at_once(*(model.command(quality) for quality in QUALITIES))
    assert [code for code, _ in results] == [0] * 8, results
    model.champions()
    aliases, _, versions = model.state()
    assert versions[aliases["champion"]][0]["evaluate_run"] == model.evaluations[max(QUALITIES)]
    assert sorted(versions, key=int) == [str(n) for n in range(1, 9)]
    assert {tags["decision"] for tags, _ in versions.values()} <= {"promoted", "kept"}


def test_two_registrations_of_one_model_make_one_version(model):
    results = model.jobs.all_at_once(*[model.command(0.7)] * 2)
    assert [code for code, _ in results] == [0, 0], results
    assert model.champions() == ["1"]
    assert list(model.state()[2]) == ["1"]
    figures = sorted(run.data.tags["segpipe.figure"] for run in runs(model, "register"))
    assert figures[0] == "kept: version 1 is the champion already"
    assert figures[1].startswith("promoted: first model")


def runs(model, step):
    """The finished runs of a step that are about a model, newest first."""
    query = f"tags.`segpipe.step` = '{step}' and params.`cfg.registry.model_name` = '{model.name}'"
    experiments = [e.experiment_id for e in model.client.search_experiments()]
    return model.client.search_runs(experiments, query)


def test_a_promotion_leaves_decision_report_card_and_record(model):
    from segpipe.tracking import artifacts

    assert model.register(0.6)[0] == 0
    code, shown = model.register(0.7)
    assert code == 0
    assert re.search(r"gain in mean Dice .* yes .*\[0\.\d+, 0\.\d+\].* 0\.0\d+", shown)
    assert model.champions() == ["1", "2"]
    aliases, tags, versions = model.state()
    assert aliases == {"champion": "2", "previous": "1"}
    decided, card = versions["2"]
    assert card == "# A model of 0.7"
    assert (decided["decision"], decided["decision_rule"], decided["decided_by"]) == ("promoted", "superiority", "Ada")
    (newest, _) = runs(model, "register")
    assert decided["register_run"] == newest.info.run_id
    record = json.loads(tags[max(tags)])
    assert {k: record[k] for k in ("version", "from", "by", "how", "rule")} == {
        "version": "2", "from": "1", "by": "Ada", "how": "promoted", "rule": "superiority",
    }  # fmt: skip
    folder = artifacts.local(f"runs:/{newest.info.run_id}/register")
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["promote"] is True
    assert (decision["version"]["version"], decision["champion"]["version"]) == ("2", "1")
    assert "gain in mean Dice" in (folder / "report.html").read_text(encoding="utf-8")


def test_registering_the_champion_again_moves_nothing(model):
    model.register(0.7)
    before = model.state()
    code, _ = model.register(0.7)
    assert code == 0
    assert model.state() == before
    assert runs(model, "register")[0].data.tags["segpipe.figure"] == "kept: version 1 is the champion already"


def test_a_worse_model_is_kept_and_named_challenger(model):
    model.register(0.7)
    model.register(0.6)
    assert model.state()[0] == {"champion": "1", "challenger": "2"}
    code, shown = model.say("approve", "2")
    assert code == 1
    assert re.fullmatch(r"segpipe register: version 2 of .* was refused: gain in mean Dice.*--override.*\n", shown)
    assert model.champions() == ["1"]


def test_a_dry_run_shows_the_verdict_and_touches_nothing(model):
    from mlflow.exceptions import MlflowException

    assert model.register(0.6, "--dry-run")[0] == 0
    with pytest.raises(MlflowException, match="not found"):
        model.state()
    model.register(0.6)
    before = model.state()
    code, shown = model.register(0.7, "--dry-run")
    assert code == 0
    assert "dry run, nothing moved; it would be promoted: gain in mean Dice" in shown
    assert model.state() == before
    dry = runs(model, "register --dry-run")[0]
    assert dry.data.tags["segpipe.figure"].startswith("dry run, nothing moved; it would be promoted: gain in mean Dice")
    assert dry.info.run_id not in {run.info.run_id for run in runs(model, "register")}


def test_a_refused_version_is_promoted_against_the_gate_for_a_reason_that_is_told_everywhere(model):
    from mlflow.artifacts import download_artifacts

    from segpipe.registry import record

    model.register(0.7)
    model.register(0.6)
    words = ("approve", "2", "--override", "--why=the old one fails on the new scanner")
    code, shown = model.say(*words)
    told = "overridden: version 2 is champion in the place of version 1, against the gate"
    assert (code, shown.splitlines()[0]) == (0, told)
    assert model.champions() == ["1", "2"]
    move = record.history(model.name)[-1]
    assert (move.how, move.by) == ("overridden", "Grace")
    assert move.why.startswith("the old one fails on the new scanner (the gate: gain in mean Dice -0.1")
    code, shown = model.say("history")
    assert "overridden" in shown
    tags, description = model.state()[2]["2"]
    assert tags["override"].startswith("by Grace on 20")
    assert description.startswith("# A model of 0.6\n\n**Promoted against the gate** by Grace on 20")
    page = download_artifacts(f"runs:/{tags['register_run']}/register/report.html")
    assert "<strong>Promoted against the gate</strong> by Grace on 20" in Path(page).read_text(encoding="utf-8")
    assert model.say(*words) == (0, "version 2 is the champion already\n")
    model.register(0.6)
    assert model.state()[2]["2"][1] == description
    assert model.say("rollback")[0] == 0
    assert model.champions() == ["1", "2", "1"]


def test_only_what_was_refused_is_promoted_against_the_gate(model):
    model.register(0.6)
    model.register(0.7, "--gate.approval=manual")
    code, shown = model.say("approve", "2", "--override", "--why=because")
    assert code == 1
    assert "was not refused (waiting for approval); leave out --override" in shown
    assert model.champions() == ["1"]


def test_the_last_evaluation_of_a_model_is_registered_with_the_gate_of_its_recipe(model, prepared, run):
    floors = {"registry.model_name": model.name, "gate.floors": "dice=0.9", "evaluate.bootstrap_samples": "200"}
    prepared.evaluation(0.7, **floors)
    newest = prepared.evaluation(0.8, **floors)
    other = prepared.evaluation(0.95, **{"registry.model_name": f"{model.name} more"})
    named = f"--registry.model_name={model.name}"
    code, shown = run(named, "--dry-run")
    assert code == 0
    assert f"registering the last evaluation of {model.name}, run {newest}" in shown.splitlines()
    assert "does not reach gate.floors dice=0.9" in shown
    code, shown = run(named, "--gate.floors=dice=0.5", "--by=Ada")
    assert code == 0
    assert "promoted: first model; mean test Dice 0.8" in shown
    assert model.tags("1")["evaluate_run"] == newest != other
    assert runs(model, "register")[0].data.params["cfg.gate.floors"] == "dice=0.5"
    code, shown = run(named, "--train.epochs=7")
    assert (code, shown.count("\n")) == (1, 1)
    assert f"train.epochs=7, but the last evaluation of {model.name}, run {newest}, has 50; leave it out" in shown


def test_an_evaluation_under_another_name_counts_for_a_model_that_has_a_version_of_it(model, run):
    model.register(0.7)
    code, shown = run(f"--registry.model_name={model.name}", "--dry-run")
    assert code == 0
    assert f"registering the last evaluation of {model.name}, run {model.evaluations[0.7]}" in shown
    assert "version 1 is the champion already" in shown


def test_a_model_without_an_evaluation_is_told_and_nothing_is_simulated_or_trained(client, run):
    before = {found.info.run_id for found in client.search_runs(["0", "1"])}
    for more in ((), ("--dry-run",)):
        code, shown = run("--registry.model_name=nobody yet", *more)
        assert (code, shown.count("\n")) == (1, 1)
        told = (
            "segpipe register: nobody yet has no evaluation yet: python pipeline.py --registry.model_name 'nobody yet'"
        )
        assert shown.startswith(told)
    assert {found.info.run_id for found in client.search_runs(["0", "1"])} == before


def test_what_waits_for_approval_is_promoted_by_a_person(model):
    model.register(0.6)
    code, _ = model.register(0.7, "--gate.approval=manual")
    assert code == 0
    assert model.state()[0] == {"champion": "1", "challenger": "2"}
    assert model.tags("2")["decision"] == "waiting for approval"
    assert "approve 2 --registry.model_name" in runs(model, "register")[0].data.tags["segpipe.figure"]
    code, shown = model.say("approve", "2")
    assert (code, shown) == (0, "approved: version 2 is champion in the place of version 1\n")
    assert model.champions() == ["1", "2"]
    assert model.tags("2")["decided_by"] == "Grace"
    assert model.say("approve", "2") == (0, "version 2 is the champion already\n")
    assert model.champions() == ["1", "2"]


def test_an_approval_is_void_when_the_champion_has_changed(model):
    model.register(0.6)
    model.register(0.7, "--gate.approval=manual")
    model.register(0.65)
    code, shown = model.say("approve", "2")
    assert code == 1
    assert "was compared with version 1, the champion is now version 3; run register again" in shown
    model.register(0.7, "--gate.approval=manual")
    assert model.say("approve", "2")[0] == 0
    assert model.champions() == ["1", "3", "2"]


def test_two_rollbacks_go_back_two(model):
    for quality in (0.6, 0.65, 0.7):
        model.register(quality)
    assert model.state()[0] == {"champion": "3", "previous": "2"}
    assert model.say("rollback") == (0, "rolled back: version 2 is champion in the place of version 3\n")
    assert model.state()[0] == {"champion": "2", "previous": "1"}
    assert model.say("rollback")[0] == 0
    assert model.state()[0] == {"champion": "1"}
    assert model.champions() == ["1", "2", "3", "2", "1"]
    code, shown = model.say("rollback")
    assert code == 1
    assert "no version was champion before version 1; there is nothing to roll back to" in shown
    code, shown = model.say("history")
    assert code == 0
    told = re.findall(r"(\*?)\s*│ \S+Z\s*│ (\d)\s*│ (promoted|rolled back)\s*│ (Ada|Grace) ", shown)
    assert told == [
        ("", "1", "promoted", "Ada"), ("", "2", "promoted", "Ada"), ("", "3", "promoted", "Ada"),
        ("", "2", "rolled back", "Grace"), ("*", "1", "rolled back", "Grace"),
    ]  # fmt: skip


def test_what_was_rolled_back_comes_back_only_by_approval(model):
    model.register(0.6)
    model.register(0.7)
    model.say("rollback")
    assert model.tags("2")["decision"] == "rolled back"
    code, _ = model.register(0.7)
    assert code == 0
    assert model.champions() == ["1", "2", "1"]
    figure = runs(model, "register")[0].data.tags["segpipe.figure"]
    assert re.match(r"kept: version 2 was rolled back to version 1 on .* by Grace; approve it to bring it back", figure)
    assert model.say("approve", "2")[0] == 0
    assert model.champions() == ["1", "2", "1", "2"]
    model.register(0.75)
    assert model.say("rollback")[0] == 0
    assert model.champions() == ["1", "2", "1", "2", "3", "2"]


def test_an_alias_set_by_hand_and_a_champion_from_before_the_record_are_recorded(model):
    model.register(0.6)
    model.register(0.7)
    for key in model.state()[1]:
        model.client.delete_registered_model_tag(model.name, key)
    model.client.delete_model_version_tag(model.name, "2", "segpipe.move")
    model.register(0.75)
    assert model.say("rollback")[0] == 0
    assert model.state()[0] == {"champion": "2", "previous": "1"}
    model.client.set_registered_model_alias(model.name, "champion", "1")
    model.register(0.65)
    from segpipe.registry import record

    moves = record.history(model.name)
    assert [(m.version, m.before) for m in moves] == [("2", "1"), ("3", "2"), ("2", "3"), ("1", "2"), ("4", "1")]
    assert moves[0].why == moves[3].why == "the alias was set without register"


def test_a_champion_from_elsewhere_is_measured_on_the_cases_it_was_not_trained_on(model, prepared, tmp_path):
    from segpipe.metrics.catalogue import METRICS
    from segpipe.orchestration import champion_cases
    from segpipe.registry import champions

    config, manifest, folder = training_set(tmp_path)
    here = prepared.dataset(folder, manifest.test_digest)
    (first, *others) = manifest.of("test")
    values = json.loads((folder / "manifest.json").read_text())
    for case in values["cases"]:
        case["split"] = "train" if case["case"] == first.case else case["split"]
    (folder / "manifest.json").write_text(json.dumps(values))
    elsewhere = prepared.dataset(folder, "another")
    model.register(0.6)
    champion = champions.holder(model.name)
    champion.tags.update(test_digest="another", preprocess_run=elsewhere)
    cases = champion_cases.cases_of(champion, here, config, lambda *_: None)
    assert set(cases["case"]) == {case.case for case in others}
    assert set(METRICS) <= set(cases)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("approve", "7"), 1, "has no version 7; there are 1"),
        (("approve", "x"), 1, "has no version x; there are 1"),
        (("approve",), 2, "VERSION goes with approve"),
        (("rollback", "1"), 2, "VERSION goes with approve"),
        (("approve", "1", "--override"), 2, "--override and --why go with approve, both"),
        (("approve", "1", "--why=because"), 2, "--override and --why go with approve, both"),
        (("approve", "1", "--override", "--why= "), 2, "--override and --why go with approve, both"),
        (("rollback", "--override", "--why=because"), 2, "--override and --why go with approve, both"),
        (("rollback", "--dry-run"), 2, "--dry-run is for register itself"),
        (("rollback",), 1, "nothing to roll back to"),
        (("promote",), 2, "'promote' is not one of 'register', 'approve', 'rollback', 'history'"),
        (("history", "--no-mlflow"), 2, "register needs MLflow"),
        (("history", "--registry.model_name=nobody"), 1, "no registered model 'nobody'"),
        (("rollback", "--registry.model_name=nobody"), 1, "no registered model 'nobody'"),
        (("approve", "1", "--registry.model_name=nobody"), 1, "no registered model 'nobody'"),
    ],
)
def test_wrong_input_is_told_in_a_line(words, code, told, client, evaluations, run, jobs):
    model = Model("told in a line", client, evaluations, run, jobs)
    model.register(0.6)
    before = model.state()
    given = words if words[-1].startswith("--registry") else (*words, f"--registry.model_name={model.name}")
    found, shown = run(*given)
    assert found == code
    assert re.fullmatch(r"segpipe register: .*\n", shown), shown
    assert told in shown
    assert model.state() == before


def killed(model, dies):
    """Kill a promotion before its writing call of that number; whether there was one."""
    assert model.register(0.6)[0] == 0
    code, shown = model.jobs(*model.command(0.7), dies=dies)
    aliases, _, versions = model.state()
    if code == 0:
        return False
    assert code == -signal.SIGKILL, shown
    assert aliases["champion"] in ("1", "2")
    assert set(versions) <= {"1", "2"}
    code, shown = model.jobs(*model.command(0.7))
    assert code == 0, shown
    assert "waiting for another registration" not in shown
    assert model.champions() == ["1", "2"]
    assert model.state()[0] == {"champion": "2", "previous": "1"}
    return True


@pytest.mark.parametrize("dies", sorted(np.random.default_rng(0).choice(np.arange(2, 9), 2, replace=False).tolist()))
def test_a_kill_leaves_one_champion_and_register_again_completes_it(model, dies):
    assert killed(model, dies)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_one_champion(model):
    name, moments = model.name, []
    for dies in range(1, 100):
        model.name = f"{name} {dies}"
        if not killed(model, dies):
            break
        moments.append(dies)
    assert len(moments) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("words", [("approve", "2"), ("rollback",)], ids=["approve", "rollback"])
def test_a_kill_of_a_persons_command_leaves_one_champion(model, words):
    name, code, dies = model.name, -signal.SIGKILL, 0
    while code:
        dies += 1
        model.name = f"{name} {dies}"
        model.register(0.6)
        model.register(0.7, *(["--gate.approval=manual"] if words[0] == "approve" else []))
        code, shown = model.jobs(*words, f"--registry.model_name={model.name}", dies=dies)
        assert code in (0, -signal.SIGKILL), shown
        assert model.state()[0]["champion"] in ("1", "2")
        assert model.jobs(*model.command(0.55))[0] == 0
        assert set(model.champions()) <= {"1", "2"}
    assert dies > 5
