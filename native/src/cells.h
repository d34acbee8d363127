// The equations of one step of one row, forwards and backwards: rdrop/cells.
//
// Gates lie `padded(H)` floats apart in scratch, H floats apart in arrays.
#pragma once
#include "simd.h"

namespace rdrop {
namespace {

// What a row has at a step forwards. `h` and `c` are read and overwritten.
struct Row {
  Index t, b;
  const float *z, *u;  // projected input without bias; products of h and U
  float *h, *c, *y;
  float* kept;  // null if nothing is kept
};

// What a row has at a step backwards. Cotangents of the carry after the step are
// overwritten by the part of those before it that does not pass through U.
struct RowBack {
  Index t, b;
  const float *d_y, *h, *c;
  float *d_h, *d_c;
  float* kept;  // read, and overwritten by cotangents of the pre-activations
};


RDROP_INLINE Vector next_state(Vector now, Vector old, const float* mask, Index j,
                               Index n, StateNoise noise) {
  if (!mask) return now;
  const Vector m = load(mask + j, n);
  if (noise == StateNoise::kAdd) return now + m;
  if (noise == StateNoise::kMultiply) return now * m;
  return old * m + now * (1.0f - m);
}

// The h that the next step sees, and the output: a multiplied h is not the output.
RDROP_INLINE void store_hidden(const Problem& p, const Row& row, Vector h, Index j,
                               Index n) {
  const float* mask = p.hidden_state.at(row.t, row.b);
  const Vector next = next_state(h, load(row.h + j), mask, j, n, p.hidden_noise);
  const bool same = p.hidden_noise != StateNoise::kMultiply;
  store(row.h + j, next);
  store(row.y + j, same ? next : h, n);
}

// The cotangent of h before its mask; that of the old h goes to row.d_h.
RDROP_INLINE Vector pull_hidden(const Problem& p, const RowBack& row, Index j,
                                Index n) {
  const Vector d_next = load(row.d_h + j), d_y = load(row.d_y + j, n);
  const float* mask = p.hidden_state.at(row.t, row.b);
  Vector d_old{}, d = d_next + d_y;
  if (mask && p.hidden_noise == StateNoise::kMix) {
    const Vector m = load(mask + j, n);
    d_old = d * m;
    d = d * (1.0f - m);
  } else if (mask && p.hidden_noise == StateNoise::kMultiply) {
    d = d_next * load(mask + j, n) + d_y;
  }
  store(row.d_h + j, d_old);
  return d;
}

struct Lstm {
  static constexpr Index kGates = 4;  // of z
  static constexpr Index kSlots = 4;  // arrays of H that are kept
  static constexpr bool kHasMemory = true;
  // Of each slot: the gate of the kernel and of the recurrent kernel, or -1.
  static constexpr Index kInputGate[] = {0, 1, 2, 3};
  static constexpr Index kRecurrentGate[] = {0, 1, 2, 3};

  static void forward(const Problem& p, const Row& row) {
    const Index H = p.H, wide = padded(H);
    const float* m_i = p.gates.at(row.t, row.b, 0);
    const float* m_f = p.gates.at(row.t, row.b, 1);
    const float* m_o = p.gates.at(row.t, row.b, 2);
    const float* m_g = p.update.at(row.t, row.b);
    const float* m_c = p.cell_state.at(row.t, row.b);
    over_units(H, [&](Index j, Index n) RDROP_LAMBDA {
      Vector a[4];
      for (int g = 0; g < 4; ++g) {
        a[g] = load(row.z + g * wide + j) + load(row.u + g * wide + j) +
               load(p.bias + g * H + j, n);
      }
      const Vector i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]),
                   o = sigmoid(a[3]);
      if (row.kept) {
        store(row.kept + j, i, n);
        store(row.kept + H + j, f, n);
        store(row.kept + 2 * H + j, g, n);
        store(row.kept + 3 * H + j, o, n);
      }
      const Vector old = load(row.c + j);
      const Vector c = load_mask(m_f, j, n) * f * old +
                       load_mask(m_i, j, n) * i * (load_mask(m_g, j, n) * g);
      const Vector next = next_state(c, old, m_c, j, n, p.cell_noise);
      const Vector seen = p.cell_noise == StateNoise::kMix ? c : next;
      store(row.c + j, next);
      store_hidden(p, row, load_mask(m_o, j, n) * o * tanh(seen), j, n);
    });
  }

  static void backward(const Problem& p, const RowBack& row) {
    const Index H = p.H;
    const float* mask_i = p.gates.at(row.t, row.b, 0);
    const float* mask_f = p.gates.at(row.t, row.b, 1);
    const float* mask_o = p.gates.at(row.t, row.b, 2);
    const float* mask_g = p.update.at(row.t, row.b);
    const float* mask_c = p.cell_state.at(row.t, row.b);
    over_units(H, [&](Index j, Index n) RDROP_LAMBDA {
      const Vector i = load(row.kept + j, n), f = load(row.kept + H + j, n),
                   g = load(row.kept + 2 * H + j, n),
                   o = load(row.kept + 3 * H + j, n), old = load(row.c + j, n);
      const Vector m_i = load_mask(mask_i, j, n), m_f = load_mask(mask_f, j, n),
                   m_o = load_mask(mask_o, j, n), m_g = load_mask(mask_g, j, n);
      const Vector c = m_f * f * old + m_i * i * (m_g * g);
      const bool mixes = p.cell_noise == StateNoise::kMix;
      const Vector seen =
          mixes ? c : next_state(c, old, mask_c, j, n, p.cell_noise);
      const Vector s = tanh(seen);
      const Vector d_h = pull_hidden(p, row, j, n);
      const Vector d_seen = d_h * (m_o * o) * (1.0f - s * s);
      const Vector d_next = load(row.d_c + j);
      Vector d_old{}, d_c = d_next + d_seen;
      if (mask_c && mixes) {
        const Vector m = load(mask_c + j, n);
        d_old = d_next * m;
        d_c = d_next * (1.0f - m) + d_seen;
      } else if (mask_c && p.cell_noise == StateNoise::kMultiply) {
        d_c = d_c * load(mask_c + j, n);
      }
      store(row.d_c + j, d_c * (m_f * f) + d_old);
      store(row.kept + j, d_c * (m_g * g) * m_i * (i * (1.0f - i)), n);
      store(row.kept + H + j, d_c * old * m_f * (f * (1.0f - f)), n);
      store(row.kept + 2 * H + j, d_c * (m_i * i) * m_g * (1.0f - g * g), n);
      store(row.kept + 3 * H + j, d_h * s * m_o * (o * (1.0f - o)), n);
    });
  }
};

struct Simple {
  static constexpr Index kGates = 1;
  static constexpr Index kSlots = 1;
  static constexpr bool kHasMemory = false;
  static constexpr Index kInputGate[] = {0};
  static constexpr Index kRecurrentGate[] = {0};

  static void forward(const Problem& p, const Row& row) {
    over_units(p.H, [&](Index j, Index n) RDROP_LAMBDA {
      const Vector h =
          tanh(load(row.z + j) + load(row.u + j) + load(p.bias + j, n));
      if (row.kept) store(row.kept + j, h, n);
      store_hidden(p, row, h, j, n);
    });
  }

  static void backward(const Problem& p, const RowBack& row) {
    over_units(p.H, [&](Index j, Index n) RDROP_LAMBDA {
      const Vector h = load(row.kept + j, n);
      store(row.kept + j, pull_hidden(p, row, j, n) * (1.0f - h * h), n);
    });
  }
};

// The GRU with the reset gate after the product; slots z, r, n, product.
struct Gru {
  static constexpr Index kGates = 3;
  static constexpr Index kSlots = 4;
  static constexpr bool kHasMemory = false;
  static constexpr Index kInputGate[] = {0, 1, 2, -1};
  static constexpr Index kRecurrentGate[] = {0, 1, -1, 2};

  static void forward(const Problem& p, const Row& row) {
    const Index H = p.H, wide = padded(H);
    const float* m_z = p.gates.at(row.t, row.b, 0);
    const float* m_r = p.gates.at(row.t, row.b, 1);
    const float* m_g = p.update.at(row.t, row.b);
    over_units(H, [&](Index j, Index n) RDROP_LAMBDA {
      Vector a[3];
      for (int g = 0; g < 3; ++g) {
        a[g] = load(row.z + g * wide + j) + load(p.bias + g * H + j, n);
      }
      const Vector z = sigmoid(a[0] + load(row.u + j));
      const Vector r = sigmoid(a[1] + load(row.u + wide + j));
      const Vector u =
          load(row.u + 2 * wide + j) + load(p.recurrent_bias + j, n);
      const Vector candidate = tanh(a[2] + load_mask(m_r, j, n) * r * u);
      if (row.kept) {
        store(row.kept + j, z, n);
        store(row.kept + H + j, r, n);
        store(row.kept + 2 * H + j, candidate, n);
        store(row.kept + 3 * H + j, u, n);
      }
      const Vector update = load_mask(m_z, j, n) * z;
      const Vector h = update * load(row.h + j) +
                       (1.0f - update) * (load_mask(m_g, j, n) * candidate);
      store_hidden(p, row, h, j, n);
    });
  }

  static void backward(const Problem& p, const RowBack& row) {
    const Index H = p.H;
    const float* mask_z = p.gates.at(row.t, row.b, 0);
    const float* mask_r = p.gates.at(row.t, row.b, 1);
    const float* mask_g = p.update.at(row.t, row.b);
    over_units(H, [&](Index j, Index n) RDROP_LAMBDA {
      const Vector z = load(row.kept + j, n), r = load(row.kept + H + j, n),
                   candidate = load(row.kept + 2 * H + j, n),
                   u = load(row.kept + 3 * H + j, n), old = load(row.h + j, n);
      const Vector m_z = load_mask(mask_z, j, n), m_r = load_mask(mask_r, j, n),
                   m_g = load_mask(mask_g, j, n);
      const Vector d_h = pull_hidden(p, row, j, n);
      const Vector d_update = d_h * (old - m_g * candidate);
      const Vector d_n =
          d_h * (1.0f - m_z * z) * m_g * (1.0f - candidate * candidate);
      store(row.d_h + j, load(row.d_h + j) + d_h * (m_z * z));
      store(row.kept + j, d_update * m_z * (z * (1.0f - z)), n);
      store(row.kept + H + j, d_n * u * m_r * (r * (1.0f - r)), n);
      store(row.kept + 2 * H + j, d_n, n);
      store(row.kept + 3 * H + j, d_n * (m_r * r), n);
    });
  }
};

}  // namespace
}  // namespace rdrop
