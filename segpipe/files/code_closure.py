"""Which of the project's own files a module can import, and what in them can change a result.

The same closure decides whether a step's code changed, what ships inside a model, and what the import contract checks.
"""

import ast
import hashlib
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from segpipe.files import hashes
from segpipe.files.project import PROJECT

PACKAGES = ("segpipe", "steps")
PYTHON = (".py", ".pyc", ".typed")


class Source(NamedTuple):
    """What a source file imports, by full name, and the SHA-256 (64 hex digits) of what it does, without comments,
    docstrings, descriptions of fields and texts of errors.
    """

    imports: frozenset[str]
    meaning: str


class Code:
    """The source files below a project folder, each parsed once. Thread-safe."""

    def __init__(self, project: Path = PROJECT) -> None:
        self.project = project
        self._parsed: dict[Path, Source] = {}
        self._lock = threading.Lock()  # ast.parse in two threads at once: "recursion depth mismatch" in Python 3.11

    def file(self, module: str) -> Path | None:
        """The file of a module such as `segpipe.data.batches`; None where there is no such module."""
        base = self.project.joinpath(*module.split("."))
        candidates = (base.with_suffix(".py"), base / "__init__.py")
        return next((path for path in candidates if path.is_file()), None)

    def source(self, path: Path) -> Source:
        """A file's imports and meaning."""
        with self._lock:
            if path not in self._parsed:
                self._parsed[path] = read(path.read_text(encoding="utf-8"))
            return self._parsed[path]

    def closure(self, modules: Iterable[str], without: Collection[str] = ()) -> list[Path]:
        """The files reachable from `modules` through imports, sorted. A package counts with its `__init__` and the
        files beside it that are not Python, such as a template. Modules `without`, and those below them, are left out
        with what only they import.
        """
        waiting, seen = list(modules), set[Path]()
        while waiting:
            name = waiting.pop()
            path = self.file(name)
            if path is None or path in seen or any(name == w or name.startswith(f"{w}.") for w in without):
                continue
            seen.add(path)
            if path.name == "__init__.py":
                seen.update(p for p in path.parent.iterdir() if p.is_file() and p.suffix not in PYTHON)
            parts = name.split(".")
            waiting.extend(".".join(parts[:n]) for n in range(1, len(parts)))
            waiting.extend(found for found in self.source(path).imports if found.split(".")[0] in PACKAGES)
        return sorted(seen)

    def meanings(self, paths: Iterable[Path]) -> dict[str, str]:
        """Each Python file's `Source.meaning`, by its path below the project; of other files the SHA-256."""
        return {
            path.relative_to(self.project).as_posix(): self.source(path).meaning
            if path.suffix == ".py"
            else hashes.sha256(path)
            for path in paths
        }


def read(text: str) -> Source:
    """Parse a source file."""
    tree = ast.parse(text)
    return Source(_imports(tree), hashlib.sha256("\0".join(_words(tree)).encode()).hexdigest())


def _imports(tree: ast.Module) -> frozenset[str]:
    """Every module that is imported, at the top or inside a function, except for annotations only."""
    found: set[str] = set()
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements and the statements inside them, in order, without those under `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, block, ()))


def _words(node: object) -> Iterator[str]:
    """What a piece of syntax does, word by word."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if docstring or (isinstance(node, ast.keyword) and node.arg == "description"):
        return
    if isinstance(node, list):
        yield "["
        for item in node:
            yield from _words(item)
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error")
        for field in ("func",) if error else node._fields:
            yield from _words(getattr(node, field))
    else:
        yield repr(node)
