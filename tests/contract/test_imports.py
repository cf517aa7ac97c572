"""The import contract: which folder may import which, no circles, and which third party is confined to where."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segpipe.files.code_closure import Code
from segpipe.files.project import PROJECT

ORDER = (
    *(
        "errors",
        "config",
        "files",
        "runtime",
        "data",
        "metrics",
        "planning",
        "models",
        "inference",
        "plots",
        "evaluation",
    ),
    *(
        "tracking",
        "serving",
        "recording",
        "training",
        "federation",
        "registry",
        "server",
        "prediction",
        "orchestration",
    ),
)
CONFINED = {
    "click": ("steps", "pipeline"),
    "rich": ("steps.lineage_tree", "steps.terminal"),
    "mlflow": (
        *(f"segpipe.{name}" for name in ("tracking", "serving", "registry", "server", "orchestration")),
        *("segpipe.recording.logged_models", "segpipe.recording.spool"),
    ),
    "segmentation_models_pytorch": ("segpipe.models",),
    "timm": ("segpipe.models",),
    "accelerate": ("segpipe.runtime.process_group", "segpipe.training", "segpipe.federation"),
    "sqlalchemy": ("segpipe.tracking.connection",),
    "requests": ("segpipe.tracking.connection",),
    "psutil": ("segpipe.runtime.process_group", "segpipe.runtime.processes"),
    "nibabel": ("segpipe.data.codecs", "segpipe.data.phantom"),
    "pydicom": ("segpipe.data.codecs",),
    "PIL": ("segpipe.data.codecs", "segpipe.data.transform", "segpipe.plots", "segpipe.prediction"),
    "nilearn": ("segpipe.data.phantom",),
    "matplotlib": ("segpipe.plots",),
    "safetensors": ("segpipe.federation.messages", "segpipe.inference.predictor", "segpipe.models.encoder_weights"),
    "skimage": ("segpipe.data.transform", "segpipe.data.encodings", "segpipe.metrics.centreline"),
    "sklearn": ("segpipe.metrics.pixels", "segpipe.evaluation.report"),
    "jinja2": ("segpipe.evaluation.report",),
    "starlette": ("segpipe.server",),
    "uvicorn": ("segpipe.server",),
    "prometheus_client": ("segpipe.server",),
    "markdown_it": ("segpipe.server.page",),
}
CODE = Code()
FILES = sorted([PROJECT / "pipeline.py", *(PROJECT / "segpipe").rglob("*.py"), *(PROJECT / "steps").rglob("*.py")])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def place(module: str) -> int:
    """Where a module's folder stands in the order; commands come last."""
    parts = module.split(".")
    if parts[0] == "pipeline":
        return len(ORDER) + 1
    return len(ORDER) if parts[0] == "steps" else ORDER.index(parts[1])


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports, at the top or inside a function."""
    found = {name for name in CODE.source(path).imports if name.split(".")[0] in ("segpipe", "steps")}
    modules = {name for name in found if CODE.file(name) is not None}
    named = {module: {name for name in found if name.rpartition(".")[0] == module} for module in modules}
    only_parents = {module for module, names in named.items() if names and names <= modules}
    return modules - only_parents - {"segpipe", "steps"}  # `from package import module` is no import of the package


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_folder_imports_only_folders_before_it(path):
    module = name_of(path)
    if module in ("segpipe", "steps"):
        assert not imported(path)
        return
    for found in imported(path):
        assert place(found) <= place(module), found


def test_every_folder_stands_in_the_order_and_says_what_it_is_for():
    folders = {path.name for path in (PROJECT / "segpipe").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {"errors"} == set(ORDER)
    for folder in folders:
        said = ast.get_docstring(ast.parse((PROJECT / "segpipe" / folder / "__init__.py").read_text(encoding="utf-8")))
        assert said, folder


def test_the_readme_shows_the_folders_in_their_order():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("## What is where")[2].partition("segpipe/ ")[2].partition("tests/ ")[0]
    shown = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    assert shown == [folder for folder in ORDER if folder != "errors"]


def test_no_file_is_imported_by_what_it_imports():
    graph = {name_of(path): imported(path) for path in FILES}
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if module in above:
            yield (*above[above.index(module) :], module)
        elif module not in done:
            for found in graph.get(module, ()):
                yield from walk(found, (*above, module))
            done.add(module)

    assert [circle for module in graph for circle in walk(module, ())] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_third_parties_stay_where_they_belong(path):
    module = name_of(path)
    for found in CODE.source(path).imports:
        allowed = CONFINED.get(found.split(".")[0])
        assert allowed is None or any(module == a or module.startswith(a + ".") for a in allowed), found


@pytest.mark.parametrize(
    "command",
    [
        "import pipeline, segpipe.orchestration.chain, segpipe.registry.champions",
        "from steps.command import Config, preconditions; preconditions.check('train', Config())",
    ],
)
def test_the_driver_starts_without_torch(command):
    program = f"import sys; {command}; print(sorted({{'torch', 'matplotlib', 'nilearn'}} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_what_ships_inside_a_model_is_small():
    shipped = {name_of(path) for path in CODE.closure(["segpipe.serving.model_file"])}
    assert shipped == {
        *("segpipe", "segpipe.errors", "segpipe.config", "segpipe.config.sections"),
        *("segpipe.data", "segpipe.data.codecs", "segpipe.data.codecs.decoded", "segpipe.data.codecs.dicom"),
        *(
            "segpipe.data.codecs.geometry",
            "segpipe.data.codecs.nifti",
            "segpipe.data.codecs.pictures",
            "segpipe.data.codecs.stacks",
            "segpipe.data.components",
            "segpipe.data.context",
        ),
        *(
            "segpipe.data.encodings",
            "segpipe.data.profiles",
            "segpipe.data.transform",
            "segpipe.data.volume",
            "segpipe.data.windows",
        ),
        *("segpipe.models", "segpipe.models.architectures", "segpipe.models.attention_unet"),
        *("segpipe.models.encoder_weights", "segpipe.models.encoders", "segpipe.models.group_norm"),
        *("segpipe.models.pruning", "segpipe.inference", "segpipe.inference.input_assembly"),
        *("segpipe.inference.predictor", "segpipe.inference.quantities", "segpipe.inference.spec"),
        *("segpipe.runtime", "segpipe.runtime.devices"),
        *("segpipe.serving", "segpipe.serving.model_file", "segpipe.serving.request", "segpipe.serving.served_model"),
    }


def test_a_closure_follows_imports_and_nothing_else():
    train = {name_of(path) for path in CODE.closure(["segpipe.training.trainer"])}
    assert {"segpipe.training.engine", "segpipe.models.losses", "segpipe.data.augment"} <= train
    assert not {"segpipe.registry.champions", "segpipe.evaluation.measuring", "steps.register", "pipeline"} & train
    preprocess = {name_of(path) for path in CODE.closure(["segpipe.orchestration.preprocessing"])}
    assert "segpipe.data.readers.folder" in preprocess
    page = CODE.closure(["segpipe.evaluation.report.page"])
    assert PROJECT / "segpipe" / "evaluation" / "report" / "template.html" in page
