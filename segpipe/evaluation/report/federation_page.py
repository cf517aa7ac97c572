"""What trainings at several sites are worth at each of them, as one page that stands alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.evaluation.report.page import environment, uri

if TYPE_CHECKING:
    import pandas as pd

FILE = "report.html"
METRICS = ("dice", "precision", "recall", "hd95", "lesion_recall")


def write(
    board: "pd.DataFrame", rounds: "pd.DataFrame", best: str, cases: "pd.DataFrame", folder: Path, pictures: list[str]
) -> None:
    """Write report.html into a folder that has the pictures named. `board` has one row per model and site (model, site,
    dice, dice_ci_low, dice_ci_high, group, cases, patients), `rounds` one per model, round and site (model, round,
    site, failed, bytes_up, bytes_down, seconds); `cases` are the test cases of the `best` federation.
    """
    sites = list(board["site"].unique())
    models: dict[str, dict[str, Any]] = {name: {} for name in board["model"].unique()}
    for row in board.to_dict("records"):
        models[row["model"]][row["site"]] = row
    worth = {site: board.loc[board["site"] == site, "dice"].max() for site in sites}
    text = (
        environment()
        .get_template("federation.html")
        .render(
            best=best,
            sites=sites,
            models=models,
            worth=worth,
            sizes={row["site"]: row for row in board[board["model"] == best].to_dict("records")},
            by_site=cases.groupby("site")[list(METRICS)].mean().to_dict("index"),
            metrics=METRICS,
            traffic=_traffic(rounds),
            failures=rounds[rounds["failed"].fillna("") != ""].to_dict("records"),
            pictures=[uri("png", (folder / name).read_bytes()) for name in pictures],
        )
    )
    (folder / FILE).write_text(text, encoding="utf-8")


def _traffic(rounds: "pd.DataFrame") -> list[dict[str, Any]]:
    """For each model its rounds, megabytes to and from a site in one of them, and seconds at the slowest site."""
    found = []
    for model, rows in rounds.groupby("model", sort=False):
        done = rows[rows["bytes_up"] > 0]
        found.append({
            "model": model,
            "rounds": int(rows["round"].nunique()),
            "down": done["bytes_down"].mean() / 1e6,
            "up": done["bytes_up"].mean() / 1e6,
            "seconds": rows.groupby("round")["seconds"].max().median(),
            "failed": int((rows["failed"].fillna("") != "").sum()),
        })  # fmt: skip
    return found
