"""What importing ckptavg costs and offers, and who may import whom."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ckptavg
from tests.helpers.models import randomize, tiny_model
from tests.helpers.processes import run_blocked


def test_the_public_names():
    assert ckptavg.__all__ == [
        "BatchNormReport",
        "Checkpoint",
        "CheckpointSaver",
        "CkptavgError",
        "CkptavgWarning",
        "DoctorReport",
        "EpochLog",
        "Inspection",
        "MergePlan",
        "MergeReport",
        "MergeResult",
        "Recipe",
        "RecipeComparison",
        "Record",
        "RefreshReport",
        "Run",
        "SWA",
        "SoupReport",
        "Swad",
        "SweepReport",
        "Verification",
        "__version__",
        "compare_recipes",
        "convert",
        "doctor",
        "evaluate",
        "inspect",
        "load_model",
        "merge",
        "merge_into_model",
        "open_run",
        "plan_merge",
        "refresh_batch_norm",
        "report",
        "resume",
        "run_plan",
        "soup",
        "sweep",
        "update_batch_norm",
        "update_bn",
        "verify",
    ]
    for name in ckptavg.__all__:
        assert not isinstance(getattr(ckptavg, name), type(sys)), f"{name} is a module"
    assert dir(ckptavg) == sorted(ckptavg.__all__)
    with pytest.raises(AttributeError, match="No ckptavg attribute average"):
        ckptavg.average  # noqa: B018
    assert ckptavg.__version__ == version("ckptavg")


def test_every_public_name_is_documented():
    for name in ckptavg.__all__:
        if name != "__version__":
            assert getattr(ckptavg, name).__doc__, name


def test_import_and_help_need_no_tensorflow():
    for code in (
        "import ckptavg",
        "sys.argv[1:] = ['--help']\nimport ckptavg.cli\nckptavg.cli.main()",
    ):
        result = run_blocked(code)
        assert result.returncode == 0, result.stderr


def test_merging_plain_weights_needs_no_tensorflow(trained_run, tmp_path):
    code = (
        "import sys, ckptavg.cli\n"
        "try: ckptavg.cli.main()\n"
        "finally: assert not {'pydantic', 'rich'} & sys.modules.keys()"
    )
    for output in ("o.weights.h5", "o.keras"):
        result = run_blocked(code, "merge", str(trained_run), "-o", str(tmp_path / output))
        assert result.returncode == 0, result.stderr
        assert (tmp_path / output).is_file()


def test_a_command_that_needs_keras_says_so(tmp_path):
    randomize(tiny_model(), 1).save_weights(tmp_path / "a.weights.h5")
    (tmp_path / "a.py").write_text("m = d = print\n")
    code = "import ckptavg.cli; ckptavg.cli.main()"
    model, data = (f"{tmp_path}/a.py:{name}" for name in "md")
    result = run_blocked(
        code, "evaluate", str(tmp_path / "a.weights.h5"), "--model", model, "--data", data
    )
    assert result.returncode == 1
    assert "error: this needs Keras and TensorFlow" in result.stderr
    assert "Traceback" not in result.stderr


def test_floors_hold():
    root = Path(__file__).parents[2]
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
