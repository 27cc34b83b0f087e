"""Tests of what depends on Keras' backend; they run on the one that KERAS_BACKEND names."""

import keras
import pytest


def pytest_report_header() -> str:
    return f"Keras backend: {keras.backend.backend()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked for other backends: `@pytest.mark.backend("jax", "torch")`."""
    here = keras.backend.backend()
    for item in items:
        marker = item.get_closest_marker("backend")
        if marker is not None and here not in marker.args:
            item.add_marker(pytest.mark.skip(reason=f"not for the backend {here}"))
