"""The examples of docstrings run as users run them, whatever the tests configure."""

import contextlib

import jax
import pytest

# Fixtures have no examples to run, and several modules share the name.
collect_ignore_glob = ["tests/conftest.py", "tests/*/conftest.py"]


@pytest.fixture(autouse=True)
def examples_in_float32(request):
    """Undoes the strictness of tests/conftest.py for docstrings."""
    with contextlib.ExitStack() as stack:
        if isinstance(request.node, pytest.DoctestItem):
            stack.enter_context(jax.enable_x64(False))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield
