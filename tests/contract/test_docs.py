"""What the pages name exists: folders, files, functions and links."""

import ast
import json
import re
from pathlib import Path

import pytest
import readme_pictures
from test_imports import FILES, ORDER

from segpipe.config import settings
from segpipe.files.project import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
ARCHITECTURE = (PROJECT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", ARCHITECTURE)
FOLDERS = ("segpipe/", "steps/", "tests/", "docs/")


def defined(path: Path) -> set[str]:
    """`module.name` and `Class.method` for what a file defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = path.parent.name if path.stem == "__init__" else path.stem
    scopes = [(module, tree.body), *((node.name, node.body) for node in tree.body if isinstance(node, ast.ClassDef))]
    found = set()
    for scope, body in scopes:
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            names = (getattr(target, "id", getattr(target, "name", None)) for target in targets)
            found |= {f"{scope}.{name}" for name in names}
    return found


def test_architecture_has_a_row_for_every_folder_in_the_order_of_imports():
    rows = re.findall(r"^\| `segpipe/(\w+)(?:/|\.py)` \|", ARCHITECTURE, re.MULTILINE)
    assert rows == list(ORDER)


def test_architecture_names_paths_that_exist():
    paths = [text for text in CODE if text.startswith(FOLDERS) or text.endswith(".py")]
    assert len(paths) > 40
    assert [path for path in paths if not (PROJECT / path).exists()] == []


def test_architecture_names_functions_that_exist():
    dotted = [text for text in CODE if re.fullmatch(r"\w+\.[A-Za-z]\w+", text) and not text.endswith(".py")]
    assert len(dotted) > 40
    known = set().union(*map(defined, FILES), settings.knobs())
    assert [name for name in dotted if name not in known] == []


def test_architecture_marks_as_later_only_what_is_not_there_yet():
    later = re.findall(r"folder `(\w+)` \(later\)", ARCHITECTURE)
    assert later == ["tasks"]
    assert not any((PROJECT / "segpipe" / name).exists() for name in later)


def test_the_index_of_decisions_has_a_row_for_each_and_says_what_replaced_it():
    rows = []
    for record in sorted((PROJECT / "docs" / "decisions").glob("[0-9]*.md")):
        text = record.read_text(encoding="utf-8")
        title = re.match(r"# \d+\. (.+)", text)
        replaced = re.search(r"^\*\*Replaced( in part)?\*\* by (\[\d{4}\]\([^)]+\))", text, re.MULTILINE)
        assert title is not None, record
        status = f"replaced{replaced[1] or ''} by {replaced[2]} " if replaced else ""
        rows.append(f"| [{record.name[:4]}]({record.name}) | {title[1]} | {status}|")
    index = (PROJECT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in index if line.startswith("| [")] == rows


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_links_lead_to_files_and_headings(page: Path):
    links = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8"))
    targets = [((page.parent / path if path else page), anchor) for path, anchor in links]
    assert [target for target, _ in targets if not target.exists()] == []
    assert [anchor for target, anchor in targets if anchor and anchor not in anchors(target)] == []


def test_the_readme_s_pictures_are_current():
    kept = json.loads((readme_pictures.FOLDER / readme_pictures.MADE_OF).read_text(encoding="utf-8"))
    now = readme_pictures.made_of()
    changed = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
    assert changed == [], "after make demo: python -m tests.readme_pictures"
