"""A lineage on a terminal."""

from rich.text import Text
from rich.tree import Tree

from segpipe.tracking.lineage_graph import Lineage, Node
from steps import terminal


def show(found: Lineage, files: bool) -> None:
    """Print a lineage as a tree."""
    terminal.console().print(draw(found, files))


def draw(found: Lineage, files: bool = False) -> Tree:
    """The lineage as a tree for a terminal, what it was made from below each thing."""
    shown: set[str] = set()

    def grow(below: Tree, node: Node) -> None:
        branch = below.add(Text(node.title, "bold"))
        if node.id in shown:
            branch.add("as above")
            return
        shown.add(node.id)
        for label, value in node.lines():
            branch.add(Text(f"{label}: {value}"))
        if node.kind == "raw" and files:
            for case, digest in found.cases.items():
                branch.add(Text(f"{case} {digest}"))
        for parent in node.parents:
            grow(branch, found.node(parent))

    root = Tree(Text(found.uri))
    grow(root, found.nodes[0])
    return root
