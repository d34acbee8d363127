"""Noise: the kinds of noise, the lifetime of a mask, and the random numbers behind it.

References:
    [1] Srivastava et al. Dropout: a simple way to prevent neural networks from
        overfitting. JMLR 15, 2014.
    [2] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287.
    [3] Krueger et al. Zoneout: regularizing RNNs by randomly preserving hidden
        activations. ICLR 2017. arXiv:1606.01305.
    [4] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182.
    [5] Melis, Dyer, Blunsom. On the state of the art of evaluation in neural language
        models. ICLR 2018. arXiv:1707.05589; `DriftingDropout` in its code.
    [6] Gal, Hron, Kendall. Concrete dropout. NeurIPS 2017. arXiv:1705.07832; checked
        with the notebooks of their code, equation numbers with quotations of the paper.
    [7] Lim, Erichson, Hodgkinson, Mahoney. Noisy recurrent neural networks. NeurIPS
        2021. arXiv:2102.04877; checked with models.py of their code.
    [8] Graves, Mohamed, Hinton. Speech recognition with deep recurrent neural networks.
        ICASSP 2013. arXiv:1303.5778. (Text unchecked.)
"""

from rdrop.noise.kinds import (
    KINDS_BY_NAME,
    Add,
    Additive,
    Bernoulli,
    Concrete,
    DropConnect,
    Gaussian,
    Mix,
    Noise,
    NoiseKind,
    WeightNoise,
    Zoneout,
)
from rdrop.noise.lifetime import LIFETIMES, Block, Drift
from rdrop.noise.node import check
from rdrop.noise.plan import Plan
from rdrop.noise.rates import Rate, ScheduledRate, Shape
from rdrop.sites import Site

__all__ = [
    "KINDS_BY_NAME",
    "LIFETIMES",
    "Add",
    "Additive",
    "Bernoulli",
    "Block",
    "Concrete",
    "Drift",
    "DropConnect",
    "Gaussian",
    "Mix",
    "Noise",
    "NoiseKind",
    "Plan",
    "Rate",
    "ScheduledRate",
    "Shape",
    "Site",
    "WeightNoise",
    "Zoneout",
    "check",
]
