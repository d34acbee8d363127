"""Contenders: a function that runs a case once, of each library.

A process holds one contender, so each library is imported where it is used.
"""

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import LINEAR, RATE, Case


def build(name: str, case: Case) -> Callable[[], object]:
    """Returns a function that runs the case once and returns when it is done."""
    builders: dict[str, Callable] = {
        "rdrop": rdrop,
        "rdrop-native": partial(rdrop, loop="native"),
        "rdrop-recompute": partial(rdrop, loop="recompute"),
        "rdrop-plain": partial(rdrop, loop="plain"),
        "rdrop-at-once": at_once,
        "peak": peak,
        "torch": torch,
        "flax": flax,
        "keras-jax": keras_jax,
        "keras-torch": keras_torch,
    }
    return builders[name](case)


def peak(case: Case):
    """A square matrix product of 2048 rows, as XLA does it."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(square, square))


def rdrop(case: Case, loop: Any = "fused"):
    """Our own layer; a new key at each call."""
    import jax

    import rdrop as library
    from rdrop.loops import run

    run.is_installed = lambda: False  # else "fused" is "native"
    cells = {
        "lstm": library.LSTMCell,
        "gru": library.GRUCell,
        "mingru": library.MinGRUCell,
        "rg_lru": library.RGLRUCell,
        "lru": library.LRUCell,
        "s5": library.S5Cell,
    }
    rnn = library.RNN(cells[case.cell](case.units), loop=loop)
    dropout = None
    if case.noise != "none":
        noise = library.Bernoulli(RATE, per=case.noise, gates=case.gates)
        inside = "update" if case.cell in LINEAR else "recurrent"
        dropout = library.Dropout(**{"inputs": noise, inside: noise})

    more = {}
    if case.resets:
        shape = (case.batch, case.time)
        more["resets"] = np.random.default_rng(1).random(shape) < 1 / 25

    def outputs(params, xs, step):
        key = jax.random.fold_in(jax.random.key(1), step)
        return rnn.apply(params, xs, dropout, library.stream_keys(key), **more)[1]

    xs = jax.numpy.asarray(_inputs(case))
    params = rnn.init(jax.random.key(0), xs)
    function, steps = _jax_function(outputs, case), itertools.count()
    return lambda: jax.block_until_ready(function(params, xs, next(steps)))


def at_once(case: Case):
    """Our linear cells by an associative scan, as on a GPU."""
    from rdrop.loops import affine

    affine._in_turn = affine._at_once
    return rdrop(case)


def flax(case: Case):
    """flax.linen's fused LSTM, without noise."""
    import jax
    from flax import linen as nn

    rnn = nn.RNN(nn.OptimizedLSTMCell(case.units))

    def outputs(params, xs, step):
        return rnn.apply(params, xs)

    xs = jax.numpy.asarray(_inputs(case))
    params = rnn.init(jax.random.key(0), xs)
    function = _jax_function(outputs, case)
    return lambda: jax.block_until_ready(function(params, xs, 0))


def torch(case: Case):
    """torch.nn.LSTM or GRU, which have no noise inside a layer."""
    import torch

    cells = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    layer = cells[case.cell](case.features, case.units, batch_first=True)
    return _torch_step(lambda xs: layer(xs)[0], [*layer.parameters()], case)


def keras_jax(case: Case):
    """keras.layers.LSTM or GRU on JAX, compiled."""
    import jax

    layer = _keras_layer(case, "jax")
    params = [variable.value for variable in layer.trainable_variables]
    # The state of the generator of the masks goes in, and the next one comes out.
    state = [variable.value for variable in layer.non_trainable_variables]
    training = case.noise != "none"

    def outputs(params, xs, state):
        return layer.stateless_call(params, state, xs, training=training)

    def loss(params, xs, state):
        ys, state = outputs(params, xs, state)
        return (ys**2).sum(), state

    gradients = jax.grad(loss, argnums=(0, 1), has_aux=True)
    function = jax.jit(gradients if case.train else outputs)
    xs = jax.numpy.asarray(_inputs(case))

    def run():
        nonlocal state
        _, state = jax.block_until_ready(function(params, xs, state))

    return run


def keras_torch(case: Case):
    """keras.layers.LSTM or GRU on PyTorch."""
    layer = _keras_layer(case, "torch")
    params = [variable.value for variable in layer.trainable_variables]
    training = case.noise != "none"
    return _torch_step(lambda xs: layer(xs, training=training), params, case)


def _keras_layer(case, backend):
    os.environ["KERAS_BACKEND"] = backend
    import keras

    cells = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    rate = 0.0 if case.noise == "none" else RATE
    layer = cells[case.cell](
        case.units, return_sequences=True, dropout=rate, recurrent_dropout=rate
    )
    layer.build((case.batch, case.time, case.features))
    return layer


def _jax_function(outputs, case):
    import jax

    def loss(params, xs, step):
        return (outputs(params, xs, step) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)) if case.train else outputs)


def _torch_step(outputs, params, case):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    xs = torch.tensor(_inputs(case), requires_grad=case.train)

    def train():
        for leaf in (xs, *params):
            leaf.grad = None
        (outputs(xs) ** 2).sum().backward()

    def forward():
        with torch.no_grad():
            outputs(xs)

    return train if case.train else forward


def _inputs(case):
    shape = (case.batch, case.time, case.features)
    return np.random.default_rng(0).normal(size=shape).astype("float32")
