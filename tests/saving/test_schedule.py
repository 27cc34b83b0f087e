"""Epochs and rates against the formulas of keras-swa, written out once more."""

import pytest

from ckptavg.errors import SaverError
from ckptavg.saving.schedule import Schedule


@pytest.mark.parametrize(
    ("kind", "start", "freq", "expected"),
    [
        ("manual", 1, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("constant", 4, 1, [4, 5, 6, 7, 8, 9, 10]),
        ("constant", 4, 3, [4, 7, 10]),
        ("cyclic", 4, 3, [6, 9]),  # the last epoch of each cycle, where the rate is lowest
        ("cyclic", 2, 2, [3, 5, 7, 9]),
    ],
)
def test_saved_epochs(kind, start, freq, expected):
    schedule = Schedule(kind, start, freq)
    assert [epoch + 1 for epoch in range(10) if schedule.saves(epoch)] == expected
    assert schedule.first_save == expected[0]


def test_constant_rates_follow_the_formula_to_the_bit():
    initial, low, start = 0.1, 0.01, 75
    schedule = Schedule("constant", start, swa_lr=low)
    for epoch in range(100):
        t = epoch / (start - 1)
        if t <= 0.5:
            expected = initial
        elif t <= 0.9:
            expected = initial * (1.0 - (1.0 - low / initial) * (t - 0.5) / 0.4)
        else:
            expected = low
        assert schedule.rates(initial).of_epoch(epoch) == expected


def test_cyclic_rates_fall_within_each_cycle_to_the_bit():
    rates = Schedule("cyclic", 5, 3, swa_lr=0.001, swa_lr2=0.003).rates(0.01)
    steps = 7
    for epoch in range(4, 16):
        for batch in range(steps):
            t = (((epoch - 4) % 3) * steps + batch + 1) / (3 * steps)
            expected = (1.0 - t) * 0.003 + t * 0.001
            assert rates.of_batch(epoch, batch, steps) == expected
    assert rates.of_batch(6, steps - 1, steps) == 0.001
    assert rates.of_epoch(0) == 0.01


def test_auto_rates():
    rates = Schedule("cyclic", 5, 3).rates(0.1)
    assert rates.low == 0.1 * 0.1
    assert rates.high == rates.low + 0.25 * (0.1 - rates.low)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "linear", "start_epoch": 5}, "must be one of manual, constant, cyclic"),
        ({"kind": "constant", "start_epoch": 1}, "must be 2 or more"),
        ({"kind": "manual", "start_epoch": 0}, "must be an integer >= 1"),
        ({"kind": "manual", "start_epoch": 2.5}, "start_epoch is 2.5, but must be an integer"),
        ({"kind": "manual", "start_epoch": 2, "swa_freq": 0}, "swa_freq is 0"),
        ({"kind": "cyclic", "start_epoch": 2, "swa_freq": 1}, "a cycle needs 2 epochs"),
        ({"kind": "cyclic", "start_epoch": 2, "swa_freq": 2, "swa_lr2": 0.1}, "both or neither"),
        ({"kind": "manual", "start_epoch": 2, "swa_lr2": 0.1}, "both or neither"),
        (
            {"kind": "cyclic", "start_epoch": 2, "swa_freq": 2, "swa_lr": 0.2, "swa_lr2": 0.1},
            "must not be the larger",
        ),
        ({"kind": "constant", "start_epoch": 2, "swa_lr": "high"}, "'auto' or a number >= 0"),
        ({"kind": "constant", "start_epoch": 2, "swa_lr": float("nan")}, "'auto' or a number >= 0"),
        ({"kind": "constant", "start_epoch": 2, "swa_lr": -0.1}, "'auto' or a number >= 0"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(SaverError, match=message):
        Schedule(**arguments)


def test_swa_rate_above_the_initial_one_is_refused():
    with pytest.raises(SaverError, match="must not be above"):
        Schedule("constant", 5, swa_lr=0.5).rates(0.1)
    Schedule("manual", 5, swa_lr=0.5).rates(0.1)  # manual leaves rates alone
