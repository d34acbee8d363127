"""Layers of rdrop in four shapes, and helpers to compare them with other libraries."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import rdrop

BATCH, TIME, FEATURES, UNITS = 4, 3, 2, 3
COMPILER = {"xla_backend_optimization_level": 0}  # compiles in less time
SHAPES = ("rnn", "reverse", "both", "stack")

ZEROS = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # of Keras

compiled = partial(jax.jit, compiler_options=COMPILER)


def make(shape, single, both):
    """Layers of one shape from the input upwards, by functions that make one each."""
    return {
        "rnn": lambda: [single(FEATURES)],
        "reverse": lambda: [single(FEATURES, True)],
        "both": lambda: [both(FEATURES)],
        "stack": lambda: [both(FEATURES), single(2 * UNITS)],
    }[shape]()


def ours(shape, cell):
    """The same layer of rdrop, of cells that a function makes."""
    layers = make(
        shape,
        lambda features, reverse=False: rdrop.RNN(cell(), reverse=reverse),
        lambda features: rdrop.Bidirectional(cell(), cell()),
    )
    return whole(layers) if shape != "stack" else rdrop.Stack(layers)


def whole(layers):
    """The argument of `from_...` for several layers, or for one."""
    return layers if len(layers) > 1 else layers[0]


def combinations(cases, quick):
    """All pairs of a case and a shape, of which some are quick."""
    return [
        pytest.param(
            case, shape, id=f"{name}-{shape}",
            marks=[] if (name, shape) in quick else [pytest.mark.slow],
        )
        for name, case in cases.items()
        for shape in SHAPES
    ]  # fmt: skip


def random_like(rng, tree):
    """Values of the shapes and dtypes of a tree, none of them zero."""
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, s.dtype), tree
    )


def random_params(rng, module, features=FEATURES, dtype=float):
    xs = jnp.zeros((1, 1, features), dtype)
    return random_like(rng, jax.eval_shape(module.init, jax.random.key(0), xs))


def randomise(rng, layers):
    """Sets weights of Keras of which none is zero; starts at zero take less time."""
    for layer in layers:
        layer.set_weights([rng.normal(size=w.shape) / 2 for w in layer.weights])
