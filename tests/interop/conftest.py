"""Settings of all tests of the folder."""

import os

import jax
import pytest

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported


@pytest.fixture(autouse=True)
def lenient():
    """Lets Keras and nnx promote dtypes and ranks as usual."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
