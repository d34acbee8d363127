"""The explorer: `python docs/make_explorer.py` writes docs/explorer/index.html again.

The page is one file without links to other files. Its methods come from
`rdrop.presets`: their arguments, the noise that they put at each site, and their
docstrings. The page draws the masks itself, from the key and this description; a test
in a browser compares them with `rdrop.draw`. Another test fails if the page is not the
generated one.
"""

import inspect
import itertools
import json
import re
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rdrop
from rdrop import presets
from rdrop.noise import DropConnect, Zoneout
from rdrop.sites import SITES

PAGE = Path(__file__).parent / "explorer" / "index.html"
PARTS = PAGE.parent / "parts"
SCRIPTS = ("masks.js", "cells.js", "picture.js", "page.js")
UNITS, TIME = 6, 40
CELLS = {
    "LSTM": (rdrop.LSTMCell(UNITS), "ifgo", "ifo"),
    "GRU": (rdrop.GRUCell(UNITS), "zrn", "zr"),
}
"""Cells by name, with the letters of all gates, and of the gates that are masked."""

KERAS = "{cell}(6, dropout={dropout}, recurrent_dropout={recurrent_dropout})"
ELSEWHERE = {
    "keras": ("Keras 3.8 and newer", "import keras\n\nkeras.layers." + KERAS),
    "keras3_0": ("Keras 3.0 to 3.7", "import keras\n\nkeras.layers." + KERAS),
    "keras2": ("Keras 2", "import tf_keras\n\ntf_keras.layers." + KERAS),
    "keras2_fused": (
        "Keras 2",
        "import tf_keras\n\ntf_keras.layers.{cell}(6, dropout={dropout})",
    ),
    "torch": (
        "PyTorch",
        "import torch\n\ntorch.nn.{cell}(6, 6, num_layers=2, dropout={dropout})",
    ),
    "zaremba": (
        "PyTorch",
        "import torch\n\nnoise = torch.nn.Dropout({rate})\n"
        "layer = torch.nn.{cell}(6, 6, num_layers=2, dropout={rate})\n"
        "ys = noise(layer(noise(xs))[0])",
    ),
    "tf1_variational": (
        "TensorFlow 1",
        "import tensorflow as tf\n\ntf.nn.rnn_cell.DropoutWrapper(\n"
        "    tf.nn.rnn_cell.{cell}Cell(6),\n"
        "    input_keep_prob=1 - {inputs},\n    state_keep_prob=1 - {state},\n"
        "    output_keep_prob=1 - {outputs},\n    variational_recurrent=True,\n"
        "    input_size=6,\n    dtype=tf.float32,\n)",
    ),
    "tf1_layernorm": (
        "TensorFlow 1",
        "import tensorflow as tf\n\n"
        "tf.contrib.rnn.LayerNormBasicLSTMCell(6, dropout_keep_prob=1 - {rate})",
    ),
    "allennlp": (
        "AllenNLP",
        "from allennlp.modules.augmented_lstm import AugmentedLstm\n\n"
        "AugmentedLstm(6, 6, recurrent_dropout_probability={recurrent_dropout})",
    ),
    "haste": (
        "Haste",
        "import haste_pytorch\n\n"
        "haste_pytorch.{cell}(6, 6, dropout={dropout}, zoneout={zoneout})",
    ),
}
"""Code of the library that has a method, by the name of the method."""


def make_page() -> str:
    """Returns the text of the page."""
    parts = {
        "style": (PARTS / "style.css").read_text(),
        "data": json.dumps(data(), separators=(",", ":"), ensure_ascii=False),
        "script": "\n".join((PARTS / name).read_text() for name in SCRIPTS),
    }
    page = (PARTS / "page.html").read_text()
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text.strip())
    return page


def data() -> dict[str, Any]:
    """Returns all that the page knows of rdrop."""
    names = dict.fromkeys(name.split()[0] for name in presets.EXAMPLES)
    steps, units = np.meshgrid(np.arange(TIME), np.arange(UNITS), indexing="ij")
    return {
        "units": UNITS,
        "xs": np.sin(1 + steps * (1 + units / 3)).round(2).tolist(),
        "start": [0.9, -0.8, 0.7, -0.9, 0.8, -0.7],
        "sites": {
            name: {"stream": site.stream, "arrow": site.arrow}
            for name, site in SITES.items()
        },
        "cells": {name: _cell(name) for name in CELLS},
        "methods": [_with_forms(_preset(name)) for name in names],
    }


def dropouts(method: dict, options: dict, rates: dict) -> tuple[rdrop.Dropout, ...]:
    """Returns the `Dropout` of each layer that a method's code makes.

    Args:
        method: as `data` has it.
        options: the value of each of its options.
        rates: the value of each of its rates.
    """
    shown = {name: repr(value) for name, value in (options | rates).items()}
    made = eval(method["call"].format(**shown), {"rdrop": rdrop})
    return made if isinstance(made, tuple) else (made,)


def _preset(name: str) -> dict[str, Any]:
    """Returns the arguments and the docstring of a preset."""
    function = getattr(presets, name)
    rates, options = [], {}
    for argument, hint in typing.get_type_hints(function).items():
        if hint is Any:
            rates.append(argument)
        elif hint is bool:
            options[argument] = [False, True]
        elif typing.get_origin(hint) is typing.Literal:
            options[argument] = list(typing.get_args(hint))
    parameters = inspect.signature(function).parameters
    for argument, values in options.items():
        values.sort(key=lambda value: value != parameters[argument].default)
    stacked = ", layers=2" if "layers" in parameters else ""
    arguments = ", ".join(f"{each}={{{each}}}" for each in (*rates, *options))
    summary, *paragraphs = _paragraphs(function)
    about, _, label = summary.rpartition(": ")
    label = label if label.endswith("al.") else label.removesuffix(".")
    is_paper = re.match(r"[A-Z]\. ", paragraphs[-1])
    return {
        "name": name,
        "label": label if about else name,
        "group": "papers" if is_paper else "libraries",
        "about": about or label,
        "equation": _equation(paragraphs[0]),
        "docstring": "\n\n".join(" ".join(p.split()) for p in paragraphs),
        "source": " ".join(paragraphs[-1].split()) if is_paper else "",
        "call": f"rdrop.presets.{name}({arguments}{stacked})",
        "rates": rates,
        "options": options,
    }


def _with_forms(method: dict) -> dict[str, Any]:
    """Adds what the method is with each of its options, and at which rates it differs.

    A form is the noise of each layer. It holds for some values of the options, and, if
    `zero` is not null, if that rate is zero.
    """
    forms = []
    for values in itertools.product(*method["options"].values()):
        options = dict(zip(method["options"], values, strict=True))
        usual = _layers(method, options)
        forms.append({"options": options, "zero": None, "layers": usual})
        for zero in method["rates"]:
            if (layers := _layers(method, options, zero)) != usual:
                forms.append({"options": options, "zero": zero, "layers": layers})
    library, code = ELSEWHERE.get(method["name"], ("", ""))
    cells = [cell for cell in CELLS if _has_sites(cell, forms)]
    return method | {"forms": forms, "library": library, "code": code, "cells": cells}


def _layers(method: dict, options: dict, zero: str = "") -> list[list[dict]]:
    """Returns the noise of each layer, with the place of its rate among all rates.

    The rates are all different, so that each is found again in the noise that has it.
    """
    rates = {name: (n + 1) / 16 for n, name in enumerate(method["rates"])}
    if zero:
        rates[zero] = 0.0
    places = {rate: n for n, rate in enumerate(rates.values())}
    made = dropouts(method, options, rates)
    return [[_noise(*used, places) for used in dropout.sites()] for dropout in made]


def _noise(site: str, noise: Any, places: dict) -> dict[str, Any]:
    """Returns the description of the noise at a site."""
    kind = type(noise).__name__
    common = {"site": site, "kind": kind, "rate": places[noise.rate], "per": noise.per}
    if isinstance(noise, DropConnect):
        return common
    shared = {name: getattr(noise, name) for name in ("gates", "batch", "units")}
    scale = {} if isinstance(noise, Zoneout) else {"scale": noise.scale}
    return common | shared | scale


def _has_sites(cell: str, forms: list) -> bool:
    sites = CELLS[cell][0].sites(UNITS)
    layers = [layer for form in forms for layer in form["layers"]]
    return all(noise["site"] in sites for layer in layers for noise in layer)


def _cell(name: str) -> dict[str, Any]:
    """Returns the sites of a cell, and weights with which it holds its state."""
    cell, letters, masked = CELLS[name]
    rng = np.random.default_rng(0)
    bias = {"i": -4.0, "f": 5.0, "g": 0.0, "o": 1.0, "z": 5.0, "r": 0.0, "n": 0.0}
    # An exploding state would make z 0 or 1 at random: it reads x only.
    reads_h = np.repeat([letter != "z" for letter in letters], UNITS)
    params = {
        "kernel": rng.normal(0, 0.25, (UNITS, UNITS * len(letters))),
        "recurrent_kernel": rng.normal(0, 0.15, (UNITS, len(reads_h))) * reads_h,
        "bias": np.repeat([bias[letter] for letter in letters], UNITS),
    }
    sites = {
        site: {"gates": size.gates, "units": size.units, "rows": size.rows}
        for site, size in cell.sites(UNITS).items()
    }
    return {
        "letters": letters,
        "masked": masked,
        "sites": sites,
        "params": jax.tree.map(lambda values: values.round(2).tolist(), params),
    }


def _paragraphs(function) -> list[str]:
    """Returns the paragraphs of a docstring."""
    return (inspect.getdoc(function) or "").split("\n\n")


def _equation(text: str) -> str:
    """Returns the equations with which a docstring begins, if it does."""
    first = re.split(r"\.\s|\n(?=Each step)", text)[0]
    first = re.sub(r"\n(?!h_t = )", " ", first)
    return first if " = " in first else ""


if __name__ == "__main__":
    PAGE.write_text(make_page())
