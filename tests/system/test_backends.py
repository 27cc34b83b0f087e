"""The tests of `tests/backends` on the other backends of Keras, where they are installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: make test-backends")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/backends"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
