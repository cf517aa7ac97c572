"""Files that appear in a folder whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def merge(staging: Path, root: Path) -> None:
    """Move every file of `staging` to the same place under `root`, each atomically."""
    for path in sorted(p for p in staging.rglob("*") if p.is_file()):
        target = root / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A folder that is merged into `root` when the block ends well, and is gone in any case."""
    staging = root / f".partial-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        merge(staging, root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
