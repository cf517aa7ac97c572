"""Train every combination of architectures, encoders, initial weights and seeds on one dataset, and rank them."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.errors import InputError, SegpipeError, StepError
from segpipe.orchestration import chain, driver, plan
from segpipe.orchestration.launch import Launcher
from segpipe.orchestration.plan import Asked
from segpipe.orchestration.screen import Column, Screen, Table
from segpipe.orchestration.session import Session

if TYPE_CHECKING:
    import pandas as pd

BAR = 20
AFTERWARDS = {"promote": ("evaluate", "register"), "evaluate": ("evaluate",), "stop": ()}
ALPHA = 0.05
COLUMNS = (
    "model", "group", "val_dice", "val_dice_ci_low", "val_dice_ci_high", "best_epoch", "seconds_per_epoch",
    "parameters", "inference_ms", "status", "run",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Member:
    """One model to compare; `recipe` is where its config is among the artifacts of the comparison."""

    name: str
    config: Config
    recipe: str


Outcomes = dict[Member, chain.Result | SegpipeError]


def members(config: Config) -> list[Member]:
    """Every combination, named by what differs."""
    asked = config.compare
    encoders = asked.encoders or (config.model.encoder,)
    weights = asked.encoder_weights or (config.model.encoder_weights,)
    seeds = asked.seeds or (config.seed,)
    found = []
    for arch, encoder, weight, seed in product(asked.archs, encoders, weights, seeds):
        model = {**config.model.model_dump(), "arch": arch, "encoder": encoder, "encoder_weights": weight}
        mine = settings.build({**config.model_dump(), "model": model, "seed": seed})
        parts = [arch] + [encoder] * (len(encoders) > 1) + [mine.model.initialisation] * (len(weights) > 1)
        name = "_".join(parts + [f"seed{seed}"] * (len(seeds) > 1)).replace("/", "-")
        found.append(Member(name, mine, f"compare/configs/{name}.yaml"))
    if len({member.name for member in found}) < len(found):
        raise InputError("compare: the same model stands twice in compare.*")
    return found


def planned(session: Session, config: Config, asked: Asked) -> Iterator[tuple[str, chain.Choice]]:
    """What would become of the dataset and of each member; nothing is run."""
    step, dataset = next(plan.plan(session, config, asked))
    yield step, dataset
    for member in members(config):
        choice = chain.choose(session, "train", member.config, {step: dataset.key}, fresh=asked.anew("train"))
        yield member.name, choice


def run(launcher: Launcher, config: Config, then: str, asked: Asked, results: dict[str, chain.Result]) -> None:
    """Train all members below the launcher's run, show the leaderboard, and go on with the best by validation.
    `results` has the plan if there is one.

    Raises StepError where none of them can be trained.
    """
    from segpipe.tracking import runs

    began, all_members = time.perf_counter(), members(config)
    driver.advance(("preprocess",), config, results, launcher, asked)
    trained = train(all_members, results, launcher, config.compare.parallel, asked)
    board = leaderboard(trained, config)
    _save(board, trained)
    _show(launcher.session.screen, board)
    best, outcome = next((m, o) for m, o in trained.items() if m.name == board["model"].iloc[0])
    if isinstance(outcome, SegpipeError):
        raise StepError(f"none of {len(trained)} models could be trained; {best.name}: {outcome}")
    results["train"] = outcome
    runs.tag(best=best.name, figure=f"best of {len(trained)}: {best.name}, val Dice {board['val_dice'].iloc[0]:.3f}")
    driver.advance(AFTERWARDS[then], best.config, results, replace(launcher, recipe=best.recipe), asked)
    driver.show(launcher.session.screen, results, time.perf_counter() - began)
    if then == "promote":
        driver.show_champion(launcher.session.screen, config.registry.model_name)


def train(
    all_members: list[Member], results: dict[str, chain.Result], launcher: Launcher, parallel: int, asked: Asked
) -> Outcomes:
    """Train members `parallel` at a time; what became of each, in order. A failure is a result like any other."""
    from segpipe.tracking import runs

    for member in all_members:
        runs.log_text(settings.dump(member.config), member.recipe)
    inputs = {"preprocess": results["preprocess"].run}

    def obtain(member: Member) -> chain.Result | SegpipeError:
        mine, fresh = replace(launcher, recipe=member.recipe), asked.anew("train")
        try:
            return chain.obtain("train", member.config, inputs, mine, fresh=fresh, label=member.name)
        except (InputError, StepError) as error:
            launcher.session.say(f"{member.name}: {error}")
            return error

    if parallel == 1:
        return {member: obtain(member) for member in all_members}
    with ThreadPoolExecutor(parallel) as pool:
        return dict(zip(all_members, pool.map(obtain, all_members), strict=True))


def leaderboard(trained: Outcomes, config: Config) -> "pd.DataFrame":
    """One row per member with `COLUMNS`, the best validation Dice first, failures last. Members that share a letter of
    `group` do not differ significantly.
    """
    import pandas as pd

    from segpipe.metrics import statistics
    from segpipe.recording import artifact_tree
    from segpipe.tracking import artifacts

    samples, dice = config.evaluate.bootstrap_samples, {}
    rows: list[dict[str, Any]] = []
    for member, outcome in trained.items():
        if isinstance(outcome, SegpipeError):
            rows.append({"model": member.name, "status": str(outcome)})
            continue
        metrics, params = outcome.run.data.metrics, outcome.run.data.params
        cases = pd.read_csv(
            artifacts.local(f"runs:/{outcome.run.info.run_id}/{artifact_tree.VALIDATION}"), dtype={"patient": str}
        )
        dice[member.name] = cases.set_index("case")
        interval = statistics.bootstrap_mean(cases["dice"], cases["patient"], samples, config.seed)
        rows.append({
            "model": member.name,
            "val_dice": metrics["best_val_dice"],
            "val_dice_ci_low": interval.low,
            "val_dice_ci_high": interval.high,
            "best_epoch": metrics["best_epoch"],
            "seconds_per_epoch": 60 * metrics["training_time_minutes"] / metrics["total_epochs_trained"],
            "parameters": int(params["cfg.model.parameters"]),
            "inference_ms": metrics["inference_ms"],
            "status": "reused" if outcome.reused else "trained",
            "run": outcome.run.info.run_id,
        })  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table.sort_values("val_dice", ascending=False, na_position="last", ignore_index=True, kind="stable")
    ranks = [name for name in table["model"] if name in dice]
    table["group"] = table["model"].map(groups({name: dice[name] for name in ranks}, samples, config.seed))
    return table


def groups(dice: "dict[str, pd.DataFrame]", samples: int, seed: int) -> dict[str, str]:
    """Letters for members in rank order, from their tables of validation cases (index case; patient, dice): those that
    share one do not differ by the paired test over patients, two-sided at 5 % after Holm's correction for all pairs.
    Silence on a case without foreground counts as 1 beside a false alarm, as in the gate.
    """
    from segpipe.metrics import statistics

    pairs, p_values = list(combinations(dice, 2)), []
    for one, other in pairs:
        ours, theirs = dice[one]["dice"], dice[other]["dice"].loc[dice[one].index]
        silent = ours.isna() != theirs.isna()
        found = statistics.paired(
            ours.mask(silent & ours.isna(), 1.0),
            theirs.mask(silent & theirs.isna(), 1.0),
            dice[one]["patient"],
            samples,
            seed,
            alternative="two-sided",
        )
        p_values.append(found.p)
    adjusted = statistics.holm(p_values)
    return statistics.letters(list(dice), [pair for pair, p in zip(pairs, adjusted, strict=True) if p <= ALPHA])


def _save(board: "pd.DataFrame", trained: Outcomes) -> None:
    from segpipe.plots import training
    from segpipe.tracking import artifacts, runs

    curves = {
        member.name: runs.history(outcome.run.info.run_id, "val_dice")
        for member, outcome in trained.items()
        if not isinstance(outcome, SegpipeError)
    }
    with artifacts.files("compare") as folder:
        board.to_csv(folder / "leaderboard.csv", index=False)
        training.leaderboard(board, folder / "leaderboard.png")
        training.overlaid(curves, "validation Dice", folder / "curves.png")


def _show(screen: Screen, board: "pd.DataFrame") -> None:
    top = board["val_dice"].max()
    titles = ("val Dice", "", "epoch", "s/epoch", "parameters", "inference ms")
    columns = (
        *(Column("model"), Column("group")),
        *(Column(title, right=bool(title)) for title in titles),
        Column("status", wrap=True),
    )
    caption = (
        "best validation Dice with its 95 % interval over patients, on the same dataset; "
        "models that share a letter do not differ significantly"
    )
    screen.show(Table(columns, [_row(row, top) for row in board.to_dict("records")], caption=caption))


def _row(row: Mapping[Any, Any], top: float) -> tuple[str, ...]:
    if row["val_dice"] != row["val_dice"]:
        return (row["model"], *[""] * 7, row["status"])
    return (
        row["model"],
        row["group"],
        f"{row['val_dice']:.4f} [{row['val_dice_ci_low']:.3f}, {row['val_dice_ci_high']:.3f}]",
        "\u2588" * round(BAR * row["val_dice"] / top) if top else "",
        f"{row['best_epoch']:.0f}",
        f"{row['seconds_per_epoch']:.1f}",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['inference_ms']:.1f}",
        row["status"],
    )
