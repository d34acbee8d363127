"""Config: what one language model is, and how it is trained, as data.

The files are TOML as those of `experiments.config`, of which the kinds of noise come;
any field may have several values, which `experiments.axes` makes lanes of.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, with_config

from experiments.config import (
    STRICT,
    Count,
    Noise,
    NotNegative,
    Positive,
    Rate,
    StateNoise,
    WeightNoise,
    check_sites,
)
from experiments.config import SecondPass as AnySecondPass
from experiments.network import SITES

SHARED = ("words", *SITES)  # what two passes may share


def _has_a_top(model: "Model") -> "Model":
    if model.top_units and model.layers == 1:
        raise ValueError("top_units must be 0 where there is one layer")
    return model


def _known_sites(names: str) -> str:
    return check_sites(names, SHARED)


@with_config(STRICT)
@dataclass(frozen=True)
class Task:
    """The text."""

    name: Literal["words", "characters"] = "words"
    """What a token is. Of lines with an end of line each, as in the Penn Treebank."""
    data: str = ""
    """A folder with three text files, which have train, valid and test in their names:
    ptb.train.txt, ptb.valid.txt and ptb.test.txt, say."""


@with_config(STRICT)
@dataclass(frozen=True)
class Model:
    """An embedding, recurrent layers, and a softmax over the vocabulary."""

    cell: Literal["lstm", "layernorm_lstm", "gru", "simple", "mingru"] = "lstm"
    """The recurrence."""
    embedding: Count = 200
    """Size of the vector of a token."""
    units: Count = 200
    """Units of each layer."""
    top_units: Annotated[int, Field(ge=0)] = 0
    """Units of the last layer; 0: as many as the others have."""
    layers: Count = 2
    """Layers of the stack."""
    tied: bool = False
    """Whether the softmax has the embedding for its weights; a projection without bias
    leads to its size where the last layer has another one."""
    init: NotNegative = 0.1
    """Every parameter begins uniform in [-init, init]; 0: kernels outside the cells as
    Glorot has them, inside as their cells do."""
    init_embedding: NotNegative = 0.0
    """The same, of embedding and softmax alone, whose bias then begins at 0; 0: no
    different."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in; parameters and softmax are float32."""


@with_config(STRICT)
@dataclass(frozen=True)
class Words:
    """Whole word types are dropped: all occurrences of one in a window."""

    rate: Rate = 0.0
    """Rate, in [0, 1]; at 0 throughout, none are."""
    batch: Literal["each", "shared"] = "shared"
    """Whether each row of a batch drops its own types."""


@with_config(STRICT)
@dataclass(frozen=True)
class Dropout:
    """Noise at each site; in every layer, but for the first four."""

    words: Words = field(default_factory=Words)
    """Rows of the embedding."""
    inputs: Noise = field(default_factory=Noise)
    """x_t into the first layer."""
    between: Noise = field(default_factory=Noise)
    """x_t into every other layer."""
    outputs: Noise = field(default_factory=Noise)
    """y_t of the last layer, into the softmax."""
    input_weights: WeightNoise = field(default_factory=WeightNoise)
    """The input kernel W."""
    recurrent: Noise = field(default_factory=Noise)
    """h_{t-1} into the cell, the horizontal arrows."""
    update: Noise = field(default_factory=Noise)
    """The candidate that is added to the memory."""
    gates: Noise = field(default_factory=Noise)
    """The gates after their sigmoid."""
    cell_state: StateNoise = field(default_factory=StateNoise)
    """The memory c_t."""
    hidden_state: StateNoise = field(default_factory=StateNoise)
    """The h_t that is handed on."""
    recurrent_weights: WeightNoise = field(default_factory=WeightNoise)
    """The recurrent kernel U."""
    held: Literal["window", "epoch"] = "window"
    """How long a mask with per = "sequence" is held, and words and weights dropped."""


@with_config(STRICT)
@dataclass(frozen=True)
class SecondPass(AnySecondPass):
    """A second pass over each window, and the price of its difference to the first.

    Both begin with the carry of the first.
    """

    shares: Annotated[str, AfterValidator(_known_sites)] = ""
    """Sites, with spaces between them, whose masks are those of the first pass; inputs
    are those of all layers."""


@with_config(STRICT)
@dataclass(frozen=True)
class Train:
    """How the model is trained."""

    epochs: Count = 13
    """Passes over the training text."""
    batch: Count = 20
    """Rows that the training text is cut into, read side by side."""
    window: Count = 20
    """Steps back through which a gradient goes; the carry is handed on."""
    vary_window: bool = False
    """Whether a window's length is drawn as in AWD-LSTM: about `window`, half of it for
    one in twenty, with the learning rate in proportion."""
    per: Literal["token", "row"] = "row"
    """What the loss is a mean over. Per row, the losses of a window's steps are summed,
    so that gradients, and what they are clipped at, grow with the window."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Plain gradient descent, or Adam."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean gradient in Adam."""
    learning_rate: Positive = 1.0
    """Learning rate at the start."""
    hold: Count = 4
    """Epochs before the learning rate decays."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor of the learning rate: each epoch after `hold`, or with `patience`."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Where not 0: the learning rate decays only after so many epochs without a lower
    validation loss, and not by the epoch."""
    averaging: Literal["none", "nt_asgd"] = "none"
    """Whether parameters are averaged from the epoch at which validation loss is not
    lower than it was `non_monotone` epochs before (NT-ASGD)."""
    non_monotone: Count = 5
    """Epochs that NT-ASGD looks back."""
    clip: NotNegative = 5.0
    """Norm that the gradients of all parameters together are clipped at; 0: none."""
    weight_decay: NotNegative = 0.0
    """L2 penalty: times the parameters, added to the clipped gradients."""
    activation: NotNegative = 0.0
    """AR: times the mean square of the last layer's outputs, after their dropout."""
    temporal_activation: NotNegative = 0.0
    """TAR: times the mean square of how they change in a step, before it."""
    keep: Literal["last", "best"] = "last"
    """Whose parameters are kept: the last epoch's, or of that with the lowest
    validation loss."""
    evaluation_batch: Count = 20
    """Rows that the other texts are cut into for their losses; no token is left out."""


@with_config(STRICT)
@dataclass(frozen=True)
class Config:
    """One language model."""

    SEEDS: ClassVar[int] = 1  # of a sweep that does not say

    seeds: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seeds of every setting: one number is how many, several are which."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Root of all random numbers."""
    task: Task = field(default_factory=Task)
    model: Annotated[Model, AfterValidator(_has_a_top)] = field(default_factory=Model)
    dropout: Dropout = field(default_factory=Dropout)
    second_pass: SecondPass = field(default_factory=SecondPass)
    train: Train = field(default_factory=Train)
