"""Loops: a cell over whole sequences."""

from rdrop.loops.run import (
    Call,
    Loop,
    Noise,
    Options,
    Xs,
    check_distinct,
    check_features,
    check_loop,
    run_both_ways,
    run_in_turn,
    run_sequences,
    run_step,
)

__all__ = [
    "Call",
    "Loop",
    "Noise",
    "Options",
    "Xs",
    "check_distinct",
    "check_features",
    "check_loop",
    "run_both_ways",
    "run_in_turn",
    "run_sequences",
    "run_step",
]
