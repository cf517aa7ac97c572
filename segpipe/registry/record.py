"""The record of every move of the champion: tags of the registered model."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from mlflow import MlflowClient

from segpipe.errors import InputError
from segpipe.tracking import connection

PROMOTED, APPROVED, ROLLED_BACK = "promoted", "approved", "rolled back"
OVERRIDDEN = "overridden"  # promoted by a person against the gate
RECORD = "segpipe.champion."  # a tag a move, named after its time
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
LONGEST_WHY = 2000  # of the 5000 characters that MLflow's table holds: escapes make it longer


@dataclass(frozen=True)
class Move:
    """One move of the alias `champion`: when (UTC), to which version, from which, how, by whom, why, by which rule of
    the gate, and the run of register that decided. Empty: none or not known.
    """

    at: str
    version: str
    before: str
    how: str
    by: str
    why: str
    rule: str = ""
    run: str = ""

    def to_json(self) -> str:
        """The move as the record has it."""
        values = asdict(self)
        values |= {"from": values.pop("before"), "why": self.why[:LONGEST_WHY]}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> "Move":
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(before=values.pop("from"), **values)


def history(name: str) -> list[Move]:
    """Every move of the champion, oldest first. Raises InputError where there is no such model."""
    model = connection.get_if_there(MlflowClient().get_registered_model, name)
    if model is None:
        raise InputError(f"no registered model '{name}': run register first, or give --registry.model_name")
    return [Move.read(model.tags[key]) for key in sorted(model.tags) if key.startswith(RECORD)]


def line(moves: list[Move], alive: set[str]) -> list[str]:
    """The champions one behind the other that rollbacks have left, the current one last; without deleted versions."""
    versions: list[str] = [moves[0].before] if moves and moves[0].before else []
    for move in moves:
        if move.how == ROLLED_BACK and move.version in versions:
            while versions[-1] != move.version:
                versions.pop()
        else:
            versions.append(move.version)
    return [v for v, _ in groupby(v for v in versions if v in alive)]


def moment(moves: list[Move]) -> str:
    """Now, but after the last move, whatever the clock of the machine that made it."""
    now = datetime.now(UTC)
    if moves:
        now = max(now, datetime.strptime(moves[-1].at, TIME).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return now.strftime(TIME)
