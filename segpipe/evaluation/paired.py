"""The tables of two models, a challenger and the champion, side by side on the champion's cases."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from segpipe.config.sections import GateConfig
from segpipe.errors import InputError
from segpipe.metrics import statistics
from segpipe.metrics.catalogue import METRICS
from segpipe.metrics.statistics import Difference

LESIONS = ("lesions", "lesions_found", "lesions_predicted", "lesions_false")
ELONGATION = "elongation"


class Shared(NamedTuple):
    """The rows of both tables for the champion's cases, in the same order; the number of resamples and the seed."""

    ours: pd.DataFrame
    theirs: pd.DataFrame
    samples: int
    seed: int

    def sides(self, metric: str) -> tuple["pd.Series[float]", "pd.Series[float]"]:
        """Both models' values of a metric, signed so that higher is better. If the reference is empty and only one
        model has a false alarm, the correct empty prediction has no value by the convention: it counts as the metric's
        best value.
        """
        ours, theirs = self.ours[metric], self.theirs[metric]
        one_silent = (self.ours["reference_voxels"] == 0) & (ours.isna() != theirs.isna())
        best, sign = METRICS[metric].best, 1 if METRICS[metric].higher else -1
        return sign * ours.mask(one_silent & ours.isna(), best), sign * theirs.mask(one_silent & theirs.isna(), best)

    def difference(self, metric: str, margin: float = 0.0) -> Difference:
        """The challenger's gain over the champion; positive is better."""
        return statistics.paired(*self.sides(metric), self.ours["patient"], self.samples, self.seed, margin)

    def groups(self, column: str) -> list[tuple[str, "Shared"]]:
        """The cases of each value of a column, sorted."""
        rows = self.ours.groupby(column, sort=True).indices
        return [(str(v), self._replace(ours=self.ours.iloc[r], theirs=self.theirs.iloc[r])) for v, r in rows.items()]


def match(
    challenger: pd.DataFrame,
    champion: pd.DataFrame,
    gate: GateConfig,
    samples: int,
    seed: int,
    subgroups: Sequence[str],
) -> Shared:
    """The rows of the champion's cases in both tables. Raises InputError as `gate.decide` does."""
    guard = (gate.guard,) if gate.rule == "non_inferiority" else ()
    columns = ("case", gate.metric, *guard, *LESIONS)
    check_columns(challenger, (*columns, ELONGATION), "challenger")
    check_columns(champion, columns, "champion")
    unknown = [column for column in subgroups if column not in challenger]
    if unknown:
        raise InputError(f"evaluate.subgroups names {', '.join(unknown)}, but the test cases have no such column")
    if not set(champion["case"]) <= set(challenger["case"]):
        raise InputError("challenger and champion were measured on different cases; evaluate both on one dataset")
    theirs = champion.set_index("case")
    return Shared(challenger.set_index("case").loc[theirs.index], theirs, samples, seed)


def check_columns(cases: pd.DataFrame, columns: Sequence[str], whose: str) -> None:
    """Raise InputError where a table lacks a column."""
    missing = [column for column in dict.fromkeys(columns) if column not in cases]
    if missing:
        raise InputError(f"the {whose}'s table of test cases has no column {', '.join(missing)}; evaluate it again")
