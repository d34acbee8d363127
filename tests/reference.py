"""The papers' equations in float64: one unit of one example at a time.

Slow and plain on purpose. It shares no code, layout trick or import with `rdrop`,
so that agreement is evidence.

Symbols:
    x [T, D]; h, and c of an LSTM, [H]; W [D, G H], U [H, G H], b [G H] with the gates
    side by side: i, f, g, o of an LSTM; z, r, n of a GRU; z, n of a minGRU; f, i, n of
    a minLSTM; r, i, n of an RG-LRU. Of complex W, the real and the imaginary part.
    m(site, gate, unit): the factor of a noise site at one step of one example.

Masks are a dict from the name of a site to an array (batch, gate, unit), or (step,
batch, gate, unit) where it changes with the step; those of W and U are (row, gate,
unit). An axis of size 1 is shared. A site that is not named has no noise.

    inputs, recurrent               x before W, h before U
    input_weights, recurrent_weights    W, U
    update                          the candidate, g or n
    gates                           what follows a sigmoid, in the order above
    cell_state, hidden_state        c_new, seen by h and by the next step;
                                    h_new, seen by the next step only
    zoned_cell_state, zoned_hidden_state    how much of the old state is kept
    outputs                         y

References:
    Hochreiter, Schmidhuber 1997, with the forget gate of Gers et al. 2000 (LSTM); Ba et
    al. 2016 as in TensorFlow 1's LayerNormBasicLSTMCell; Cho et al. 2014 (GRU, reset
    before), PyTorch's GRU (reset after); Elman 1990; Feng et al. 2024 (minGRU,
    minLSTM); De et al. 2024 (RG-LRU); Orvieto et al. 2023 (LRU); Smith et al. 2023
    (S5); Beck et al. 2024 (sLSTM). Noise:
    Gal, Ghahramani 2016 (inputs, recurrent); Semeniuta et al. 2016 (update); Cheng et
    al. 2017 (gates); Moon et al. 2015 (cell_state); Krueger et al. 2017 (zoned); Wan et
    al. 2013, Merity et al. 2018 (weights); Gal et al. 2017 (smooth masks).
"""

import cmath
import itertools
import math

import numpy as np


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def entry(mask, first, gate, unit):
    """One number of a mask, whose shared axes have size 1."""
    place = zip((first, gate, unit), mask.shape, strict=True)
    return float(mask[tuple(k if size > 1 else 0 for k, size in place)])


def concrete(numbers, rate, temperature):
    """The smooth masks of Gal et al. 2017, with 1 - u in the place of their u.

    A number of 0, whose logarithm is none, drops its unit.
    """
    mask = np.zeros(np.shape(numbers))
    for place, u in np.ndenumerate(numbers):
        if rate in (0, 1) or u == 0:
            mask[place] = 1.0 if rate == 0 else 0.0
            continue
        odds = math.log(rate / (1 - rate)) + math.log((1 - u) / u)
        # Below -700 the sigmoid is 0 to any precision, and exp would overflow.
        drop = sigmoid(max(odds / temperature, -700.0))
        mask[place] = (1 - drop) / (1 - rate)
    return mask


def concrete_cost(rates, kernel, weight, dropout):
    """The regulariser of Gal et al. 2017, one input unit after the other."""
    cost = 0.0
    for p, row in zip(rates, kernel, strict=True):
        cost += weight * sum(w * w for w in row) / (1 - p)
        cost += dropout * (p * math.log(p) + (1 - p) * math.log(1 - p))
    return cost


def fraternal(first, second, weights):
    """The penalty of Zolna et al. 2018 on the outputs [N, C] of two passes.

    That of Ma et al. 2017, where the second is without noise.
    """
    total = 0.0
    for z, other, weight in zip(first, second, weights, strict=True):
        total += weight * np.mean((z - other) ** 2)
    return total / sum(weights)


def r_drop(first, second, weights):
    """The penalty of Liang et al. 2021 on the logits [N, C] of two passes."""
    total = 0.0
    for z, other, weight in zip(first, second, weights, strict=True):
        p, q = softmax(z), softmax(other)
        total += weight * (divergence(p, q) + divergence(q, p)) / 2
    return total / sum(weights)


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(z):
    exponentials = [math.exp(a - max(z)) for a in z]
    return [e / sum(exponentials) for e in exponentials]


def factors(masks, t, example):
    """m(site, gate, unit) at step t: what multiplies, or 1; is kept or added, or 0."""

    def m(site, gate, unit):
        if site not in masks:
            return 0.0 if site.startswith(("zoned", "added")) else 1.0
        mask = masks[site]
        return entry(mask[t] if mask.ndim == 4 else mask, example, gate, unit)

    return m


def drop(kernel, masks, site, units):
    """A kernel [R, G H] as [R, G, H], each weight with its own factor or noise."""
    kernel = np.array(kernel).reshape(len(kernel), -1, units)
    for r, n, j in itertools.product(*map(range, kernel.shape)):
        if site in masks:
            kernel[r, n, j] *= entry(masks[site], r, n, j)
        if f"added_{site}" in masks:
            kernel[r, n, j] += entry(masks[f"added_{site}"], r, n, j)
    return kernel


def from_input(n, j, x, w, m):
    """Column j of gate n of (m_x * x) W."""
    return sum(m("inputs", n, d) * x[d] * w["W"][d, n, j] for d in range(len(x)))


def from_state(n, j, h, w, m):
    """Column j of gate n of (m_h * h) U."""
    return sum(m("recurrent", n, k) * h[k] * w["U"][k, n, j] for k in range(len(h)))


def both(n, x, h, w, m):
    """(m_x * x) W + (m_h * h) U of the units of gate n."""
    return [
        from_input(n, j, x, w, m) + from_state(n, j, h, w, m) for j in range(len(h))
    ]


def bias(n, j, w, units):
    return w["b"][n * units + j]


def layer_norm(a, gain, shift):
    """gain * (a - mean) / sqrt(variance + 1e-12) + shift, over the units."""
    mean = sum(a) / len(a)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in a) / len(a) + 1e-12)
    return [gain[j] * (v - mean) / deviation + shift[j] for j, v in enumerate(a)]


def memory(i, f, g, c, m):
    """c_new = m_f s(f) c + m_i s(i) m_g tanh(g)."""
    return [
        m("gates", 1, j) * sigmoid(f[j]) * c[j]
        + m("gates", 0, j) * sigmoid(i[j]) * m("update", 0, j) * math.tanh(g[j])
        for j in range(len(c))
    ]


def emit(c_new, c, o, h, m):
    """With s_c = m_c c_new + e, h_new = m_o s(o) tanh(s_c), and d c + (1 - d) s_c."""
    c_next, h_new = [], []
    for j in range(len(c)):
        seen = m("cell_state", 0, j) * c_new[j] + m("added_cell_state", 0, j)
        kept = m("zoned_cell_state", 0, j)
        c_next.append(kept * c[j] + (1 - kept) * seen)
        h_new.append(m("gates", 2, j) * sigmoid(o[j]) * math.tanh(seen))
    h_next, y = hand_on(h_new, h, m)
    return (c_next, h_next), y


def hand_on(h_new, h, m):
    """y = d h + (1 - d) h_new + noise, and the h handed on is m y."""
    y, h_next = [], []
    for j in range(len(h)):
        kept = m("zoned_hidden_state", 0, j)
        mixed = kept * h[j] + (1 - kept) * h_new[j]
        y.append(mixed + m("added_hidden_state", 0, j))
        h_next.append(m("hidden_state", 0, j) * y[j])
    return h_next, y


def lstm_step(x, state, w, m):
    c, h = state
    i, f, g, o = (
        [a + bias(n, j, w, len(h)) for j, a in enumerate(both(n, x, h, w, m))]
        for n in range(4)
    )
    return emit(memory(i, f, g, c, m), c, o, h, m)


def layer_norm_lstm_step(x, state, w, m):
    """Each gate and the memory are normalised; f has 1 added after that."""
    c, h = state
    gain, shift = (np.array(w[name]).reshape(4, -1) for name in ("gain", "shift"))
    i, f, g, o = (layer_norm(both(n, x, h, w, m), gain[n], shift[n]) for n in range(4))
    c_new = memory(i, [v + 1 for v in f], g, c, m)
    c_new = layer_norm(c_new, w["cell_gain"], w["cell_shift"])
    return emit(c_new, c, o, h, m)


def gru_step(x, state, w, m, candidate):
    """h_new = z h + (1 - z) m_g n: neither h of it has the mask of U's operand."""
    (h,) = state
    z, r = (
        [
            m("gates", n, j) * sigmoid(a + bias(n, j, w, len(h)))
            for j, a in enumerate(both(n, x, h, w, m))
        ]
        for n in range(2)
    )
    h_new = []
    for j in range(len(h)):
        a = from_input(2, j, x, w, m) + bias(2, j, w, len(h))
        n = math.tanh(a + candidate(j, r, h, w, m))
        h_new.append(z[j] * h[j] + (1 - z[j]) * m("update", 0, j) * n)
    h_next, y = hand_on(h_new, h, m)
    return (h_next,), y


def gru_after_step(x, state, w, m):
    """The reset gate multiplies (m_h * h) U_n + b_n."""

    def candidate(j, r, h, w, m):
        return r[j] * (from_state(2, j, h, w, m) + w["b_n"][j])

    return gru_step(x, state, w, m, candidate)


def gru_before_step(x, state, w, m):
    """The reset gate multiplies h: (m_h * r * h) U_n."""

    def candidate(j, r, h, w, m):
        return from_state(2, j, [r[k] * h[k] for k in range(len(h))], w, m)

    return gru_step(x, state, w, m, candidate)


def simple_step(x, state, w, m):
    """h_new = tanh((m_x * x) W + (m_h * h) U + b)."""
    (h,) = state
    a = both(0, x, h, w, m)
    h_new = [math.tanh(a[j] + bias(0, j, w, len(h))) for j in range(len(h))]
    h_next, y = hand_on(h_new, h, m)
    return (h_next,), y


def min_gru_step(x, state, w, m):
    """h_new = (1 - z) h + z m_g n, z = m_z s(a_z) and n = a_n made from x alone."""
    (h,) = state
    h_new = []
    for j in range(len(h)):
        z, n = (from_input(n, j, x, w, m) + bias(n, j, w, len(h)) for n in range(2))
        z = m("gates", 0, j) * sigmoid(z)
        h_new.append((1 - z) * h[j] + z * m("update", 0, j) * n)
    h_next, y = hand_on(h_new, h, m)
    return (h_next,), y


def min_lstm_step(x, state, w, m):
    """h_new = f h + i m_g n, with gates f / (f + i) and i / (f + i) of x alone."""
    (h,) = state
    h_new = []
    for j in range(len(h)):
        f, i, n = (from_input(n, j, x, w, m) + bias(n, j, w, len(h)) for n in range(3))
        f, i = sigmoid(f), sigmoid(i)
        kept = m("gates", 0, j) * f / (f + i) * h[j]
        h_new.append(kept + m("gates", 1, j) * i / (f + i) * m("update", 0, j) * n)
    h_next, y = hand_on(h_new, h, m)
    return (h_next,), y


def rg_lru_step(x, state, w, m):
    """h_new = a h + sqrt(1 - a^2) i m_g n, a = exp(-8 max(r, 0) softplus(d))."""
    (h,) = state
    h_new = []
    for j in range(len(h)):
        r, i, n = (from_input(n, j, x, w, m) + bias(n, j, w, len(h)) for n in range(3))
        r, i = m("gates", 0, j) * sigmoid(r), m("gates", 1, j) * sigmoid(i)
        log_a = -8 * max(r, 0) * math.log(1 + math.exp(w["decay"][j]))
        scale = math.sqrt(-math.expm1(2 * log_a))
        h_new.append(math.exp(log_a) * h[j] + scale * i * m("update", 0, j) * n)
    h_next, y = hand_on(h_new, h, m)
    return (h_next,), y


def diagonal_step(x, state, w, m, decay, scale, copies):
    """c_new = decay c + m_g scale (m_x * x) B, y = copies Re(c_new C) + d m_x x."""
    (c,) = state
    seen, c_next, y = [], [], []
    for k in range(len(c)):
        u = complex(from_input(0, k, x, w, m), from_input(1, k, x, w, m))
        new = decay[k] * c[k] + m("update", 0, k) * scale[k] * u
        kept = m("zoned_cell_state", 0, k)
        seen.append(m("cell_state", 0, k) * new)
        c_next.append(kept * c[k] + (1 - kept) * seen[k])
    C = w["output_kernel"]
    for j in range(C.shape[1]):
        y.append(0.0)
        for k, value in enumerate(seen):
            y[j] += copies * value.real * C[k, j]
            y[j] += copies * value.imag * C[len(c) + k, j]
        if "skip" in w:
            y[j] += w["skip"][j] * m("inputs", 0, j) * x[j]
    return (c_next,), y


def lru_step(x, state, w, m):
    """|decay| = exp(-exp(nu)), of phase exp(theta)."""
    decay, scale = [], []
    for nu, theta, gamma in w["diagonal"].T:
        decay.append(cmath.exp(complex(-math.exp(nu), math.exp(theta))))
        scale.append(math.exp(gamma))
    return diagonal_step(x, state, w, m, decay, scale, 1)


def s5_step(x, state, w, m):
    """Zero-order hold: exp(l s), and (exp(l s) - 1) / l in front of the input."""
    decay, scale = [], []
    for real, imaginary, step in w["diagonal"].T:
        eigenvalue = complex(real, imaginary)
        decay.append(cmath.exp(eigenvalue * math.exp(step)))
        scale.append((decay[-1] - 1) / eigenvalue)
    return diagonal_step(x, state, w, m, decay, scale, 2)


def slstm_step(x, state, w, m):
    """The memory and its normaliser on the scale exp(scale); gates mask c alone."""
    c, n, scale, h = state
    next_state, h_new = ([], [], []), []
    gates = [
        [a + bias(gate, j, w, len(h)) for j, a in enumerate(both(gate, x, h, w, m))]
        for gate in range(4)
    ]
    for j, (i, f, g, o) in enumerate(zip(*gates, strict=True)):
        kept = scale[j] + math.log(sigmoid(f))
        new_scale = max(i, kept)
        i, f = math.exp(i - new_scale), math.exp(kept - new_scale)
        n_new = f * n[j] + i
        c_new = m("gates", 1, j) * f * c[j]
        c_new += m("gates", 0, j) * i * m("update", 0, j) * math.tanh(g)
        seen = m("cell_state", 0, j) * c_new + m("added_cell_state", 0, j)
        share, old = m("zoned_cell_state", 0, j), math.exp(scale[j] - new_scale)
        next_state[0].append(share * old * c[j] + (1 - share) * seen)
        next_state[1].append(share * old * n[j] + (1 - share) * n_new)
        next_state[2].append(new_scale)
        h_new.append(m("gates", 2, j) * sigmoid(o) * seen / n_new)
    h_next, y = hand_on(h_new, h, m)
    return (*next_state, h_next), y


def unroll(step, x, state, weights, masks, example, length, reverse=False):
    """The first `length` steps of one example; y [T, H], zero after, and last state."""
    units = len(state[0])
    w = dict(weights)
    for kernel, site in (("W", "input_weights"), ("U", "recurrent_weights")):
        if kernel in weights:
            w[kernel] = drop(weights[kernel], masks, site, units)
    y = np.zeros((len(x), units))
    steps = range(length)
    for t in reversed(steps) if reverse else steps:
        m = factors(masks, t, example)
        state, output = step(x[t], state, w, m)
        y[t] = [m("outputs", 0, j) * output[j] for j in range(units)]
    return y, tuple(np.array(s) for s in state)


def activation_penalties(ys, lengths):
    """AR and TAR: means over units and valid steps of y_t^2 and (y_t - y_{t-1})^2."""
    squares, changes = [], []
    for y, length in zip(ys, lengths, strict=True):
        for t in range(length):
            squares += [v * v for v in y[t]]
            if t > 0:
                changes += [(a - b) ** 2 for a, b in zip(y[t], y[t - 1], strict=True)]
    return tuple(sum(values) / max(1, len(values)) for values in (squares, changes))


def nt_asgd(w, gradient, rate, epochs, steps, loss, interval):
    """Algorithm 1 of Merity et al. 2018; the mean is over the steps once triggered.

    Returns the last parameters, what is evaluated, and the epoch it was triggered at.
    """
    w, logs, triggered, visited = np.array(w), [], None, []
    for epoch in range(epochs):
        for _ in range(steps):
            w = w - rate * gradient(w)
            if triggered is not None:
                visited.append(w)
        evaluated = np.mean(visited, axis=0) if visited else w
        value = loss(evaluated)
        if triggered is None and epoch > interval and value > min(logs[:-interval]):
            triggered = epoch
        logs.append(value)
    return w, evaluated, triggered
