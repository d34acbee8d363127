"""The papers' equations in float64: one unit of one example at a time.

Slow and plain on purpose. It shares no code, layout trick or import with `rdrop`,
so that agreement is evidence.

Symbols:
    x [T, D], c and h [H]; W [D, 4H], U [H, 4H], b [4H] with the gates i, f, g, o side
    by side; m_x [T, 4, D] and m_h [T, 4, H] have one mask a gate, m_g and m_y [T, H].
"""

import math

import numpy as np


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def gate(n, j, x, h, W, U, b, m_x, m_h):
    """Pre-activation of unit j's gate n: a row of (m_x * x) W + (m_h * h) U + b."""
    column = n * len(h) + j
    from_input = sum(m_x[n, d] * x[d] * W[d, column] for d in range(len(x)))
    from_state = sum(m_h[n, k] * h[k] * U[k, column] for k in range(len(h)))
    return from_input + from_state + b[column]


def lstm_step(x, c, h, W, U, b, m_x, m_h, m_g):
    """c' = s(f) c + s(i) (m_g tanh(g)), h' = s(o) tanh(c'), for one example."""
    c_new, h_new = [], []
    for j in range(len(h)):
        i, f, g, o = (gate(n, j, x, h, W, U, b, m_x, m_h) for n in range(4))
        c_new.append(sigmoid(f) * c[j] + sigmoid(i) * m_g[j] * math.tanh(g))
        h_new.append(sigmoid(o) * math.tanh(c_new[j]))
    return c_new, h_new


def lstm(x, c, h, W, U, b, m_x, m_h, m_g, m_y, length, reverse=False):
    """The first `length` steps of one example; y = m_y * h' [T, H], and last c, h."""
    y = np.zeros((len(x), len(h)))
    steps = range(length)
    for t in reversed(steps) if reverse else steps:
        c, h = lstm_step(x[t], c, h, W, U, b, m_x[t], m_h[t], m_g[t])
        y[t] = [m_y[t, j] * h[j] for j in range(len(h))]
    return y, np.array(c), np.array(h)
