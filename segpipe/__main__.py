"""The installed command `segpipe`, and `python -m segpipe`: what `steps/cli.py` does."""

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the command line, with the project's folder first on Python's path: `steps` is a common name."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import_module("steps").start_quietly()
    import_module("steps.cli").main()


if __name__ == "__main__":
    main()
