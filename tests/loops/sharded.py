"""Runs loops on 8 devices that XLA makes of one processor; test_sharding.py calls it.

    python sharded.py CELL:LOOP ...

prints the largest difference from one device in each way of sharding a batch, as JSON.
"""

import hashlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rdrop
from rdrop import Bernoulli, Drift, DropConnect, Dropout, Gaussian, Zoneout

SHARDS, TIME, FEATURES, UNITS = 8, 5, 3, 4
BATCH = PartitionSpec("data")
ALL = PartitionSpec()
KEYS = rdrop.stream_keys(jax.random.key(1))
NOISE = Dropout(inputs=Bernoulli(0.4), hidden_state=Zoneout(0.3))
ON_WEIGHTS = NOISE.replace(input_weights=DropConnect(0.5))
DRIFTING = Dropout(inputs=Bernoulli(0.4, per=Drift(0.3)), outputs=Gaussian(0.3))
RESETS = np.arange(SHARDS * TIME).reshape(SHARDS, TIME) % 3 == 1
LENGTHS = np.array([5, 3, 0, 1, 5, 2, 4, 5])


def mesh_of(kind):
    return jax.make_mesh((SHARDS,), ("data",), axis_types=(kind,))


def largest_difference(actual, expected):
    """The largest difference of two trees; relative to numbers above 1."""

    def of_leaves(a, b):
        return float(abs(np.asarray(a) - b).max() / max(1, abs(b).max()))

    expected = jax.tree.map(np.asarray, expected)
    return max(jax.tree.leaves(jax.tree.map(of_leaves, actual, expected)))


def with_gradients(function):
    """Outputs of a function of parameters and inputs, and gradients of a loss."""

    def run(params, xs):
        def loss(*arguments):
            ys = function(*arguments)
            return (ys**2).sum(), ys

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    return run


def on_meshes(rnn, params, xs):
    """`jax.jit` of a batch that is sharded over explicit or automatic axes."""

    def outputs(params, xs):
        return rnn.apply(params, xs, ON_WEIGHTS, KEYS, lengths=LENGTHS)[1]

    def clean(params, xs):
        return rnn.apply(params, xs)[1]

    expected = jax.jit(with_gradients(outputs))(params, xs), jax.jit(clean)(params, xs)
    for name, kind in (("explicit", AxisType.Explicit), ("auto", AxisType.Auto)):
        mesh = mesh_of(kind)
        with jax.set_mesh(mesh):
            arguments = (
                jax.device_put(params, NamedSharding(mesh, ALL)),
                jax.device_put(xs, NamedSharding(mesh, BATCH)),
            )
            actual = jax.jit(with_gradients(outputs))(*arguments)
            yield f"{name}, gradient", largest_difference(actual, expected[0])
            ys = jax.jit(clean)(*arguments)
            assert len(ys.sharding.device_set) == SHARDS
            yield f"{name}, no noise", largest_difference(ys, expected[1])


def over_units(rnn, params, xs):
    """An explicit mesh of two axes: examples over one, units over the other."""
    kinds = (AxisType.Explicit,) * 2
    mesh = jax.make_mesh((SHARDS // 2, 2), ("data", "model"), axis_types=kinds)

    def by_units(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model")
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    def with_resets(params, xs, resets):
        def outputs(params, xs):
            return rnn.apply(params, xs, DRIFTING, KEYS, resets=resets)[1]

        return with_gradients(outputs)(params, xs)

    def without(params, xs, resets):
        return with_gradients(lambda p, xs: rnn.apply(p, xs, NOISE, KEYS)[1])(
            params, xs
        )

    for name, outputs in (("units", without), ("episodes of units", with_resets)):
        program = jax.jit(outputs)
        expected = program(params, xs, RESETS)
        with jax.set_mesh(mesh):
            batch, resets = (
                jax.device_put(leaf, NamedSharding(mesh, BATCH))
                for leaf in (xs, RESETS)
            )
            arguments = jax.tree.map(by_units, params), batch, resets
            actual = program(*arguments)
            assert actual[0][1].sharding.spec == PartitionSpec("data", None, "model")
            yield name, largest_difference(actual, expected)
            text = program.lower(*arguments).compile().as_text()
            masks = re.findall(rf"f32\[(?:{TIME},)?{SHARDS},1,", text)
            yield f"{name}, masks drawn whole", float(len(masks))
    with jax.set_mesh(mesh):
        assert digest(jax.jit(masks_of)(KEYS)) == digest(masks_of(KEYS))


def in_shard_map(rnn, params, xs):
    """`jax.shard_map` with and without its check; each shard folds in its index."""

    def of_shard(params, xs, index):
        keys = KEYS.fold_in(index)
        return rnn.apply(params, xs, NOISE, keys)[1]

    def in_turn(params, xs):
        one = lambda x, index: of_shard(params, x[None], index)  # noqa: E731
        return jax.vmap(one)(xs, jnp.arange(SHARDS))[:, 0]

    def in_parallel(params, xs):
        return of_shard(params, xs, jax.lax.axis_index("data"))

    expected = jax.jit(with_gradients(in_turn))(params, xs)
    for check in (True, False):
        mapped = jax.shard_map(
            in_parallel,
            mesh=mesh_of(AxisType.Auto),
            in_specs=(ALL, BATCH),
            out_specs=BATCH,
            check_vma=check,
        )
        actual = jax.jit(with_gradients(mapped))(params, xs)
        yield f"check_vma={check}, gradient", largest_difference(actual, expected)
        ys = jax.jit(mapped)(params, xs)
        yield f"check_vma={check}", largest_difference(ys, expected[0][1])


def masks_of(keys):
    """Masks of whole batches, one axis of which may be sharded."""
    dropout = Dropout(
        inputs=Bernoulli(0.5, per="step", gates="each"),
        recurrent=Bernoulli(0.5),
        cell_state=Zoneout(0.5),
        recurrent_weights=DropConnect(0.5),
    )
    sites = rdrop.LSTMCell(UNITS).sites(FEATURES)
    return rdrop.draw(dropout, keys, sites, SHARDS, TIME)


def digest(masks):
    words = b"".join(np.asarray(mask).tobytes() for mask in jax.tree.leaves(masks))
    return hashlib.sha256(words).hexdigest()


def drawn_on_a_mesh():
    """The digest of masks whose examples are drawn by different devices."""
    mesh = mesh_of(AxisType.Auto)

    def by_batch(mask):
        spec = [None] * mask.ndim
        spec[-3] = "data" if mask.shape[-3] == SHARDS else None
        return jax.lax.with_sharding_constraint(
            mask, NamedSharding(mesh, PartitionSpec(*spec))
        )

    masks = jax.jit(lambda keys: jax.tree.map(by_batch, masks_of(keys)))(KEYS)
    assert len(masks.recurrent.sharding.device_set) == SHARDS
    return digest(masks)


def masks_of_shards(fold):
    """How many shards draw a mask of their own in `jax.shard_map`."""

    def of_shard():
        keys = KEYS.fold_in(jax.lax.axis_index("data")) if fold else KEYS
        sites = rdrop.LSTMCell(32).sites(FEATURES)
        masks = rdrop.draw(Dropout(update=Bernoulli(0.5)), keys, sites, 1)
        return masks.update[:, 0]

    mesh = mesh_of(AxisType.Auto)
    mapped = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(), out_specs=BATCH, check_vma=False
    )
    return len({mask.tobytes() for mask in np.asarray(jax.jit(mapped)())})


def main(cases):
    assert jax.device_count() == SHARDS
    xs = np.random.default_rng(0).normal(size=(SHARDS, TIME, FEATURES))
    found = {}
    for case in cases:
        name, loop = case.split(":")
        rnn = rdrop.RNN(getattr(rdrop, name)(UNITS), loop=loop)
        params = rnn.init(jax.random.key(0), jnp.float32(xs))
        for ways in (on_meshes, over_units, in_shard_map):
            for way, difference in ways(rnn, params, jnp.float32(xs)):
                found[f"{case}, {way}"] = difference
    print(
        json.dumps(
            {
                "differences": found,
                "digest": drawn_on_a_mesh(),
                "masks": [masks_of_shards(fold) for fold in (True, False)],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
