"""Wording: numbers as the reports write them."""

import numpy as np
from jaxtyping import Float

MINUS = "\N{MINUS SIGN}"


def mean_sd(values: Float[np.ndarray, "N"]) -> str:
    """Returns mean ± standard deviation as text; the value alone for one seed."""
    if not np.isfinite(values).all():
        return "-"
    spread = f" ±{values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def p_text(p: float) -> str:
    """Returns a p-value as text."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def signed(value: float) -> str:
    """Returns a difference as text, with the minus sign of print."""
    return f"{value:+.3f}".replace("-", MINUS)


def count_text(count: int, name: str) -> str:
    """Returns "1 seed" or "4 seeds"."""
    return f"{count:,} {name}{'s' * (count != 1)}"
