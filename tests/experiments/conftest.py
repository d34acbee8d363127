"""Programs here are compiled in a hurry: they train a few steps of tiny networks."""

import jax
import pytest

HURRY = "jax_disable_most_optimizations"


@pytest.fixture(autouse=True, scope="module")
def compiled_in_a_hurry():
    """Also in the processes that a test starts, so that results stay the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HURRY.upper(), "1")
        jax.config.update(HURRY, True)
        yield
    jax.config.update(HURRY, False)
