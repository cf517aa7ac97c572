"""The import contract: who may import whom, and which third party is confined to where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from segpipe import sources
from segpipe.sources import PROJECT

LAYERS = (
    ("segpipe.errors", "segpipe.sources", "segpipe.config"),
    ("segpipe.settings",),
    ("segpipe.manifest", "segpipe.distributed", "segpipe.schedule", "segpipe.checkpoint"),
    ("segpipe.data",),
    ("segpipe.models", "segpipe.losses", "segpipe.metrics", "segpipe.statistics"),
    ("segpipe.inference", "segpipe.learner"),
    ("segpipe.engine",),
    ("segpipe.evaluation", "segpipe.plots"),
    ("segpipe.journal", "segpipe.offline"),
    ("segpipe.training", "segpipe.serving"),
    ("segpipe.tracking", "segpipe.served_model"),
    ("segpipe.artifacts",),
    ("segpipe.logged_models",),
    ("segpipe.spool", "segpipe.registry"),
    ("steps",),
    ("pipeline",),
)
CONFINED = {
    "click": ("steps", "pipeline"),
    "mlflow": (
        *("segpipe.tracking", "segpipe.artifacts", "segpipe.logged_models", "segpipe.spool", "segpipe.registry"),
        *("segpipe.serving", "segpipe.served_model", "steps", "pipeline"),
    ),
    "segmentation_models_pytorch": ("segpipe.models", "segpipe.losses"),
    "accelerate": ("segpipe.distributed", "segpipe.learner", "segpipe.engine", "segpipe.training"),
    "psutil": ("segpipe.distributed",),
    "nibabel": ("segpipe.data.codecs", "segpipe.data.phantom"),
    "PIL": ("segpipe.data.codecs", "segpipe.data.transform", "segpipe.plots"),
    "nilearn": ("segpipe.data.phantom",),
    "matplotlib": ("segpipe.plots",),
    "safetensors": ("segpipe.inference", "segpipe.models.encoder_weights"),
    "skimage": ("segpipe.data.transform",),
    "rich": ("steps", "pipeline"),
}
FILES = sorted([PROJECT / "pipeline.py", *(PROJECT / "segpipe").rglob("*.py"), *(PROJECT / "steps").rglob("*.py")])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    for number, members in enumerate(LAYERS):
        if any(module == m or module.startswith(m + ".") for m in members):
            return number
    return -1


def type_only(path: Path) -> set[str]:
    """What a file imports for annotations alone."""
    guards = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    inner = [n for guard in guards for n in ast.walk(guard)]
    names = {n.module for n in inner if isinstance(n, ast.ImportFrom) and n.module}
    return names | {a.name for n in inner if isinstance(n, ast.Import) for a in n.names}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_layers_below_its_own(path):
    module = name_of(path)
    if module == "segpipe":
        assert sources.imports(path) == set()
        return
    assert layer(module) >= 0, f"{module} has no layer"
    for found in sources.imports(path) - type_only(path):
        if sources.module_file(found) is None or found in ("segpipe", "steps"):
            continue
        same_package = found.rsplit(".", 1)[0] == module.rsplit(".", 1)[0] or found.startswith(
            ("segpipe.data", "segpipe.models")
        )
        assert layer(found) < layer(module) or (layer(found) == layer(module) and same_package), found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_third_parties_stay_where_they_belong(path):
    module = name_of(path)
    for found in sources.imports(path) - type_only(path):
        allowed = CONFINED.get(found.split(".")[0])
        assert allowed is None or any(module == a or module.startswith(a + ".") for a in allowed), found


@pytest.mark.parametrize(
    "command", ["import pipeline, steps.chain, segpipe.tracking, segpipe.registry", "import steps.cli"]
)
def test_the_driver_starts_without_torch(command):
    program = f"import sys; {command}; print(sorted({{'torch', 'matplotlib', 'nilearn'}} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_what_ships_inside_a_model_is_small():
    shipped = {name_of(path) for path in sources.closure(["segpipe.served_model"])}
    assert shipped == {
        "segpipe",
        "segpipe.config",
        "segpipe.data",
        "segpipe.data.codecs",
        "segpipe.data.transform",
        "segpipe.data.volume",
        "segpipe.errors",
        "segpipe.inference",
        "segpipe.models",
        "segpipe.models.attention_unet",
        "segpipe.models.encoder_weights",
        "segpipe.models.group_norm",
        "segpipe.models.options",
        "segpipe.models.pruning",
        "segpipe.served_model",
        "segpipe.serving",
    }


def test_a_closure_follows_imports_and_nothing_else():
    train = {name_of(path) for path in sources.closure(["steps.train"])}
    assert {"segpipe.engine", "segpipe.losses", "segpipe.data.augment"} <= train
    assert not {"segpipe.registry", "steps.register", "steps.evaluate", "pipeline"} & train
    preprocess = {name_of(path) for path in sources.closure(["steps.preprocess"])}
    assert "segpipe.data.readers.folder" in preprocess
