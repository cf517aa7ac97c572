"""No module remembers anything, or does anything when it is imported: what a process remembers is one object that a
command makes and passes on.
"""

import ast
from collections.abc import Iterator

import pytest

from segpipe.files.project import PROJECT

FILES = sorted([PROJECT / "pipeline.py", *(PROJECT / "segpipe").rglob("*.py"), *(PROJECT / "steps").rglob("*.py")])
MUTATING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "put"),
    *("remove", "reverse", "setdefault", "sort", "update", "acquire", "set"),
}
# What holds state of its own, or starts something, when it is called for a module's constant.
HOLDERS = {
    *("local", "Lock", "RLock", "Event", "Condition", "Semaphore", "Queue", "SimpleQueue", "ThreadPoolExecutor"),
    *("deque", "defaultdict", "Counter", "OrderedDict", "WeakValueDictionary", "list", "dict", "set", "ContextVar"),
    *("count", "Random", "default_rng", "setdefault", "getenv", "MlflowClient", "Session", "Store", "Console"),
}
CACHES = {"cache", "lru_cache", "cached_property"}
EFFECTS = {  # how many, and why
    "segpipe/data/codecs/dicom.py": (3, "settings of a process; to change them per file is not safe in threads"),
    "segpipe/data/codecs/pictures.py": (1, "settings of a process; to change them per file is not safe in threads"),
    "segpipe/plots/__init__.py": (2, "matplotlib reads them for each text, whoever draws it"),
    "segpipe/serving/model_file.py": (1, "MLflow runs this file to load a model, and asks for this call"),
}
CACHED = {  # what can't go stale while a process lives
    "segpipe/evaluation/report/page.py": "environment: templates that ship with the code",
    "segpipe/plots/style.py": "_drawable: whether the font that ships with matplotlib has a character",
    "segpipe/prediction/comparisons.py": "_font, _palette: constants that take a while to make",
    "segpipe/runtime/processes.py": "host: the machine that the process runs on",
    "segpipe/tracking/artifacts.py": "_model: a logged model never changes, and its copy lives as long as the process",
}


def name_of(path):
    return path.relative_to(PROJECT).as_posix()


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those of its classes included."""
    for node in body:
        yield node
        if isinstance(node, ast.ClassDef):
            yield from at_import(node.body)
        elif isinstance(node, ast.If) and ast.unparse(node.test) not in ("TYPE_CHECKING", "__name__ == '__main__'"):
            yield from at_import([*node.body, *node.orelse])


def called(node: ast.expr) -> str:
    """The last part of the name of what is called or decorates."""
    function = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(function).rpartition(".")[2]


def effects(tree: ast.Module) -> Iterator[str]:
    """What a module does when it is imported, beyond naming things."""
    for node in at_import(tree.body):
        match node:
            case ast.Expr(ast.Constant()) | ast.Pass() | ast.Import() | ast.ImportFrom() | ast.If():
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield from (ast.unparse(d) for d in node.decorator_list if called(d) in ("register", "listens_for"))
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if not all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                    yield ast.unparse(node)
                calls = [call for call in ast.walk(node.value or ast.Constant(0)) if isinstance(call, ast.Call)]
                yield from (ast.unparse(node) for call in calls if called(call) in HOLDERS)
                yield from (
                    ast.unparse(node) for call in calls if ast.unparse(call.func).startswith(("mlflow.", "os.env"))
                )
            case _:
                yield ast.unparse(node)


def caches(tree: ast.Module) -> Iterator[str]:
    """Functions whose answers a module remembers."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    yield from (node.name for node in functions if any(called(d) in CACHES for d in node.decorator_list))


def changes(tree: ast.Module) -> Iterator[str]:
    """Where a module changes what has a name in it."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    names = {name.id for node in assigned for name in ast.walk(node) if isinstance(name, ast.Name) and is_target(name)}
    names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        match node:
            case ast.Global():
                yield ast.unparse(node)
            case ast.Call(ast.Attribute(ast.Name(name), method)) if name in names and method in MUTATING:
                yield ast.unparse(node)
            case ast.Subscript(ast.Name(name)) | ast.Attribute(ast.Name(name)) if name in names and is_target(node):
                yield ast.unparse(node)
            case ast.AugAssign(ast.Name(name)) if name in names and not is_local(tree, node, name):
                yield ast.unparse(node)


def is_target(node: ast.Name | ast.Subscript | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def is_local(tree: ast.Module, node: ast.AST, name: str) -> bool:
    """Whether a name in a function is the function's own."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and node in ast.walk(function):
            return any(isinstance(n, ast.Name) and n.id == name and is_target(n) for n in ast.walk(function))
    return False


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_has_no_state_and_does_nothing_when_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed, _ = EFFECTS.get(name_of(path), (0, ""))
    assert len(found := [*effects(tree)]) == allowed, found
    assert [*changes(tree)] == []
    named = CACHED.get(name_of(path), "").partition(":")[0]
    assert ", ".join(caches(tree)) == named


def test_every_exception_is_a_module():
    assert set(EFFECTS) | set(CACHED) <= {name_of(path) for path in FILES}


@pytest.mark.parametrize(
    "fault",
    [
        "import os\nos.environ.setdefault('X', '1')",
        "import os\nos.environ['X'] = '1'",
        "import os\nX = int(os.environ.setdefault('X', '1'))",
        "import logging\nlogging.basicConfig()",
        "import mlflow\nCLIENT = mlflow.MlflowClient()",
        "import mlflow\nmlflow.set_tracking_uri('x')",
        "import signal\nif True:\n    signal.signal(2, print)",
        "import atexit\n@atexit.register\ndef end(): ...",
        "import threading\nLOCK = threading.Lock()",
        "from collections import defaultdict\nclass A:\n    known = defaultdict(list)",
        "_held = {}\ndef hold(x):\n    _held[x] = 1",
        "_held = []\ndef hold(x):\n    _held.append(x)",
        "_held = []\ndef hold(x):\n    _held[:] = [x]",
        "_held = {}\ndef drop(x):\n    del _held[x]",
        "_patience = 1\ndef wait(x):\n    global _patience\n    _patience = x",
        "class A: ...\ndef remember(x):\n    A.last = x",
        "for name in ('a', 'b'):\n    print(name)",
    ],
)
def test_a_planted_fault_is_found(fault):
    tree = ast.parse(fault)
    assert [*effects(tree), *changes(tree)]


def test_a_planted_cache_is_found():
    tree = ast.parse(
        "import functools\n@functools.lru_cache(maxsize=1)\ndef known(): ...\nX = {'a': 1}\ndef look(): return X['a']"
    )
    assert [*caches(tree)] == ["known"]
    assert [*effects(tree), *changes(tree)] == []
