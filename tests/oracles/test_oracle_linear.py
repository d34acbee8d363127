"""Linear recurrences and the sLSTM against numbers from other people's code.

The code was run once, in float64, with the parameters and inputs that are made here,
and two steps of its outputs are written down:

    LRU       NicolasZucchet/minimal-LRU at bbd71b1, `LRU`
    S5        lindermanlab/S5 at 3c18fdb, `S5SSM`, zero-order hold, conjugate symmetry
    RG-LRU    google-deepmind/recurrentgemma at 2efa84d, `RGLRU`, accumulating in
              float64, after the first step of a segment
    sLSTM     NX-AI/xlstm at 032a6fb, `slstm_forward_pointwise`
    minimal   the log-space branches of BorealisAI/minRNNs at ff52e9d, without their
              output layers, written again in torch
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import rdrop
from rdrop.cells import positive

TIME, UNITS, STATE = 6, 3, 4
AT = np.array([1, 5])


def numbers(seed, *shape):
    return np.sin(seed + 1.7 * np.arange(np.prod(shape))).reshape(shape)


XS = numbers(0, 1, TIME, UNITS)
OF_B = np.concatenate([numbers(1, STATE, UNITS), numbers(2, STATE, UNITS)]).T
OF_C = np.concatenate([numbers(3, UNITS, STATE), -numbers(4, UNITS, STATE)], axis=1).T
DIAGONAL = np.stack([numbers(seed, STATE) for seed in (6, 7, 8)])
IN_BOTH = {"kernel": OF_B, "output_kernel": OF_C, "skip": numbers(5, UNITS)}
CASES = {
    "lru": (
        rdrop.LRUCell(UNITS, state=STATE),
        IN_BOTH | {"diagonal": DIAGONAL - [[1], [0], [1]]},
        [
            [-0.6679411337548687, -0.40793149634211556, 1.1809726901986382],
            [-1.1060305787941294, -0.7739743720487894, -1.7035121372157835],
        ],
    ),
    "s5": (
        rdrop.S5Cell(UNITS, state=STATE),
        IN_BOTH | {"diagonal": DIAGONAL * [[1], [3], [1]] - [[1.5], [0], [1]]},
        [
            [-0.6492873344155116, -1.1056455000581407, -0.050862716765999294],
            [-0.33919042197967636, -0.14975477081223565, -1.3849623845457801],
        ],
    ),
    "slstm": (
        rdrop.SLSTMCell(UNITS),
        {
            "kernel": 3 * numbers(1, UNITS, 4 * UNITS),
            "recurrent_kernel": 3 * numbers(2, UNITS, 4 * UNITS),
            "bias": numbers(3, 4 * UNITS),
        },
        [
            [0.06879248968196129, 0.9985477078311885, -0.3130896960235018],
            [-0.000732070152890514, -0.28607395347662345, -0.9543097531908492],
        ],
    ),
    "min_gru": (
        rdrop.MinGRUCell(UNITS, activation=positive),
        {
            "kernel": 3 * numbers(1, UNITS, 2 * UNITS),
            "bias": numbers(2, 2 * UNITS),
        },
        [
            [0.5828155212856913, 0.11371199744676172, 0.30702171077349516],
            [0.2685049071133375, 0.7001643958896456, 2.559988484576138],
        ],
    ),
    "min_lstm": (
        rdrop.MinLSTMCell(UNITS, activation=positive),
        {
            "kernel": 3 * numbers(1, UNITS, 3 * UNITS),
            "bias": numbers(2, 3 * UNITS),
        },
        [
            [2.4528024349861473, 1.1544951498221394, 0.07003670883115573],
            [2.358580920608214, 2.9233914266371808, 2.555866376721619],
        ],
    ),
}


def run(cell, params, xs, carry=None):
    rnn = rdrop.RNN(cell.clone(param_dtype=jnp.float64))
    params = {"params": {name: jnp.asarray(value) for name, value in params.items()}}
    call = jax.jit(lambda params, xs: rnn.apply(params, xs, initial_carry=carry)[1])
    return call(params, jnp.asarray(xs))[0, AT]


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_other_code(name):
    cell, params, expected = CASES[name]
    assert_close(run(cell, params, XS), jnp.asarray(expected))


def test_an_rg_lru_is_that_of_griffin():
    """With an identity for the candidate, which is x itself there."""
    units = 4
    gates = numbers(1, units, units), numbers(3, units, units), np.eye(units)
    biases = numbers(2, units), numbers(4, units), np.zeros(units)
    params = {
        "kernel": np.concatenate(gates, axis=1),
        "bias": np.concatenate(biases),
        "decay": numbers(6, units) - 2,
    }
    xs, carry = numbers(0, 1, TIME, units), jnp.asarray(numbers(9, 1, units))
    expected = [
        [
            0.3498073918759491,
            0.15842861356543692,
            -0.4057900616534712,
            0.0962269719286038,
        ],
        [
            0.4958274957755074,
            -0.46028015182334037,
            -0.8184632846404198,
            0.6143365938838756,
        ],
    ]
    actual = run(rdrop.RGLRUCell(units), params, xs, carry)
    assert_close(actual, jnp.asarray(expected))
