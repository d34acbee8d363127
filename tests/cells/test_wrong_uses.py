"""Wrong uses that people bring along from other libraries: messages say what to write.

Each message names the argument, what was expected, and what came.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import rdrop
from rdrop import nnx as rnnx

pytestmark = pytest.mark.usefixtures("unchecked")
KEY = jax.random.key(0)
XS = jnp.ones((2, 4, 3), jnp.float32)
NOISE = rdrop.Dropout(recurrent=rdrop.Bernoulli(0.5))
CELL = rdrop.LSTMCell(8)
RNN = rdrop.RNN(CELL)
LAYERS = {
    "RNN": RNN,
    "Bidirectional": rdrop.Bidirectional(CELL.clone(), CELL.clone()),
    "Stack": rdrop.Stack([rdrop.RNN(CELL.clone())]),
}


def nnx_cell(**options):
    return rnnx.LSTMCell(3, 8, **{"rngs": nnx.Rngs(0), **options})


NNX_LAYERS = {
    "RNN": lambda: rnnx.RNN(nnx_cell()),
    "Bidirectional": lambda: rnnx.Bidirectional(nnx_cell(), nnx_cell()),
    "Stack": lambda: rnnx.Stack([rnnx.RNN(nnx_cell())]),
}


@pytest.fixture(scope="module")
def params():
    return RNN.init(KEY, XS)


def refuse(error, *words):
    """Checks that an error of a kind is raised, whose message has these parts."""
    return pytest.raises(error, match=".*".join(words))


NO_FLAG = "there is no training flag: pass `keys` in training"
NOISE_IS_A_VALUE = r"rdrop.Dropout\(inputs=.*, or rdrop.presets.keras\("
OF_A_CALL = {
    "training": NO_FLAG,
    "train": NO_FLAG,
    "deterministic": NO_FLAG,
    "recurrent_dropout": NOISE_IS_A_VALUE,
    "mask": "pass `lengths`, the number of valid steps",
    "seq_lengths": "the argument is called `lengths`",
    "initial_state": "Did you mean `initial_carry`",
    "key": r"pass `keys`, which rdrop.stream_keys\(key\) makes",
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("argument", OF_A_CALL)
def test_arguments_of_other_layers_are_explained(name, argument):
    words = f"{name} has no argument `{argument}`", OF_A_CALL[argument]
    with refuse(TypeError, *words):
        LAYERS[name].init(KEY, XS, **{argument: None})
    with refuse(TypeError, *words):
        NNX_LAYERS[name]()(XS, **{argument: None})


@pytest.mark.parametrize("argument", ["training", "deterministic", "key"])
def test_arguments_of_other_cells_are_explained(params, argument):
    carry, x = (jnp.zeros((2, 8), jnp.float32),) * 2, XS[:, 0]
    words = f"LSTMCell has no argument `{argument}`", OF_A_CALL[argument]
    with refuse(TypeError, *words):
        CELL.apply(params, carry, x, **{argument: None})
    with refuse(TypeError, *words):
        nnx_cell()(carry, x, **{argument: None})


OF_A_CONSTRUCTOR = [
    ("LSTMCell", "recurrent_dropout", NOISE_IS_A_VALUE),
    ("LSTMCell", "features", "the size of a cell is called `units`"),
    ("LSTMCell", "hidden_size", "the size of a cell is called `units`"),
    ("LSTMCell", "kernel_regularizer", "it has units, dtype, param_dtype, dropout"),
    ("LSTMCell", "kernel_initializer", "the argument is called `kernel_init`"),
    ("LSTMCell", "unit_forget_bias", "the argument is called `forget_bias`"),
    ("LSTMCell", "gate_fn", "the argument is called `recurrent_activation`"),
    ("LSTMCell", "proj_size", "the argument is called `projection`"),
    ("RNN", "dropout", NOISE_IS_A_VALUE),
    ("RNN", "go_backwards", "the argument is called `reverse`"),
    ("RNN", "batch_first", "the argument is called `time_major`"),
    ("RNN", "return_sequences", "returns the final carry and all outputs"),
    ("RNN", "time_mayor", "Did you mean `time_major`"),
    ("Bidirectional", "merge_mode", "outputs of both directions are concatenated"),
    ("Bidirectional", "recurrent_dropout", NOISE_IS_A_VALUE),
]


@pytest.mark.parametrize(("name", "argument", "advice"), OF_A_CONSTRUCTOR)
def test_arguments_of_other_constructors_are_explained(name, argument, advice):
    first = () if name == "LSTMCell" else (CELL,)
    words = f"{name} has no argument `{argument}`", advice
    with refuse(TypeError, *words):
        getattr(rdrop, name)(*first, **{argument: 8})
    if name != "LSTMCell":
        with refuse(TypeError, *words):
            getattr(rnnx, name)(nnx_cell(), **{argument: 8})
    elif argument == "recurrent_dropout":
        with refuse(TypeError, *words):
            nnx_cell(recurrent_dropout=0.5)


@pytest.mark.parametrize("argument", ["dropout", "recurrent_dropout"])
def test_keras_names_of_sites_are_translated(argument):
    site = {"dropout": "inputs", "recurrent_dropout": "recurrent"}[argument]
    words = f"`{argument}` is the site `{site}`", r"rdrop.presets.keras\("
    with refuse(TypeError, *words):
        rdrop.Dropout(**{argument: 0.5})


LINEN_CELL = "must be a linen cell of rdrop, such as rdrop.LSTMCell"
NNX_CELL = "must be an nnx cell of rdrop, such as rdrop.nnx.LSTMCell"
LAYER = r"must be a layer, such as RNN\(LSTMCell\(64\)\), got"
LIST = r"`layers` must be one list, Stack\(\[RNN\(...\), RNN\(...\)\]\), got"
NOT_MODULES = {
    "RNN of a size": (lambda: rdrop.RNN(64), f"`cell` {LINEN_CELL}.*got 64"),
    "RNN of a class": (lambda: rdrop.RNN(rdrop.LSTMCell), "got the class LSTMCell"),
    "RNN of a layer": (lambda: rdrop.RNN(RNN), f"{LINEN_CELL}.*got rdrop.linen.lay"),
    "RNN of flax": (lambda: rdrop.RNN(nn.LSTMCell(8)), f"{LINEN_CELL}.*got flax.linen"),
    "RNN of nnx": (lambda: rdrop.RNN(nnx_cell()), f"{LINEN_CELL}.*got rdrop.nnx.cells"),
    "nnx RNN of a size": (lambda: rnnx.RNN(64), f"`cell` {NNX_CELL}.*got 64"),
    "nnx RNN of linen": (lambda: rnnx.RNN(CELL), f"{NNX_CELL}.*got rdrop.linen.cells"),
    "one direction": (lambda: rdrop.Bidirectional(CELL), f"`backward` {LINEN_CELL}"),
    "layers as directions": (
        lambda: rdrop.Bidirectional(RNN, RNN.clone()),
        f"`forward` {LINEN_CELL}.*got rdrop.linen.layers.RNN",
    ),
    "one direction of nnx": (
        lambda: rnnx.Bidirectional(nnx_cell()),
        f"`backward` {NNX_CELL}.*got None",
    ),
    "Stack of cells": (lambda: rdrop.Stack([CELL]), rf"`layers\[0\]` {LAYER}"),
    "Stack of layers apart": (lambda: rdrop.Stack(RNN, RNN.clone()), LIST),
    "Stack of one layer": (lambda: rdrop.Stack(RNN), LIST),
    "Stack of nnx": (lambda: rdrop.Stack([NNX_LAYERS["RNN"]()]), LAYER),
    "nnx Stack of cells": (lambda: rnnx.Stack([nnx_cell()]), rf"`layers\[0\]` {LAYER}"),
    "nnx Stack of layers apart": (lambda: rnnx.Stack(*[NNX_LAYERS["RNN"]()] * 2), LIST),
    "nnx Stack of linen": (lambda: rnnx.Stack([RNN]), rf"{LAYER} rdrop.linen.layers"),
    "too many values": (
        lambda: rdrop.RNN(CELL, False, False, "plain", 5),
        "RNN has the arguments cell, time_major, reverse, loop, got",
    ),
}


@pytest.mark.parametrize("name", NOT_MODULES)
def test_modules_of_another_kind_are_named(name):
    call, message = NOT_MODULES[name]
    with refuse(TypeError, message):
        call()


A_DROPOUT = "`dropout` must be an rdrop.Dropout"


@pytest.mark.parametrize(
    ("dropout", "got"),
    [
        (0.5, "got 0.5"),
        (nn.Dropout(0.5), "got flax.linen"),
        (rdrop.Bernoulli(0.5), "got rdrop.noise.kinds.Bernoulli"),
        ([NOISE, NOISE], "got list of rdrop.dropout.Dropout, rdrop.dropout.Dropout"),
    ],
    ids=["number", "flax", "kind", "list"],
)
def test_noise_of_another_kind_is_named(params, dropout, got):
    calls = [
        lambda: rdrop.LSTMCell(8, dropout=dropout),
        lambda: nnx_cell(dropout=dropout),
        lambda: RNN.apply(params, XS, dropout),
    ]
    for call in calls:
        with refuse(TypeError, A_DROPOUT, got):
            call()


@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell"])
def test_a_module_that_is_called_without_apply_says_so(name):
    module = LAYERS.get(name, CELL)
    arguments = (XS,) if name in LAYERS else ((XS[:, 0], XS[:, 0]), XS[:, 0])
    words = f"{name} must be called by `apply`", r"module.apply\(params, ...\)"
    with refuse(RuntimeError, *words):
        module(*arguments)
    with refuse(RuntimeError, *words):
        module(*arguments, training=True)


STREAMS = "`rngs` must have the streams `inputs` and `recurrent`, or `dropout`, or a"
WRONG_RNGS = {
    "no params": ({"dropout": 0}, "`rngs` must have the stream `params`.*got dropout"),
    "no noise": ({"params": 0}, f"{STREAMS}.*got params"),
    "one stream": ({"params": 0, "inputs": 1}, f"{STREAMS}.*got inputs, params"),
    "one of two": (
        {"params": 0, "recurrent": 1, "dropout": 2},
        f"{STREAMS}.*got dropout, params, recurrent",
    ),
}


@pytest.mark.parametrize("name", WRONG_RNGS)
def test_streams_that_are_missing_are_named(name):
    seeds, message = WRONG_RNGS[name]
    with refuse(ValueError, message):
        nnx_cell(dropout=NOISE, rngs=nnx.Rngs(**seeds))


def test_keys_of_another_kind_are_named(params):
    stream = r"`keys` must be StreamKeys, made by rdrop.stream_keys\(key\), got"
    with refuse(TypeError, stream, "PRNGKeyArray"):
        RNN.apply(params, XS, NOISE, KEY)
    with refuse(TypeError, stream, "flax.nnx"):
        RNN.apply(params, XS, NOISE, nnx.Rngs(0))
    with refuse(TypeError, "`rngs` must be nnx.Rngs, got", "PRNGKeyArray"):
        nnx_cell(rngs=KEY)
    with refuse(TypeError, "no argument `rngs`", "nnx.Rngs to an nnx layer as `keys`"):
        NNX_LAYERS["RNN"]()(XS, NOISE, rngs=nnx.Rngs(0))


def test_masks_of_a_wrong_shape_are_told_the_right_one(params):
    masks = rdrop.Masks(recurrent=jnp.ones((2, 8)))
    shapes = r"\(B, G, U\) = \(2, 4, 8\), or \(T, B, G, U\) = \(4, 2, 4, 8\)"
    with refuse(
        ValueError, "`masks.recurrent` must have shape", shapes, r"got \(2, 8\)"
    ):
        RNN.apply(params, XS, masks)


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_carry_and_input_in_the_order_of_keras_are_noticed(params, face):
    """Keras calls a cell with the inputs first."""
    carry = (jnp.zeros((2, 8), jnp.float32),) * 2
    with refuse(ValueError, r"`x` must be an array \[B, D\], got tuple of"):
        if face == "linen":
            CELL.apply(params, XS[:, 0], carry)
        else:
            nnx_cell()(XS[:, 0], carry)


def test_no_carry_is_noticed(params):
    with refuse(ValueError, r"`carry` must be a tuple \(c, h\)", "got None"):
        CELL.apply(params, None, XS[:, 0])
