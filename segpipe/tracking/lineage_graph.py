"""Where a model comes from, as a graph: for a page, a picture, a table or JSON."""

import json
from dataclasses import asdict, dataclass, field

STATE = "state"
IN_PICTURE = {
    "version": ("test Dice", "aliases", "weights"),
    "decision": ("decision", "rule", "by"),
    "evaluate": ("result",),
    "train": ("result", "git commit", "tree"),
    "preprocess": ("dataset digest", "patients"),
    "raw": ("cases", "cases digest"),
}


@dataclass(frozen=True)
class Node:
    """One thing on the way from raw files to a model; `parents` are the IDs of what it was made from, without those
    that another parent was made from; `parts` those of a step's key.
    """

    id: str
    kind: str
    title: str
    facts: dict[str, str]
    parents: tuple[str, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`deleted` where only its name is known or its run is in the bin; otherwise empty."""
        return self.facts.get(STATE, "")

    def lines(self) -> list[tuple[str, str]]:
        """Its facts as label and value, the key's parts as one of them."""
        made_with = ", ".join(f"{part} {value}" for part, value in self.parts.items() if value)
        return [*self.facts.items(), *([("key of", made_with)] if made_with else [])]


@dataclass(frozen=True)
class Lineage:
    """The graph, beginning with what was asked for, and the SHA-256 of each raw case's files."""

    uri: str
    nodes: tuple[Node, ...]
    cases: dict[str, str]

    def node(self, name: str) -> Node:
        """A node by its ID."""
        return next(node for node in self.nodes if node.id == name)

    def first(self, kind: str) -> Node | None:
        """The first node of a kind, nearest to what was asked for."""
        return next((node for node in self.nodes if node.kind == kind), None)

    def to_json(self, files: bool = False, **more: object) -> str:
        """The graph as JSON, with every raw case where `files` is asked for."""
        raw = {"files": self.cases} if files else {}
        return json.dumps({"uri": self.uri, "nodes": [asdict(n) for n in self.nodes], **raw, **more}, indent=1)

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of everything known, for a table in a report."""
        return [
            row
            for node in self.nodes
            for row in [(node.kind, node.title), *((f"{node.kind}: {label}", value) for label, value in node.lines())]
        ]

    def picture(self) -> list[dict[str, object]]:
        """The graph for a drawing: id, a title and up to three short lines, parents."""
        return [{"id": node.id, "lines": _lines(node), "parents": list(node.parents)} for node in self.nodes]


def _lines(node: Node) -> list[str]:
    """A node in short: IDs cut to 8 digits, its result without a label."""
    labels = [label for label in (STATE, *IN_PICTURE.get(node.kind, ())) if label in node.facts]
    lines = [node.facts[label] if label == "result" else f"{label}: {node.facts[label]}" for label in labels]
    return [node.title.replace(node.id, node.id[:8]), *lines][:4]
