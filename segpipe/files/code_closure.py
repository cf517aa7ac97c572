"""Which of the project's own files a module can import, and a digest over them.

The same closure decides whether a step's code changed, what ships inside a model, and what the import contract checks.
"""

import ast
import threading
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

from segpipe.files.project import PROJECT

PACKAGES = ("segpipe", "steps")
PYTHON = (".py", ".pyc")
_parsing = threading.Lock()  # two threads at once in ast.parse: "recursion depth mismatch" in Python 3.11


def module_file(name: str) -> Path | None:
    """The file of a project module such as `segpipe.data.cache`; None where there is no such module."""
    base = PROJECT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imports(path: Path) -> frozenset[str]:
    """Every module a file imports, at the top or inside a function but not for annotations alone, by full name."""
    return _imported(path.read_text(encoding="utf-8"))


@cache
def _imported(source: str) -> frozenset[str]:
    with _parsing:
        tree = ast.parse(source)
    found: set[str] = set()
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements with those inside them, in order; what stands under `if TYPE_CHECKING` is left out."""
    for node in body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, block, ()))


def closure(modules: Iterable[str], without: Collection[str] = ()) -> list[Path]:
    """The project files reachable from `modules` through imports, packages' `__init__` included, sorted; to a package
    belongs what lies beside its `__init__` and is no Python, such as a template. The modules `without` are no way.
    """
    waiting, seen = list(modules), set()
    while waiting:
        name = waiting.pop()
        path = module_file(name)
        if path is None or path in seen or name in without:
            continue
        seen.add(path)
        if path.name == "__init__.py":
            seen.update(other for other in path.parent.iterdir() if other.is_file() and other.suffix not in PYTHON)
        parts = name.split(".")
        waiting.extend(".".join(parts[:n]) for n in range(1, len(parts)))
        waiting.extend(found for found in imports(path) if found.split(".")[0] in PACKAGES)
    return sorted(seen)
