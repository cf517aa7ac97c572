"""The result of a batch of predictions: as numbers, as JSON and as Markdown."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.config.sections import EvaluateConfig
from segpipe.metrics import statistics
from segpipe.prediction import results
from segpipe.prediction.results import Record, Request

NOTE = "Research software: not a medical device, not for clinical use."
LEARNT = ("train", "val")  # splits that a model was trained or chosen on
SHOWN = 20  # failures in the Markdown summary; the JSON has all


@dataclass
class Outcome:
    """Cases asked for, done before this run, and failed with their reasons; how many the model was trained or chosen
    on, and how many are unlike its training data; the Dice of those with a reference (NaN where both masks are empty),
    their patients, and whether they are among the ones trained on; how long this run took.
    """

    files: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    trained_on: int = 0
    unlike: int = 0
    seconds: float = 0.0

    def count(self, record: Record) -> None:
        """Add one case."""
        self.files += 1
        self.skipped += bool(record.get("done"))
        if record["status"] == "failed":
            self.failures.append((record["case"], record["error"]))
            return
        seen = record.get("split") in LEARNT
        self.trained_on += seen
        self.unlike += bool(record.get("unlike"))
        if record["reference"] is not None:
            self.seen.append(seen)
            self.dice.append(float("nan") if record["dice"] is None else record["dice"])
            self.patients.append(record["patient"])

    @property
    def per_second(self) -> float:
        """Files this run has worked on, a second."""
        return (self.files - self.skipped) / self.seconds if self.seconds else 0.0

    def metrics(self) -> dict[str, float]:
        """The metrics of the run."""
        return {
            "duration_seconds": self.seconds,
            "files": self.files,
            "files_failed": len(self.failures),
            "files_skipped": self.skipped,
            "files_per_second": self.per_second,
            "files_trained_on": self.trained_on,
            "files_unlike": self.unlike,
        }


def headline(outcome: Outcome) -> str:
    """The run as one phrase."""
    before = f"{outcome.skipped} of them before, " if outcome.skipped else ""
    done = outcome.files - len(outcome.failures)
    trained = f", the model was trained on {outcome.trained_on} of them" if outcome.trained_on else ""
    strange = (
        f", {outcome.unlike} unlike its training data (see the warnings in {results.TABLE})" if outcome.unlike else ""
    )
    return f"{done} of {outcome.files} segmented, {before}{outcome.per_second:.1f} files/s{trained}{strange}"


def agreement(outcome: Outcome) -> str:
    """The mean Dice of cases with a reference, and apart from those that the model was trained on; empty for none."""
    known = [(dice, seen) for dice, seen in zip(outcome.dice, outcome.seen, strict=True) if not math.isnan(dice)]
    if not known:
        return ""
    trained, others = ([dice for dice, seen in known if seen is among] for among in (True, False))
    told = f"Dice {sum(dice for dice, _ in known) / len(known):.3f} over {len(known)} cases"
    if not trained:
        return told
    rest = f"{sum(others) / len(others):.3f} over the others" if others else "there is no other"
    return f"{told}, {len(trained)} of them trained on; {rest}"


def summarise(
    outcome: Outcome,
    folder: Path,
    request: Request,
    model: dict[str, str],
    device: str,
    knobs: EvaluateConfig,
    seed: int,
) -> None:
    """Write summary.json and summary.md; `model` says which it is, `knobs` how often the Dice is resampled."""
    interval = statistics.bootstrap_mean(outcome.dice, outcome.patients, knobs.bootstrap_samples, seed)
    content: dict[str, Any] = {
        "model": model,
        "parameters": request.model_dump(mode="json"),
        **outcome.metrics(),
        "device": device,
        "dice": interval._asdict() if interval.n_valid else None,
        "references": len(outcome.dice),
        "agreement": agreement(outcome) or None,
        "failures": [{"case": case, "error": error} for case, error in outcome.failures],
        "note": NOTE,
    }
    results.write(folder / results.SUMMARY, json.dumps(content, indent=1, ensure_ascii=False).encode())
    results.write(folder / results.REPORT, _markdown(outcome, request, model, device, interval).encode())


def _markdown(
    outcome: Outcome, request: Request, model: dict[str, str], device: str, interval: statistics.Interval
) -> str:
    rows = {
        **{name.replace("_", " "): value for name, value in model.items()},
        **{name.replace("_", " "): str(value) for name, value in request.model_dump().items() if name not in model},
        "device": device,
        "files": f"{outcome.files}: {outcome.files - len(outcome.failures)} segmented, {len(outcome.failures)} failed",
        "done before this run": str(outcome.skipped),
        "seconds": f"{outcome.seconds:.1f}, {outcome.per_second:.2f} files/s",
        "trained on": f"{outcome.trained_on} of the files",
        "unlike the training data": f"{outcome.unlike} of the files",
        "Dice": _dice(outcome, interval),
        **({"Dice apart": agreement(outcome)} if any(outcome.seen) else {}),
    }
    lines = ["# Predictions", "", NOTE, "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    if outcome.failures:
        lines += ["", "## Failed", "", "| case | reason |", "|---|---|"]
        lines += [f"| {_cell(case)} | {_cell(error)} |" for case, error in outcome.failures[:SHOWN]]
    if len(outcome.failures) > SHOWN:
        lines += ["", f"and {len(outcome.failures) - SHOWN} more: {results.TABLE} has all."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _dice(outcome: Outcome, interval: statistics.Interval) -> str:
    if not outcome.dice:
        return "no references"
    if not interval.n_valid:
        return f"{interval.n} references; in none is anything, found or real"
    mean = f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{mean} (mean, 95 % bootstrap interval over patients), {interval.n_valid} of {interval.n} references"
