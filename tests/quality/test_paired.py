import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from harness.measurement import TaskScore
from harness.quality.paired import compare, difference_low, mcnemar_p


def score(correct, digest="d"):
    n = len(correct)
    return TaskScore(
        task="t", task_digest=digest, item_ids=tuple(map(str, range(n))), correct=tuple(correct), answers=("",) * n
    )


@pytest.mark.parametrize("n", [50, 100, 400])
def test_no_difference_seen_has_a_bound_in_closed_form(n):
    """With lost = won = 0 the equation is (n u − ½)² = z² n u (1 − u), u = −d: a quadratic done by hand."""
    z2 = stats.norm.ppf(0.95) ** 2
    a, b, c = n * n + n * z2, -(n + n * z2), 0.25
    assert difference_low(0, 0, n, 0.05) == pytest.approx(-(-b + math.sqrt(b * b - 4 * a * c)) / (2 * a), rel=1e-9)


@pytest.mark.parametrize(("lost", "won", "n"), [(5, 5, 100), (12, 3, 300), (0, 4, 60), (80, 15, 440), (30, 30, 60)])
def test_the_bound_solves_the_score_equation_with_a_numerically_fitted_nuisance(lost, won, n):
    """The most likely probability of a loss, given the difference, is found here by maximising the likelihood."""
    d = difference_low(lost, won, n, 0.05)

    def minus_log_likelihood(q):
        return -(lost * math.log(q) + won * math.log(q + d) + (n - lost - won) * math.log(1 - 2 * q - d))

    inside = (max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12)
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=inside, method="bounded", options={"xatol": 1e-12}).x
    score_statistic = (won - lost - n * d - 0.5) / math.sqrt(n * (2 * q + d * (1 - d)))
    assert score_statistic == pytest.approx(stats.norm.ppf(0.95), abs=1e-4)


ALPHA = 0.05
P_WON = [0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]


@pytest.mark.parametrize("n", [60, 120, 300, 440])
@pytest.mark.parametrize("margin", [0.02, 0.03, 0.05, 0.1])
def test_the_error_probability_is_at_most_alpha_by_full_enumeration(n, margin):
    """A candidate worse by exactly the margin passes with probability <= alpha, whatever share of items it wins."""
    won = np.arange(n + 1)
    most_lost = np.array([_most_lost_that_passes(int(w), n, margin) for w in won])
    assert most_lost.max() >= 0
    for p_won in P_WON:
        p_lost = p_won + margin
        given_won = stats.binom.cdf(most_lost, n - won, p_lost / (1 - p_won))
        false_pass = float((stats.binom.pmf(won, n, p_won) * given_won).sum())
        assert false_pass <= ALPHA, (n, margin, p_won)


def _most_lost_that_passes(won, n, margin):
    """-1: none. Found by bisection: one more loss never raises the bound."""
    low, high = -1, n - won
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if difference_low(middle, won, n, ALPHA) >= -margin else (low, middle - 1)
    return low


def test_the_error_probability_holds_in_simulation():
    rng = np.random.default_rng(7)
    n, margin, runs = 300, 0.05, 4000
    draws = rng.multinomial(n, [0.02 + margin, 0.02, 1 - 0.04 - margin], size=runs)
    passes = sum(difference_low(int(lost), int(won), n, ALPHA) >= -margin for lost, won, _ in draws)
    assert stats.binomtest(passes, runs, ALPHA, alternative="greater").pvalue > 0.001


def test_a_true_equal_is_let_through_by_the_power_the_item_counts_were_chosen_for():
    rng = np.random.default_rng(8)
    draws = rng.multinomial(400, [0.02, 0.02, 0.96], size=500)
    passes = sum(difference_low(int(lost), int(won), 400, ALPHA) >= -0.04 for lost, won, _ in draws)
    assert passes / 500 > 0.9


@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 500))
def test_one_more_loss_never_raises_the_bound(lost, won, n):
    assert difference_low(lost + 1, won, n, ALPHA) <= difference_low(lost, won, n, ALPHA)
    assert -1 <= difference_low(lost, won, n, ALPHA) <= (won - lost) / n <= -difference_low(won, lost, n, ALPHA)


def test_mcnemar_by_hand():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar_p(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar_p(2, 10) == mcnemar_p(10, 2)


def test_pairs_are_matched_by_item_and_counted():
    reference = score([True] * 60 + [False] * 40)
    candidate = score([False] * 10 + [True] * 50 + [True] * 4 + [False] * 36)
    result = compare(candidate, reference, margin=0.2, alpha=0.05)
    assert (result.n, result.lost, result.won) == (100, 10, 4)
    assert (result.accuracy, result.reference_accuracy, result.difference) == (0.54, 0.6, -0.06)
    assert result.difference_low == difference_low(10, 4, 100, 0.05)
    assert result.difference_high == -difference_low(4, 10, 100, 0.05)
    assert result.passed
    assert not compare(candidate, reference, margin=0.1, alpha=0.05).passed


def test_a_screen_fails_only_what_is_clearly_worse():
    reference = score([True] * 60)
    unclear, clear = score([False] * 6 + [True] * 54), score([False] * 20 + [True] * 40)
    assert not compare(unclear, reference, margin=0.05, alpha=0.05).passed
    assert compare(unclear, reference, margin=0.05, alpha=0.05, level="screen").passed
    assert not compare(clear, reference, margin=0.05, alpha=0.05, level="screen").passed


def test_other_questions_are_not_comparable():
    with pytest.raises(ValueError, match="asked other questions"):
        compare(score([True]), score([True], digest="e"), margin=0.1, alpha=0.05)
    with pytest.raises(ValueError, match="no answer to 1"):
        compare(score([True, True]), score([True]), margin=0.1, alpha=0.05)
