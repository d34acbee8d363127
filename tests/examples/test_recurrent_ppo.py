"""Recurrent PPO: with the masks of the rollout the first ratio is exactly 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly, traced_once

from examples import recurrent_ppo

RATES = [0.0, 0.3, 0.5]
SMALL = recurrent_ppo.Settings(
    updates=1, every=1, epochs=1, groups=2, rows=3, steps=12, units=5
)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "per"),
    quickly(
        [(kind, per) for kind in recurrent_ppo.KINDS for per in ("sequence", "step")],
        ("consistent", "sequence"),
    ),
)
def test_the_first_ratio_is_one_with_the_masks_of_the_rollout(kind, per):
    """For three rates in one program; episodes of five steps end inside a rollout."""
    task = recurrent_ppo.repeat_previous(delay=1, length=5)
    ppo = recurrent_ppo.PPO(task, SMALL._replace(per=per), kind)
    update = traced_once(lambda learner, rate: jax.vmap(ppo.update)(learner, rate))
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        learner = jax.vmap(ppo.init)(jnp.arange(3))
        for _ in range(2):
            learner, report = update(learner, jnp.array(RATES, jnp.float32))
            ratio = np.asarray(report.ratio)
            assert ratio.shape[1:] == (SMALL.steps, SMALL.rows)
            assert (ratio[0] == 1).all()
            if kind == "consistent":
                assert (ratio == 1).all()
            else:
                assert all((each != 1).any() for each in ratio[1:])
            assert np.asarray(report.rounding).max() < 1e-5
    assert (np.asarray(learner.actors.keys.episode) >= 4).all()
