"""What others script against, as text: every knob and every command's own options. Renewed on purpose, with

python -m tests.contract.surface > tests/contract/surface.txt
"""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.files.project import PROJECT

KEPT = Path(__file__).with_suffix(".txt")
WORDS = ("title", "description", "default")


def text() -> str:
    """One line for each knob (name, default, JSON schema) and for each command's own option or argument."""
    return "\n".join([*knobs(), "", *(line for name, command in commands() for line in options(name, command)), ""])


def knobs() -> Iterator[str]:
    schema = Config.model_json_schema()
    for name, knob in settings.knobs().items():
        section, _, key = name.partition(".")
        field = schema["properties"][section]
        if key:
            field = schema["$defs"][field["$ref"].rpartition("/")[2]]["properties"][key]
        kind = {word: value for word, value in field.items() if word not in WORDS}
        yield f"{name}={knob.default}  {json.dumps(kind, sort_keys=True)}"


def commands() -> Iterator[tuple[str, click.Command]]:
    yield "pipeline.py", import_module("pipeline").command()
    for path in sorted((PROJECT / "steps").glob("*.py")):
        command = getattr(import_module(f"steps.{path.stem}"), "main", None)
        if isinstance(command, click.Command):
            yield f"steps.{path.stem}", command


def options(name: str, command: click.Command) -> Iterator[str]:
    knobs = {f"--{knob}" for knob in settings.knobs()}
    given = {opt for param in command.params for opt in param.opts}
    yield f"{name}: {'every knob' if knobs <= given else 'no knobs'}"
    for param in command.params:
        if not knobs & {*param.opts}:
            yield f"  {_line(param.to_info_dict())}"


def _line(param: dict[str, Any]) -> str:
    kind, default = param["type"], param.get("default")
    values = "|".join(kind["choices"]) if "choices" in kind else kind["name"]
    limits = [f"{end} {kind[end]}" for end in ("min", "max") if kind.get(end) is not None]
    known = [f"default {default}"] if default and isinstance(default, str | float) else []
    parts = ["flag" if param.get("is_flag") else values, *limits, *known, *["required"] * param["required"]]
    return f"{'/'.join(param['opts'])}: {', '.join(parts)}"


if __name__ == "__main__":
    sys.stdout.write(text())
