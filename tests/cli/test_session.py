"""What libraries write while they start: held back, unless something fails or it is asked for."""

import os
import tempfile

import pytest

from ckptavg.cli.session import session, verbosely
from ckptavg.commands.display import _current
from ckptavg.errors import DataError, SpecError
from tests.helpers.command_line import DATA, main


def start():
    """What `import_keras` does, with a library that writes as those of TensorFlow do."""
    with _current.get().importing():
        os.write(2, b"oneDNN custom operations are on\n")


class OpError(Exception):
    __module__ = "tensorflow.python.framework.errors_impl"


@pytest.mark.parametrize(
    ("error", "cause", "is_shown"),
    [
        (SpecError("no function"), None, False),
        (DataError("the data do not fit"), ValueError("shape"), False),
        (DataError("cannot compute"), OpError("no cuDNN"), True),
        (OpError("no cuDNN"), None, True),
        (ZeroDivisionError(), None, True),
        (KeyboardInterrupt(), None, False),
    ],
)
@pytest.mark.parametrize("level", ["2", None])
def test_it_is_shown_if_the_backend_may_have_failed(
    capfd, monkeypatch, level, error, cause, is_shown
):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)

    def work():
        with session():
            start()
            assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == (level or "3")
            raise error from cause

    with pytest.raises(type(error)):
        work()
    assert ("oneDNN" in capfd.readouterr().err) == is_shown


def test_it_is_not_shown_without_a_failure(capfd):
    with session():
        start()
        start()
        os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


def test_a_failure_to_import_shows_it_once(capfd):
    def work():
        with session():
            try:
                with _current.get().importing():
                    os.write(2, b"this processor has no AVX\n")
                    raise ImportError("tensorflow")
            except ImportError as error:
                raise SpecError("this needs TensorFlow") from error

    with pytest.raises(SpecError, match="needs TensorFlow"):
        work()
    assert capfd.readouterr().err == "this processor has no AVX\n"


def test_it_is_shown_if_asked_for(capfd):
    with verbosely(True), session():
        start()
    assert capfd.readouterr().err == "oneDNN custom operations are on\n"


def test_without_room_for_it_it_is_shown(capfd, monkeypatch):
    with monkeypatch.context() as patch, session():
        patch.setattr(tempfile, "tempdir", "/nowhere")
        start()
    assert capfd.readouterr().err == "oneDNN custom operations are on\n"


def test_verbose_shows_what_is_logged(folder):
    (folder / "bare.py").write_text(
        "import keras\nimport train\n"
        "def model(): return keras.Sequential.from_config(train.build_model().get_config())\n"
    )
    arguments = ("run", "-o", "o.keras", "--model", "bare.py:model", *DATA)
    assert main("merge", *arguments)[::2] == (0, "")
    status, _, err = main("merge", *arguments, "--overwrite", "--verbose")
    assert (status, err) == (
        0,
        "bare.py:model is not compiled: compiled it as run/model.json says\n",
    )
    for command in ("inspect", "verify"):
        status, _, err = main(command, "run", "--verbose")
        assert (status, "No such option: --verbose" in err) == (2, True)
