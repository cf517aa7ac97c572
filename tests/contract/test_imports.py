"""The import contract: who may import whom, and which third party is confined to where."""

import subprocess
import sys
from pathlib import Path

import pytest

from segpipe import sources
from segpipe.sources import PROJECT

LAYERS = (
    ("segpipe.errors", "segpipe.sources", "segpipe.config", "segpipe.processes"),
    ("segpipe.settings", "segpipe.digests"),
    ("segpipe.manifest", "segpipe.inventory", "segpipe.distributed", "segpipe.schedule", "segpipe.checkpoint"),
    ("segpipe.data",),
    ("segpipe.models", "segpipe.losses", "segpipe.metrics", "segpipe.statistics"),
    ("segpipe.gate", "segpipe.inference", "segpipe.learner"),
    ("segpipe.engine", "segpipe.channels", "segpipe.findings"),
    ("segpipe.evaluation", "segpipe.plots"),
    ("segpipe.report", "segpipe.card", "segpipe.prediction"),
    ("segpipe.journal", "segpipe.offline"),
    ("segpipe.training", "segpipe.serving"),
    ("segpipe.store",),
    ("segpipe.tracking", "segpipe.served_model"),
    ("segpipe.fetched",),
    ("segpipe.artifacts",),
    ("segpipe.logged_models",),
    ("segpipe.lineage", "segpipe.turns"),
    ("segpipe.spool", "segpipe.registry", "segpipe.leases"),
    ("segpipe.orphans",),
    ("segpipe.server",),
    ("segpipe.page",),
    ("steps",),
    ("pipeline",),
)
CONFINED = {
    "click": ("steps", "pipeline"),
    "mlflow": (
        *(
            "segpipe.store",
            "segpipe.tracking",
            "segpipe.artifacts",
            "segpipe.logged_models",
            "segpipe.spool",
            "segpipe.registry",
        ),
        *("segpipe.lineage", "segpipe.turns", "segpipe.leases", "segpipe.orphans", "segpipe.fetched"),
        *("segpipe.serving", "segpipe.served_model", "segpipe.server", "segpipe.page", "steps", "pipeline"),
    ),
    "segmentation_models_pytorch": ("segpipe.models", "segpipe.losses"),
    "accelerate": ("segpipe.distributed", "segpipe.learner", "segpipe.engine", "segpipe.training"),
    "sqlalchemy": ("segpipe.store",),
    "requests": ("segpipe.store",),
    "psutil": ("segpipe.distributed", "segpipe.processes"),
    "nibabel": ("segpipe.data.codecs", "segpipe.data.phantom"),
    "pydicom": ("segpipe.data.codecs",),
    "PIL": (
        *("segpipe.data.codecs", "segpipe.data.transform", "segpipe.plots", "segpipe.report"),
        "segpipe.prediction",
    ),
    "nilearn": ("segpipe.data.phantom",),
    "matplotlib": ("segpipe.plots",),
    "safetensors": ("segpipe.inference", "segpipe.models.encoder_weights"),
    "skimage": ("segpipe.data.transform", "segpipe.data.encodings", "segpipe.metrics"),
    "sklearn": ("segpipe.metrics", "segpipe.report"),
    "jinja2": ("segpipe.report",),
    "rich": ("steps", "pipeline"),
    "starlette": ("segpipe.server", "segpipe.page"),
    "uvicorn": ("segpipe.server", "steps.serve", "steps.demo_page"),
    "prometheus_client": ("segpipe.server",),
    "markdown_it": ("segpipe.page",),
}
FILES = sorted([PROJECT / "pipeline.py", *(PROJECT / "segpipe").rglob("*.py"), *(PROJECT / "steps").rglob("*.py")])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    for number, members in enumerate(LAYERS):
        if any(module == m or module.startswith(m + ".") for m in members):
            return number
    return -1


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_layers_below_its_own(path):
    module = name_of(path)
    if module == "segpipe":
        assert sources.imports(path) == set()
        return
    assert layer(module) >= 0, f"{module} has no layer"
    for found in sources.imports(path):
        if sources.module_file(found) is None or found in ("segpipe", "steps"):
            continue
        same_package = (
            found.split(".")[:2] == module.split(".")[:2] or found.rsplit(".", 1)[0] == module.rsplit(".", 1)[0]
        )
        assert layer(found) < layer(module) or (layer(found) == layer(module) and same_package), found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_third_parties_stay_where_they_belong(path):
    module = name_of(path)
    for found in sources.imports(path):
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
        "segpipe.channels",
        "segpipe.config",
        "segpipe.data",
        "segpipe.data.codecs",
        "segpipe.data.codecs.decoded",
        "segpipe.data.codecs.dicom",
        "segpipe.data.codecs.nifti",
        "segpipe.data.codecs.pictures",
        "segpipe.data.components",
        "segpipe.data.encodings",
        "segpipe.data.transform",
        "segpipe.data.volume",
        "segpipe.data.windows",
        "segpipe.errors",
        "segpipe.findings",
        "segpipe.inference",
        "segpipe.models",
        "segpipe.models.attention_unet",
        "segpipe.models.encoder_weights",
        "segpipe.models.group_norm",
        "segpipe.models.options",
        "segpipe.models.pruning",
        "segpipe.served_model",
        "segpipe.serving",
        "segpipe.serving.request",
    }


def test_a_closure_follows_imports_and_nothing_else():
    train = {name_of(path) for path in sources.closure(["steps.train"])}
    assert {"segpipe.engine", "segpipe.losses", "segpipe.data.augment"} <= train
    assert not {"segpipe.registry", "segpipe.evaluation", "steps.register", "steps.evaluate", "pipeline"} & train
    preprocess = {name_of(path) for path in sources.closure(["steps.preprocess"])}
    assert "segpipe.data.readers.folder" in preprocess
    evaluate = sources.closure(["steps.evaluate"])
    assert sources.PROJECT / "segpipe" / "report" / "template.html" in evaluate
