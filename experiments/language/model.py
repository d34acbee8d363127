"""Language model: an embedding, recurrent layers with their noise, and a softmax.

Noise on the vertical arrows has one name per height: `words` and `inputs` below the
first layer, `between` below every other layer, `outputs` above the last one.

References:
    [1] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287; word types, section 4.2.
    [2] Press, Wolf. Using the output embedding to improve language models. EACL 2017.
        arXiv:1608.05859.
    [3] Melis, Dyer, Blunsom. On the state of the art of evaluation in neural language
        models. ICLR 2018. arXiv:1707.05589; the projection of a tied softmax.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Key

import rdrop
from experiments.classify.model import CELLS, SITES, noise_of
from experiments.config import ConfigError
from experiments.language.config import Config, Model
from experiments.language.softmax import Softmax, product
from experiments.task import Arrays

LAYER_SITES = tuple(site for site in SITES if site not in ("inputs", "outputs"))
SOFTMAX = ("embedding", "readout", "bias")
DRAWN = ("kernel", "bias", "embedding", "readout", "projection")  # parts of their names


class Noise(NamedTuple):
    """The noise of a model; rates are leaves, None means without noise.

    Attributes:
        words: noise on rows of the embedding.
        layers: noise of each layer, except on the outputs of the last layer.
        outputs: noise on the outputs of the last layer.
        projected: noise on their projection.
    """

    words: rdrop.Bernoulli | None
    layers: tuple[rdrop.Dropout, ...]
    outputs: Any
    projected: Any = None


class Reading(NamedTuple):
    """Results of a model for a window.

    Attributes:
        carry: carry of each layer, for the next window.
        softmax: predictions of the next token.
        raw: outputs of the last layer, before dropout.
        dropped: outputs of the last layer, after dropout.
    """

    carry: Any
    softmax: Softmax
    raw: Float[Array, "B T H"]
    dropped: Float[Array, "B T H"]

    @property
    def logits(self) -> Float[Array, "B T V"]:
        """Logits of the next token, float32."""
        return self.softmax.logits


class LanguageModel(nn.Module):
    """Predicts the next token at each step.

    Parameters: embedding [V, E]; the stack; the learned states of each layer at the
    start of a text, if asked for [leaves of the carry, H]; readout [H, V], or if tied
    [2] and the sizes differ, projection [H, E] [3]; bias [V].

    Attributes:
        vocabulary: the number of tokens V.
        options: sizes, cell and dtype.
        same_mask: whether the mask of h into its own layer is also that of h into the
            layer above, or into the softmax.
    """

    vocabulary: int
    options: Model
    same_mask: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Arrays, "B T"],
        noise: Noise | None = None,
        keys: rdrop.StreamKeys | None = None,
        carry: Any = None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Reading:
        """Returns the results for a window; no keys, no noise."""
        dtype, table = jnp.dtype(self.options.dtype), None
        if self.options.embedding:
            size = self.options.embedding
            table = self._parameter("embedding", self.vocabulary, size)
            xs = table[tokens]
        else:
            xs = jax.nn.one_hot(tokens, self.vocabulary)
        if self.options.start == "learned":
            starts = [self._start(n) for n in range(self.options.layers)]
            carry = carry or _carries(self.options, len(tokens), starts)
        if noise is not None and noise.words is not None and keys is not None:
            key = keys.site("inputs", "words")
            xs = xs * drop_words(key, noise.words, tokens, self.vocabulary)
        xs, top = xs.astype(dtype), self.options.layers
        noise = noise or Noise(None, (rdrop.Dropout(),) * top, None)
        if self.same_mask:
            layers = self._masks(noise.layers, keys, xs)
            below = [m.replace(outputs=m.recurrent) for m in layers[:-1]]
            carry, raw = self._stack()(
                xs, [*below, layers[-1]], initial_carry=carry, lengths=lengths
            )
            dropped = _multiply(raw, layers[-1].recurrent)
        else:
            carry, raw = self._stack()(
                xs, noise.layers, keys, initial_carry=carry, lengths=lengths
            )
            dropped = _drop(raw, noise.outputs, keys, top - 1)
        projected = _drop(self._project(dropped), noise.projected, keys, top)
        return Reading(carry, self._softmax(projected, table), raw, dropped)

    def _stack(self):
        layers = [rdrop.RNN(cell) for cell in cells(self.options)]
        return rdrop.Stack(layers, name="stack")

    def _masks(self, layers, keys, xs) -> list[rdrop.Masks]:
        """Returns the masks of each layer; without keys, their expectation."""
        if keys is None:
            return [dropout.expected() for dropout in layers]
        batch, time, features = xs.shape
        widths = [features, *sizes(self.options)]
        return [
            rdrop.draw(
                dropout,
                keys.replace(layer=keys.layer + n),
                cell.equations.sites(widths[n]),
                batch,
                time,
            )
            for n, (dropout, cell) in enumerate(
                zip(layers, cells(self.options, parent=None), strict=True)
            )
        ]

    def _project(self, ys):
        """Returns vectors of the size of a tied embedding."""
        units, size = ys.shape[-1], self.options.embedding
        if not self.options.tied or units == size:
            return ys
        projection = self._parameter("projection", units, size)
        return product(ys, projection, -1, 0).astype(ys.dtype)

    def _softmax(self, ys, table):
        units = ys.shape[-1]
        bias = self.param(
            "bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32
        )
        if self.options.tied:
            return Softmax(ys, table.T, bias)
        return Softmax(ys, self._parameter("readout", units, self.vocabulary), bias)

    def _start(self, layer):
        cell = cells(self.options, parent=None)[layer]
        zeros = nn.initializers.zeros
        states = len(jax.tree.leaves(cell.equations.initial_carry(1)))
        return self.param(f"start_{layer}", zeros, (states, cell.units), jnp.float32)

    def _parameter(self, name, rows, columns):
        glorot = nn.initializers.glorot_uniform()
        return self.param(name, glorot, (rows, columns), jnp.float32)


def start_carry(model: LanguageModel, params: Any, batch: int) -> Any:
    """Returns the carry of each layer at the start of a text; memories are float32."""
    starts = [params["params"].get(f"start_{n}") for n in range(model.options.layers)]
    return _carries(model.options, batch, starts)


def _carries(options: Model, batch: int, starts: Sequence[Any]) -> Any:
    """Returns carries with learned values [leaves, H], or zeros for None."""
    blank = [
        cell.equations.initial_carry(batch) for cell in cells(options, parent=None)
    ]

    def fill(carry, start):
        leaves, structure = jax.tree.flatten(carry)
        pairs = zip(leaves, start[:, None], strict=True)
        return jax.tree.unflatten(structure, [a + b.astype(a.dtype) for a, b in pairs])

    return tuple(
        carry if start is None else fill(carry, start)
        for carry, start in zip(blank, starts, strict=True)
    )


def _drop(ys: Any, noise: Any, keys: Any, layer: int) -> Any:
    """Returns outputs of a layer with noise; without keys, in expectation over it."""
    if noise is None:
        return ys
    dropout = rdrop.Dropout(outputs=noise)
    masks = dropout.expected()
    if keys is not None:
        there = keys.replace(layer=keys.layer + layer)
        batch, time, units = ys.shape
        site = {"outputs": rdrop.Site(1, units)}
        masks = rdrop.draw(dropout, there, site, batch, time)
    return _multiply(ys, masks.outputs)


def _multiply(ys: Any, mask: Any) -> Any:
    """Multiplies outputs [B, T, U] by a mask [B, 1, U] or [T, B, 1, U], if any."""
    if mask is None:
        return ys
    if mask.ndim == 4:
        mask = mask[:, :, 0].swapaxes(0, 1)
    return ys * mask.astype(ys.dtype)


def make_model(config: Config, vocabulary: int) -> LanguageModel:
    """Returns the model of a config, the same for all of its lanes."""
    return LanguageModel(vocabulary, config.model, config.dropout.same_mask)


def init(model: LanguageModel, key: Key[Array, ""]) -> Any:
    """Returns initial parameters, in the ranges that the options set."""
    options = model.options
    params = model.init(key, jnp.zeros((1, 1), jnp.int32))
    flat = {}
    for number, (path, leaf) in enumerate(sorted(flatten_dict(params).items())):
        scale, of_softmax = options.init, path[-1] in SOFTMAX and len(path) == 2
        if of_softmax and options.init_embedding:
            scale = options.init_embedding * (path[-1] != "bias")
        drawn = options.init or (of_softmax and options.init_embedding)
        if drawn and any(name in path[-1] for name in DRAWN):
            at = jax.random.fold_in(key, number)
            leaf = scale * jax.random.uniform(at, leaf.shape, leaf.dtype, -1, 1)
            if options.two_biases and path[-1] == "bias" and not of_softmax:
                at = jax.random.fold_in(at, 1)
                leaf += scale * jax.random.uniform(at, leaf.shape, leaf.dtype, -1, 1)
        flat[path] = leaf
    return unflatten_dict(flat)


def sizes(options: Model) -> list[int]:
    """Returns the units of each layer."""
    return [options.units] * (options.layers - 1) + [options.top_units or options.units]


def cells(options: Model, **parent: Any) -> list[rdrop.Cell]:
    """Returns the cell of each layer; with `parent=None`, outside of any module."""
    dtype = jnp.dtype(options.dtype)
    return [
        CELLS[options.cell](units, dtype=dtype, **parent) for units in sizes(options)
    ]


def noises(configs: Sequence[Config]) -> list[Noise]:
    """Returns the noise of each lane of a structure; sites without noise are None.

    Raises:
        ConfigError: options of a site exclude one another, its rate is learned, or the
            layers have no mask that they could share.
    """

    def at(site):
        lanes = [getattr(config.dropout, site) for config in configs]
        if any(getattr(lane, "learn", False) for lane in lanes):
            raise ConfigError(
                f"dropout.{site}.learn: must be false for a language model."
            )
        return noise_of(lanes, site) if any(lane.rate for lane in lanes) else None

    first = configs[0]
    below = [at("inputs")] + [at("between")] * (first.model.layers - 1)
    of_layers = {site: at(site) for site in LAYER_SITES}
    if first.dropout.same_mask and of_layers["recurrent"] is None:
        raise ConfigError("dropout.same_mask: must be false without recurrent noise.")
    layers = tuple(rdrop.Dropout(inputs=noise, **of_layers) for noise in below)
    rates = np.array([config.dropout.words.rate for config in configs], np.float32)
    words = rdrop.Bernoulli(rates, batch=first.dropout.words.batch)
    together = Noise(
        words if rates.any() else None, layers, at("outputs"), at("projected")
    )
    return [
        jax.tree.map(lambda leaf, n=n: leaf[n], together) for n in range(len(configs))
    ]


def noisy_sites(noise: Noise) -> set[str]:
    """Returns the names of the sites with noise; outputs count if projected, too."""
    found = {name for layer in noise.layers for name, _ in layer.sites()}
    if noise.words is not None:
        found.add("words")
    if noise.outputs is not None or noise.projected is not None:
        found.add("outputs")
    return found


def drop_words(
    key: Key[Array, ""],
    noise: rdrop.Bernoulli,
    tokens: Int[Arrays, "B T"],
    vocabulary: int,
) -> Float[Array, "B T 1"]:
    """Returns a mask with one number for all occurrences of a word type [1].

    With batch="shared" the result is bitwise identical to `rdrop.embedding_dropout`.
    """
    rows = len(tokens) if noise.batch == "each" else 1
    drawn: Any = noise.draw(key, (rows, 1, vocabulary))
    mask = jnp.broadcast_to(drawn[:, 0], (len(tokens), vocabulary))
    return jnp.take_along_axis(mask, tokens, axis=1)[..., None]
