"""Language models: trained on a long text, window by window, as the papers do it.

Beside the sweeps of `experiments`, whose sequences stand alone, the carry is handed on
from window to window here, and one training is long: `python -m experiments train`.
"""
