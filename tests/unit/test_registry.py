import numpy as np
import pandas as pd
import pytest

from segpipe import registry
from segpipe.config import GateConfig
from segpipe.errors import InputError


def cases(*dice):
    return pd.DataFrame({"case": [f"c{i}" for i in range(len(dice))], "dice": dice})


@pytest.mark.parametrize(
    ("challenger", "champion", "gate", "promote", "told"),
    [
        (cases(0.8, 0.9), None, GateConfig(), True, "first model"),
        (cases(0.2, 0.3), None, GateConfig(min_dice=0.5), False, "below gate.min_dice"),
        (cases(0.8, 0.9), cases(0.7, 0.9), GateConfig(), True, r"\+0\.0500"),
        (cases(0.8, 0.9), cases(0.8, 0.9), GateConfig(), False, "not better"),
        (cases(0.7, 0.9), cases(0.8, 0.9), GateConfig(), False, r"-0\.0500"),
        (cases(0.81, 0.9), cases(0.8, 0.9), GateConfig(min_improvement=0.01), False, "not better"),
        (cases(0.9, 0.9), cases(0.4, 0.4), GateConfig(min_dice=0.95), False, "below gate.min_dice"),
        (cases(0.8, np.nan), cases(0.7, np.nan), GateConfig(), True, r"0\.8000"),
        (cases(np.nan), None, GateConfig(), False, "no test case has a Dice"),
        (cases(0.5, 0.9), cases(0.6), GateConfig(), False, r"-0\.1000 against the champion on 1 of 2 cases"),
        (cases(0.5, 0.9), cases(0.6)[:0], GateConfig(), False, "trained on all test cases"),
    ],
)
def test_the_gate(challenger, champion, gate, promote, told):
    decision = registry.decide(challenger, champion, gate)
    assert decision.promote is promote
    assert pd.Series(decision.reasons).str.contains(told).any()
    if promote:
        assert all(c.passed for c in decision.comparisons)


def test_different_cases_cannot_be_compared():
    with pytest.raises(InputError, match="different cases"):
        registry.decide(cases(0.5), cases(0.5, 0.6), GateConfig())
