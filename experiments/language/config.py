"""Config: one language model and its training as data.

The files are TOML, with the kinds of noise that `experiments.config` has; any
field may have several values, from which `experiments.axes` makes lanes.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, with_config

from experiments.config import (
    DESCRIBED,
    SITES,
    CellName,
    Count,
    CountOrNone,
    Noise,
    NotNegative,
    Positive,
    Rate,
    Seed,
    check_sites,
    site_field,
)
from experiments.config import SecondPass as SecondPassOfBatches

SHARED = ("words", *SITES)  # sites whose masks two passes may share


def _known_sites(names: str) -> str:
    return check_sites(names, SHARED)


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Task:
    """The text."""

    name: Literal["words", "characters"] = "words"
    """What a token is; each end of line is a token too, as in the Penn Treebank."""
    data: str = ""
    """A folder with three text files that have train, valid and test between the dots
    of their names, such as ptb.train.txt, ptb.valid.txt and ptb.test.txt."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Model:
    """An embedding, recurrent layers, and a softmax over the vocabulary."""

    cell: CellName = "lstm"
    """The recurrence; gru_reset_before is the GRU of Cho et al. 2014, and gru that of
    Keras and PyTorch."""
    embedding: CountOrNone = 200
    """Size of the vector of a token; 0: one-hot vectors."""
    units: Count = 200
    """Units of each layer."""
    top_units: CountOrNone = 0
    """Units of the last layer; 0: as many as the other layers have."""
    layers: Count = 2
    """Layers of the stack."""
    tied: bool = False
    """Whether embedding and softmax share weights; if the last layer has another size
    than the embedding, a projection without bias stands between them."""
    init: NotNegative = 0.1
    """Kernels and biases start uniform in [-init, init]; 0: kernels in the cells start
    by the cells' own initialisers, other kernels by Glorot's."""
    init_embedding: NotNegative = 0.0
    """The range for embedding and softmax, whose bias then starts at 0; 0: `init`."""
    start: Literal["zeros", "learned"] = "zeros"
    """The state at the start of a text; a learned one has the initial value zero."""
    two_biases: bool = False
    """Whether each gate adds two biases, as in Torch and cuDNN: with gradient descent
    their sum moves twice as far as one bias."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of matrix products; parameters and softmax are float32."""

    def __post_init__(self):
        """Checks fields that exclude one another."""
        if self.top_units and self.layers == 1:
            raise ValueError(
                f"model.top_units: must be 0 if model.layers is 1, got {self.top_units}"
            )
        if self.tied and not self.embedding:
            raise ValueError("model.tied: must be false without an embedding")


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Words:
    """Word types are dropped: all occurrences of a type in a window together."""

    rate: Rate = 0.0
    """Rate, in [0, 1]; with 0 in every lane, no words are dropped."""
    batch: Literal["each", "shared"] = "shared"
    """Whether each row of a batch drops its own word types."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Outside:
    """Noise of a language model that is not in every layer."""

    words: Words = field(default_factory=Words)
    """Rows of the embedding."""
    inputs: Noise = field(default_factory=Noise)
    """x_t into the first layer."""
    between: Noise = field(default_factory=Noise)
    """x_t into every other layer."""
    outputs: Noise = field(default_factory=Noise)
    """y_t of the last layer, into the softmax."""
    projected: Noise = field(default_factory=Noise)
    """The projection of y_t into a tied softmax of another size."""
    same_mask: bool = False
    """Whether the mask of h into its own layer, `recurrent`, is also the one of h into
    the layer above, or into the softmax."""
    held: Literal["window", "epoch"] = "window"
    """Lifetime of masks with per = "sequence", and of dropped words and weights."""


Dropout: Any = dataclasses.make_dataclass(
    "Dropout",
    [
        site_field(name, site)
        for name, site in SITES.items()
        if name not in ("inputs", "outputs")
    ],
    bases=(Outside,),
    frozen=True,
)
Dropout.__doc__ = (
    """Noise at each site; in every layer if the field does not say more."""
)


@with_config(DESCRIBED)
@dataclass(frozen=True)
class SecondPass(SecondPassOfBatches):
    """A second pass over each window, and a penalty on its difference to the first.

    Both passes start with the carry of the first.
    """

    shares: Annotated[str, AfterValidator(_known_sites)] = ""
    """Sites whose masks are shared with the first pass, separated by spaces; `inputs`
    stands for the inputs of all layers."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Train:
    """How the model is trained."""

    epochs: Count = 13
    """Passes over the training text."""
    batch: Count = 20
    """Rows that the training text is cut into; they are read in parallel."""
    window: Count = 20
    """Steps of truncated BPTT."""
    carry: bool = True
    """Whether the state at the end of a window is carried over to the next one; else
    each window is a text of its own, also in evaluation."""
    shuffle: bool = False
    """Whether an epoch reads its windows in random order, from a random offset."""
    vary_window: bool = False
    """Whether lengths of windows are random as in AWD-LSTM: about `window`, or half of
    it for one window in twenty; the learning rate is proportional to the length."""
    longer_by: Count = 20
    """The most steps by which such a window is longer than `window`."""
    per: Literal["token", "row"] = "row"
    """Whether the loss is a mean over tokens or over rows. Per row, the losses of the
    steps are summed, so gradients grow with the window, and `clip` has to as well."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Plain stochastic gradient descent, or Adam."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean gradient in Adam."""
    learning_rate: Positive = 1.0
    """Learning rate at the start."""
    hold: Count = 4
    """Epochs before the learning rate decays."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor of the learning rate: each epoch after `hold`, or with `patience`."""
    patience: CountOrNone = 0
    """If not 0, the learning rate decays after this many epochs without improvement of
    the validation figure, instead of after each epoch."""
    improves_on: Literal["best", "previous"] = "best"
    """With `patience`: the earlier figure that an epoch has to improve on."""
    least_improvement: NotNegative = 0.0
    """With `patience`: the least improvement, in the quoted unit, perplexity or bits;
    with 0, any improvement counts."""
    forget_best: bool = False
    """With `patience`: whether a decay forgets the best figure, so that the next epoch
    improves in any case."""
    lowest_rate: NotNegative = 0.0
    """Training ends before `epochs` once the learning rate is below this one."""
    averaging: Literal["none", "nt_asgd"] = "none"
    """NT-ASGD averages parameters once the validation loss of an epoch is higher than
    the lowest loss of the epochs at least `non_monotone` before."""
    non_monotone: Count = 5
    """Epochs that NT-ASGD looks back."""
    clip: NotNegative = 5.0
    """Largest global norm of the gradients; 0: no clipping."""
    clip_on: Literal["gradients", "step"] = "gradients"
    """Whether the gradients are clipped, or the step of the optimiser."""
    weight_decay: NotNegative = 0.0
    """L2 penalty: this multiple of the parameters is added to their gradients."""
    weight_decay_on: Literal["clipped", "gradients", "parameters"] = "clipped"
    """Whether it is added to the clipped gradients, or to the gradients before they are
    clipped, or is taken from the parameters at any learning rate."""
    probability_offset: NotNegative = 0.0
    """Added to each probability before its logarithm, also in evaluation."""
    activation: NotNegative = 0.0
    """AR: weight of the mean square of the last layer's outputs, after dropout."""
    temporal_activation: NotNegative = 0.0
    """TAR: weight of the mean square of their change per step, before dropout."""
    keep: Literal["last", "best"] = "last"
    """Whether to keep the parameters of the last epoch, or of the epoch with the lowest
    validation loss."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Evaluation:
    """How the losses of the validation and test texts are measured."""

    batch: Count = 20
    """Rows that a text is cut into; every token counts."""
    test_batch: CountOrNone = 0
    """Rows of the test text for the commands evaluate and reproduce; 0: `batch`."""
    mean: Literal["tokens", "windows"] = "tokens"
    """Whether the loss is a mean over tokens, or the logarithm of the mean perplexity
    over windows."""
    passes: CountOrNone = 0
    """Monte Carlo passes for the command reproduce; 0: none."""
    words: bool = True
    """Whether words are dropped in Monte Carlo passes."""


@with_config(DESCRIBED)
@dataclass(frozen=True)
class Config:
    """One language model."""

    SEEDS: ClassVar[int] = 1  # the default number in a sweep

    seeds: Seed = 0
    """Seeds of every setting: one number is how many, several are which."""
    seed: Seed = 0
    """Root of all random numbers."""
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    dropout: Dropout = field(default_factory=Dropout)
    second_pass: SecondPass = field(default_factory=SecondPass)
    train: Train = field(default_factory=Train)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self):
        """Checks fields of different tables that exclude one another."""
        model, train = self.model, self.train
        top = model.top_units or model.units
        above = self.dropout.between.rate or self.dropout.outputs.rate
        if self.dropout.same_mask and above:
            raise ValueError(
                "dropout.same_mask: must be false if dropout.between or "
                "dropout.outputs has a rate"
            )
        if self.dropout.same_mask and self.dropout.recurrent.gates != "shared":
            raise ValueError('dropout.recurrent.gates: must be "shared" with same_mask')
        if self.dropout.projected.rate and not (model.tied and top != model.embedding):
            raise ValueError(
                "dropout.projected.rate: must be 0 unless the softmax is tied to an "
                f"embedding of another size than the last layer, got "
                f"{self.dropout.projected.rate:g}"
            )
        if self.dropout.between.rate and model.layers == 1:
            raise ValueError(
                "dropout.between.rate: must be 0 if model.layers is 1, got "
                f"{self.dropout.between.rate:g}"
            )
        if train.lowest_rate > train.learning_rate:
            raise ValueError(
                "train.lowest_rate: must be at most train.learning_rate, "
                f"{train.learning_rate:g}, got {train.lowest_rate:g}"
            )
        if train.carry and train.shuffle:
            raise ValueError("train.shuffle: must be false if train.carry is true")
        if train.carry and model.start == "learned":
            raise ValueError('model.start: must be "zeros" if train.carry is true')
        if train.shuffle and train.vary_window:
            raise ValueError("train.shuffle: must be false with train.vary_window")
        descent = train.optimiser == "sgd" and train.clip_on == "gradients"
        inside = train.weight_decay_on == "gradients"
        if model.two_biases and not (model.cell == "lstm" and descent and not inside):
            raise ValueError(
                'model.two_biases: must be false unless model.cell is "lstm", '
                'train.optimiser is "sgd", train.clip_on is "gradients" and '
                'train.weight_decay_on is not "gradients"'
            )
