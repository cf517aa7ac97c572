"""The project's folder, its pinned requirements, and where what a command makes is kept."""

import os
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = PROJECT / "requirements.txt"
HOME = "SEGPIPE_HOME"
ONLY_IN_A_CHECKOUT = "pyproject.toml"


def home() -> Path:
    """Where the store, outputs and simulated data are kept unless something else is said: $SEGPIPE_HOME, which the
    command `segpipe` sets to the folder it is started in, else the checkout; without one the current folder.
    """
    checkout = PROJECT if (PROJECT / ONLY_IN_A_CHECKOUT).is_file() else Path.cwd()
    return Path(os.environ.get(HOME) or checkout)


def called(command: str) -> str:
    """How an entry point is started, in the way that the one at work was: `segpipe serve`, `python -m steps.serve`; for
    the chain, named `pipeline`: `segpipe run`, `python pipeline.py`.
    """
    if os.environ.get(HOME):
        return "segpipe run" if command == "pipeline" else f"segpipe {command}"
    return "python pipeline.py" if command == "pipeline" else f"python -m steps.{command}"


def pins() -> list[str]:
    """The lines of requirements.txt that pin something, with their markers."""
    return [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line[:1].strip(" #")]


def requirements() -> dict[str, str]:
    """Every pinned package and its version."""
    return {pin[1]: pin[2] for line in pins() if (pin := re.match(r"([A-Za-z0-9._\[\]-]+)==(\S+)", line))}
