"""Arguments of another type, in Python: each is a TypeError that says what was expected."""

import pytest

import ckptavg
from ckptavg.errors import FormatError
from ckptavg.search.windows import list_candidates


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last": "3"}, "last is '3', but must be a number of checkpoints, such as 5"),
        ({"last": 3.0}, r"last is 3\.0, but must be a number"),
        ({"last": True}, "last is True, but must be a number"),
        ({"best": "3"}, "best is '3', but must be a number"),
        ({"best": 2, "monitor": None}, "monitor is None, but must be the name of a metric"),
        ({"best": 2, "mode": None}, "mode is None, but must be 'min', 'max' or 'auto'"),
        ({"epochs": "1-3"}, "epochs is '1-3', but must be a list of integers"),
        ({"epochs": 3}, "epochs is 3, but must be a list of integers"),
        ({"window": 5}, "window is 5, but must be .*Swad"),
    ],
)
def test_what_chooses_checkpoints(trained_run, arguments, message):
    with pytest.raises(TypeError, match=message):
        ckptavg.merge(trained_run, trained_run / "o.weights.h5", **arguments)
    with pytest.raises(TypeError, match=message):
        ckptavg.open_run(trained_run).select(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": None}, r"recipe is None, but must be a Recipe or its name, such as 'ema:0\.9'"),
        ({"lst": 5}, r"merge\(\) got an unexpected keyword argument 'lst': did you mean 'last'\?"),
        ({"dekay": 0.5}, "did you mean 'decay'"),
        ({"quite_another": 5}, "unexpected keyword argument 'quite_another'$"),
    ],
)
def test_what_merges(trained_run, arguments, message):
    with pytest.raises(TypeError, match=message):
        ckptavg.merge(trained_run, trained_run / "o.weights.h5", **arguments)


def test_others(trained_run):
    run = ckptavg.open_run(trained_run)
    with pytest.raises(TypeError, match="output is None, but must be the file to write"):
        ckptavg.merge(run, None)
    with pytest.raises(TypeError, match=r"window is 'swad', but must be a ckptavg\.Swad"):
        run.select(window="swad")
    with pytest.raises(TypeError, match=r"recipes is 'uniform', but must be a list, such as \['em"):
        list_candidates(run, recipes="uniform")
    assert ckptavg.merge(run, trained_run / "o.weights.h5", epochs=iter([3, 4]), last=1).output


def test_a_run_where_a_file_is_expected(trained_run):
    with pytest.raises(FormatError, match=r"run is a run, .* \(ckptavg merge .*run -o swa\.keras"):
        ckptavg.update_bn(trained_run, trained_run / "o.keras", data=[])
