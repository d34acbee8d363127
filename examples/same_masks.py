"""Same masks: a port from Keras has the same outputs, also with noise.

A bidirectional LSTM of Keras and its port run over the same sequences: without masks,
with masks drawn by rdrop, and with masks drawn by Keras.

    python -m examples.same_masks
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras

import rdrop
from rdrop.interop import from_keras, masks_from_keras, masks_to_keras


def main() -> dict[str, float]:
    """Prints the largest differences between the outputs, and returns them."""
    xs = jax.random.normal(jax.random.key(0), (8, 20, 12))  # [B, T, D]
    lstm = keras.layers.LSTM(
        16, dropout=0.2, recurrent_dropout=0.5, return_sequences=True
    )
    layer = keras.layers.Bidirectional(lstm)
    layer.build(xs.shape)
    port, params, _ = from_keras(layer)

    dropout, keys = rdrop.presets.keras(0.2, 0.5), rdrop.stream_keys(jax.random.key(1))
    sites = rdrop.LSTMCell(16).sites(12)
    of_rdrop = tuple(
        rdrop.draw(dropout, keys.replace(direction=direction), sites, batch=8)
        for direction in ("forward", "backward")
    )
    differences = {}
    for name, masks in (
        ("no masks", None),
        ("masks of rdrop", of_rdrop),
        ("masks of Keras", masks_from_keras(layer, xs)),
    ):
        if masks is not None:
            masks_to_keras(masks, layer)
        theirs = jnp.asarray(layer(xs, training=masks is not None))
        ours = port.apply(params, xs, masks)[1]
        differences[name] = float(abs(ours - theirs).max())
        print(
            f"{name:<15}{differences[name]:9.1e}, outputs up to {abs(ours).max():.2f}"
        )
    return differences


if __name__ == "__main__":
    main()
