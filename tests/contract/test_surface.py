"""What others script against: knobs, flags, entry points, requirements."""

import difflib
import re
import tomllib

import pytest
import surface
import yaml

from segpipe.config import settings
from segpipe.files.project import PROJECT
from segpipe.orchestration.step_table import STEPS

FIXED = {
    *("seed", "data.format", "data.root", "model.arch", "model.encoder", "model.encoder_weights"),
    *(
        "train.epochs",
        "train.lr",
        "train.batch_size",
        "train.resume",
        "augment.enabled",
        "evaluate.threshold",
        "registry.model_name",
    ),
}


def test_fixed_knob_names_exist():
    assert set(settings.knobs()) >= FIXED


def test_knobs_and_flags_are_those_of_the_kept_list():
    kept, now = surface.KEPT.read_text(encoding="utf-8").splitlines(), surface.text().splitlines()
    changed = "\n".join(difflib.unified_diff(kept, now, "kept", "now", lineterm="", n=0))
    renew = "python -m tests.contract.surface > tests/contract/surface.txt"
    if changed:
        pytest.fail(f"knobs or flags changed. If that is intended: {renew}\n{changed}", pytrace=False)


def test_entry_points_are_the_chains_steps():
    project = yaml.safe_load((PROJECT / "MLproject").read_text(encoding="utf-8"))
    assert set(project["entry_points"]) == {"main", "check", "compare", "federate", "plan", "predict", *STEPS}
    assert project["conda_env"] == "conda.yaml"
    for name, step in STEPS.items():
        entry = project["entry_points"][name]
        assert list(entry["parameters"]) == ["config", *(f"{i}_run" for i in step.inputs)]
        assert entry["command"].startswith(f"python -m steps.{name} ")


def test_every_section_belongs_to_a_step():
    read = {section for step in STEPS.values() for section in step.sections}
    assert read | {"card", "check", "tracking", "plan", "driver", "compare", "predict", "serving"} == set(
        settings.Config.model_fields
    )


def test_conda_has_one_list_of_requirements():
    environment = yaml.safe_load((PROJECT / "conda.yaml").read_text(encoding="utf-8"))
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.txt"]}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_exact_and_name_no_registry(name):
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert all(re.match(r"^[A-Za-z0-9._\[\]-]+==[^ ]+( ;.*)?$", pin) for pin in pins)
    assert not any("://" in line or line.startswith("-") for line in lines)


def test_every_dependency_is_pinned_and_explained():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = (PROJECT / "requirements.txt").read_text(encoding="utf-8") + (PROJECT / "requirements-dev.txt").read_text(
        encoding="utf-8"
    )
    reasons = (PROJECT / "docs" / "explanation" / "dependencies.md").read_text(encoding="utf-8")
    for dependency in (*project["dependency-groups"]["run"], *project["dependency-groups"]["dev"]):
        name = dependency.split("==")[0]
        assert re.search(rf"^{re.escape(name)}==", pins, re.MULTILINE | re.IGNORECASE), name
        assert f"`{name}`" in reasons, name


def test_the_version_is_the_changelogs():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    import segpipe

    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert project["project"]["version"] == segpipe.__version__ == newest.group(1)
