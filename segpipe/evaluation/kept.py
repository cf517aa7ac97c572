"""What an evaluation keeps: tables, summary, and what its pages need beyond them, so that no page needs the model."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segpipe.errors import InputError
from segpipe.evaluation.measuring import Measurement, Table
from segpipe.evaluation.summary import Summary
from segpipe.evaluation.suspects import Suspects

CASES, LESIONS, LOOK_FIRST, ARRAYS = "cases.csv", "lesions.csv", "look_first.csv", "measured.npz"
MEASURED = ("labels", "test_dice", "band", "whole", "embeddings")  # fields of a Measurement
MASK, FIRST = "mask.", "first."  # what the names in ARRAYS begin with: of masks by rank, and of those to look at first


class Kept(NamedTuple):
    """One evaluation: what was measured, its summary, the mean Dice of the validation set at each threshold, the
    predicted labels D,H,W uint8 of the cases to look at, by rank, and the validation cases whose masks are to be looked
    at first, None where an earlier version evaluated or there is no such case.
    """

    found: Measurement
    summary: Summary
    val_dice: Table
    masks: dict[str, NDArray[np.uint8]]
    look_first: Suspects | None = None

    def write(self, folder: Path) -> None:
        """Write cases.csv, lesions.csv, look_first.csv if there is one, measured.npz and, last, summary.json."""
        found = self.found
        found.cases.to_csv(folder / CASES, index=False)
        found.lesions.to_csv(folder / LESIONS, index=False)
        arrays: dict[str, Any] = {MASK + rank: mask for rank, mask in self.masks.items()}
        if self.look_first is not None:
            self.look_first.table.to_csv(folder / LOOK_FIRST, index=False)
            arrays |= {f"{FIRST}{place}": labels for place, labels in enumerate(self.look_first.labels)}
        arrays |= {name: getattr(found, name) for name in MEASURED} | {"val_dice": self.val_dice}
        np.savez_compressed(folder / ARRAYS, **arrays)
        self.summary.write(folder)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` wrote. Raises InputError where a part is missing or damaged."""
        summary = Summary.read(folder)
        try:
            cases, lesions = table(folder / CASES), table(folder / LESIONS, after="class")
            with np.load(folder / ARRAYS, allow_pickle=False) as stored:
                arrays = dict(stored)
            masks = {name.removeprefix(MASK): arrays.pop(name) for name in list(arrays) if name.startswith(MASK)}
            first = tuple(arrays.pop(name) for name in list(arrays) if name.startswith(FIRST))
            listed = first or (folder / LOOK_FIRST).is_file()
            look_first = Suspects(table(folder / LOOK_FIRST, after="patient"), first) if listed else None
            val_dice = arrays.pop("val_dice")
            found = Measurement(cases, lesions, confusion=summary.confusion, latency_ms=summary.latency_ms, **arrays)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{folder}: not what evaluate keeps ({error}); run evaluate again") from None
        return cls(found, summary, val_dice, masks, look_first)


def table(path: Path, after: str = "size") -> pd.DataFrame:
    """A table of cases or lesions: numbers behind the column `after`, before it text, whatever it looks like."""
    read = pd.read_csv(path, dtype=str, keep_default_na=False)
    numbers = read.columns[list(read).index(after) + 1 :]
    read[numbers] = read[numbers].apply(pd.to_numeric)
    return read
