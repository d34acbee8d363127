"""Noise sites: the one table of the places at which noise enters a recurrence.

Everything that depends on the set of sites derives from `SITES`: the fields of
`Dropout` and `Masks`, the kinds of noise that a site takes, key streams, tables,
pictures and config files. The order of the table is the order of all of them.

References:
    [1] Pham et al. Dropout improves recurrent neural networks for handwriting
        recognition. ICFHR 2014. arXiv:1312.4569.
    [2] Zaremba, Sutskever, Vinyals. Recurrent neural network regularization. 2014.
        arXiv:1409.2329.
    [3] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
    [4] Semeniuta, Severyn, Barth. Recurrent dropout without memory loss. COLING 2016.
        arXiv:1603.05118.
    [5] Cheng et al. An exploration of dropout with LSTMs. Interspeech 2017.
    [6] Moon et al. RnnDrop: a novel dropout for RNNs in ASR. ASRU 2015.
    [7] Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
        activations. ICLR 2017. arXiv:1606.01305.
    [8] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182.
    [9] Wan et al. Regularization of neural networks using DropConnect. ICML 2013.
"""

from typing import Literal, NamedTuple

from jax.sharding import PartitionSpec

MULTIPLIERS = ("bernoulli", "gaussian", "concrete")


class NoiseSite(NamedTuple):
    """One row of the table.

    Attributes:
        stream: key stream of the site: "inputs" for the vertical arrows of the unrolled
            network, "recurrent" for the horizontal ones.
        symbol: label in pictures; empty if the arrow is labelled already.
        arrow: direction and meaning, for tables.
        kinds: names of the kinds of noise that the site takes, the usual one first.
        place: centre of the site's strip in pictures, relative to the centre of its
            cell: to the right in units of the distance between cells, upwards in data
            units.
        text: one sentence for documentation.
        on_weights: whether the mask multiplies a kernel, once per forward pass.
        per_gate: whether several gates read the site, each with its own mask if asked.
        keras: argument of Keras' layers that sets the rate here; empty if none does.
    """

    stream: Literal["inputs", "recurrent"]
    symbol: str
    arrow: str
    kinds: tuple[str, ...]
    place: tuple[float, float]
    text: str
    on_weights: bool = False
    per_gate: bool = False
    keras: str = ""


SITES: dict[str, NoiseSite] = {
    "inputs": NoiseSite(
        "inputs",
        symbol="",
        arrow="↑ x into W",
        kinds=MULTIPLIERS,
        place=(0.0, -1.75),
        text="multiplies x_t before the input kernel [1, 2, 3]; `dropout` in Keras.",
        per_gate=True,
        keras="dropout",
    ),
    "outputs": NoiseSite(
        "inputs",
        symbol="",
        arrow="↑ y",
        kinds=MULTIPLIERS,
        place=(0.0, 1.75),
        text="multiplies y_t on its way up, not h_t as the next step sees it [1, 2].",
    ),
    "input_weights": NoiseSite(
        "inputs",
        symbol="W",
        arrow="↑ W",
        kinds=("dropconnect", "weight_noise"),
        place=(0.0, -1.75),
        text="drops weights of the input kernel [9], or adds noise to them.",
        on_weights=True,
        per_gate=True,
    ),
    "recurrent": NoiseSite(
        "recurrent",
        symbol="h",
        arrow="→ h into U",
        kinds=MULTIPLIERS,
        place=(-0.5, 0.0),
        text=(
            "multiplies h_{t-1} before the recurrent kernel, never the leak path of a "
            "GRU [3]; `recurrent_dropout` in Keras."
        ),
        per_gate=True,
        keras="recurrent_dropout",
    ),
    "update": NoiseSite(
        "recurrent",
        symbol="g",
        arrow="→ g into c",
        kinds=MULTIPLIERS,
        place=(0.0, -0.1),
        text=(
            "multiplies the candidate (g_t, or n_t of a GRU) before it is added to the "
            "memory [4]."
        ),
    ),
    "gates": NoiseSite(
        "recurrent",
        symbol="i, f, o",
        arrow="→ i, f, o",
        kinds=MULTIPLIERS,
        place=(0.0, 0.35),
        text=(
            "multiplies the gates after their sigmoid, but not the candidate [5]. "
            "Inverted multipliers compound over time if a gate keeps the state."
        ),
        per_gate=True,
    ),
    "cell_state": NoiseSite(
        "recurrent",
        symbol="c",
        arrow="→ c",
        kinds=("zoneout", *MULTIPLIERS, "additive"),
        place=(0.0, -0.55),
        text=(
            "multiplies c_t [6], or mixes it with c_{t-1}; h_t is then made from the "
            "memory before mixing [7]; or adds noise to it. Inverted multipliers "
            "compound over time."
        ),
    ),
    "hidden_state": NoiseSite(
        "recurrent",
        symbol="h",
        arrow="→ h carried over",
        kinds=("zoneout", *MULTIPLIERS, "additive"),
        place=(0.5, 0.0),
        text=(
            "mixes h_t with h_{t-1} [7], or adds noise to it, and the result is also "
            "the output; or multiplies the h_t that the next step sees, including the "
            "leak path of a GRU, but not y_t. Inverted multipliers compound there, as "
            "in Keras 3.0 to 3.7."
        ),
    ),
    "recurrent_weights": NoiseSite(
        "recurrent",
        symbol="U",
        arrow="→ U",
        kinds=("dropconnect", "weight_noise"),
        place=(-0.5, 0.0),
        text="drops weights of the recurrent kernel [8], or adds noise to them.",
        on_weights=True,
        per_gate=True,
    ),
}


class Site(NamedTuple):
    """Size of a noise site in a given cell.

    Attributes:
        gates: number of gates that read it.
        units: number of units of the mask.
        rows: rows of the kernel, for sites on weights; None elsewhere.
        is_complex: whether the units are complex numbers; no real noise is added to
            them.
        spec: how a mask (B, G, U) is sharded over explicit axes of the mesh, or None.
    """

    gates: int
    units: int
    rows: int | None = None
    spec: PartitionSpec | None = None
    is_complex: bool = False
