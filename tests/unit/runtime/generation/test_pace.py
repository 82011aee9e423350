from __future__ import annotations

import pytest

from t5edge.runtime.generation.pace import FIRST_RATE, FIRST_SLOPE, Acceptance, Pace, PassCost


def test_a_line_through_the_passes_seen() -> None:
    cost = PassCost()
    for tokens in (1, 4, 1, 8, 2, 1):
        cost.saw(tokens, 0.010 + 0.002 * (tokens - 1))
    assert cost.slope == pytest.approx(0.2, rel=1e-6)


def test_the_slope_stays_when_only_single_tokens_follow() -> None:
    cost = PassCost()
    for tokens in (1, 9, *[1] * 300):
        cost.saw(tokens, 0.010 + 0.005 * (tokens - 1))
    assert cost.slope == pytest.approx(0.5, rel=0.1)


def test_before_any_pass_there_is_a_guess() -> None:
    assert PassCost().slope == FIRST_SLOPE


def test_rates_follow_what_is_accepted_and_drift_back() -> None:
    kind = Acceptance()
    assert kind.rate == FIRST_RATE
    for _ in range(30):
        kind.saw(0, 4)
    assert kind.rate < 0.1
    for _ in range(2000):
        kind.fade()
    assert kind.rate == pytest.approx(FIRST_RATE, abs=0.05)
    for _ in range(30):
        kind.saw(4, 4)
    assert kind.rate > 0.95
    for _ in range(30):
        kind.saw(0, 4)
    assert kind.rate < 0.3, "a long past does not weigh more than what is seen now"


@pytest.mark.parametrize(("slope", "rate", "expected"), [(0.05, 0.98, 8), (0.05, 0.01, 0), (1.0, 0.6, 0)])
def test_as_many_tokens_as_pay(slope: float, rate: float, expected: int) -> None:
    pace = Pace()
    pace.cost(1).slope = slope
    assert pace.best([rate], [8], 1) == expected


def test_a_dear_assistant_drafts_less() -> None:
    pace = Pace()
    for tokens in (1, 5, 1):
        pace.cost(1).saw(tokens, 0.01)
    rates, most = [0.8], [8]
    cheap = pace.best(rates, most, 1)
    pace.draft_seconds = 0.004
    assert pace.best(rates, most, 1) < cheap


def test_nothing_at_hand_is_nothing_drafted() -> None:
    assert Pace().best([0.9, 0.9], [0, 0], 2) == 0
