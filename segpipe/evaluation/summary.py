"""The figures of an evaluation: what `summary.json` holds."""

import json
from pathlib import Path
from typing import Self

from segpipe.config.sections import Section
from segpipe.errors import InputError, one_line
from segpipe.metrics.statistics import Interval

FILE = "summary.json"


class Summary(Section):
    """Means with confidence intervals over patients, counts of outcomes, lesions and voxels of the band, how
    probabilities become labels and where that comes from, what the model costs, and how all of it was computed.
    """

    metrics: dict[str, Interval]
    outcomes: dict[str, int]
    patients: int
    lesions: dict[str, int]
    confusion: dict[str, int]
    threshold: float
    threshold_from: str
    latency_ms: float
    interval: str
    convention: str
    weights_sha256: str
    size_mb: float
    tta: bool = False
    largest_component: bool = False
    min_area: int = 0
    labelling_from: tuple[str, ...] = ()
    precision: str = "fp32"

    def write(self, folder: Path) -> None:
        """Write summary.json."""
        values = self.model_dump() | {"metrics": {name: found._asdict() for name, found in self.metrics.items()}}
        (folder / FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` wrote, now or in version 0.5.0. Raises InputError where there is none, or it is another's."""
        try:
            return cls.model_validate(json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / FILE}: no summary of an evaluation ({one_line(error)})") from None

    def headline(self) -> str:
        """The test Dice with its interval, as one phrase."""
        if "dice" not in self.metrics:
            return "no test case has any foreground"
        dice = self.metrics["dice"]
        valid = f"{dice.n_valid} of {dice.n} cases"
        return f"test Dice {dice.mean:.3f} [{dice.low:.3f}, {dice.high:.3f}], {valid}"
