"""The project's folder and its pinned requirements."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = PROJECT / "requirements.txt"


def requirements() -> dict[str, str]:
    """Every pinned package and its version."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return {pin[1]: pin[2] for line in lines if (pin := re.match(r"([A-Za-z0-9._\[\]-]+)==(\S+)", line))}
