"""The window of SWAD: against the paper's algorithm, word by word, and on runs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptavg
from ckptavg.errors import RunError
from ckptavg.recipes.swad import Swad
from tests.helpers.command_line import main


def algorithm_1(losses, n_s, n_e, r):
    """Algorithm 1 of arXiv 2102.08604, in its own letters; iterations are counted from 1."""
    e_val = dict(enumerate(losses, 1))
    t_s, t_e = 0, len(losses)
    threshold = None
    for i in range(1, len(losses) + 1):
        if t_s == 0:
            if i >= n_s and e_val[i - n_s + 1] == min(e_val[i - k] for k in range(n_s)):
                t_s = i - n_s + 1
                threshold = r / n_s * sum(e_val[i - k] for k in range(n_s))
        elif i >= n_e and threshold < min(e_val[i - k] for k in range(n_e)):
            t_e = i - n_e
            break
    return t_s, t_e


losses = st.lists(st.integers(1, 40).map(lambda n: n / 8), min_size=1, max_size=40)


@given(losses, st.integers(1, 5), st.integers(1, 7), st.sampled_from([0.0, 0.25, 0.5]))
def test_it_is_the_papers_algorithm(found, n_converge, n_tolerance, ratio):
    rule = Swad(n_converge, n_tolerance, ratio)
    t_s, t_e = algorithm_1(found, n_converge, n_tolerance, 1 + ratio)
    if t_s == 0:
        with pytest.raises(RunError, match="has not converged"):
            rule.window(found)
        return
    start, stop = rule.window(found)
    assert (start + 1, stop) == (t_s, t_e)
    assert start < stop


def test_losses_by_hand():
    falling_then_rising = [5.0, 3.0, 2.0, 1.0, 1.1, 1.2, 1.1, 1.3, 2.0, 2.1, 2.2]
    assert Swad(3, 2, 0.3).window(falling_then_rising) == (3, 8)
    assert Swad(3, 6, 0.3).window(falling_then_rising) == (3, 11)
    assert Swad(1, 1, 0.0).window([1.0, 1.0, 2.0]) == (0, 2)
    assert Swad(2, 2, 0.3).window([1.0, math.nan, math.nan]) == (0, 3)  # an infinite threshold
    assert Swad(2, 1, 0.3).window([1.0, 1.0, math.nan]) == (0, 2)
    with pytest.raises(RunError, match="has not converged"):
        Swad(2).window([3.0, 2.0, 1.0])
    with pytest.raises(RunError, match="has not converged"):
        Swad(1).window([math.nan, math.nan])
    for arguments in ((0,), (3, 0), (3, 6, -0.1)):
        with pytest.raises(RunError, match=r"must be (an integer >= 1|at least 0)"):
            Swad(*arguments)


def test_a_window_of_a_run(trained_run, tmp_path):
    run = ckptavg.open_run(trained_run)
    found = [record.metrics["val_loss"] for record in run.records]
    rule = Swad(n_converge=1, n_tolerance=1, tolerance_ratio=0.0)
    start, stop = rule.window(found)
    assert run.select(window=rule) == run.checkpoints[start:stop]
    out = tmp_path / "o.weights.h5"
    options = ("--window", "swad", "--n-converge", 1, "--n-tolerance", 1, "--tolerance-ratio", 0)
    status, text, err = main("merge", trained_run, "-o", out, *options)
    assert status == 0, err
    epochs = [checkpoint.epoch for checkpoint in run.checkpoints[start:stop]]
    assert f"(epochs {epochs[0]}" in text
    status, _, err = main("merge", trained_run, "-o", out, "--window", "swad", "--monitor", "f1")
    assert (status, "has no metric 'f1'" in err) == (1, True)
    assert main("merge", trained_run, "-o", out, "--window", "best")[0] == 1
