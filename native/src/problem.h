// One call of a loop: sizes, arrays and masks, as plain pointers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rdrop {

using Index = std::int64_t;

enum class CellKind { kLstm = 0, kGru = 1, kSimple = 2 };

// How a mask of a state enters: multiplied, mixed with the old state, or added.
enum class StateNoise { kMultiply = 0, kMix = 1, kAdd = 2 };

// A mask [B, G, U], or [T, B, G, U] if there is one per step; strides in floats.
struct Mask {
  const float* data = nullptr;  // null: no mask
  Index per_step = 0, per_row = 0, per_gate = 0;  // per_gate 0: shared by all gates
  Index gates = 1;

  explicit operator bool() const { return data != nullptr; }
  const float* at(Index t, Index b, Index gate = 0) const {
    return data ? data + t * per_step + b * per_row + gate * per_gate : nullptr;
  }
};

// Arrays are [B, T, ..], or [T, B, ..] if time_major, without gaps.
struct Problem {
  CellKind cell;
  Index T, B, D, H;
  bool time_major, reverse;
  const float *xs, *kernel, *recurrent_kernel, *bias, *recurrent_bias;
  Mask inputs, recurrent, update, gates, cell_state, hidden_state;
  StateNoise cell_noise, hidden_noise;
  const std::uint8_t *valid, *resets;  // [T, B] or null
  // Residuals: results of the activations, and the carry before each step.
  float *kept, *cs, *hs;  // null if nothing is kept
  // Forwards.
  const float *c0, *h0;
  float *ys, *c_last, *h_last;
  // Backwards. The cotangents of the pre-activations take the place of `kept`.
  const float *d_ys, *d_c_last, *d_h_last;
  float *d_xs, *d_c0, *d_h0, *d_kernel, *d_recurrent_kernel, *d_bias, *d_recurrent_bias;

  Index row(Index t, Index b) const { return time_major ? t * B + b : b * T + t; }
  // The step that runs as number s forwards.
  Index step(Index s) const { return reverse ? T - 1 - s : s; }
};

// The functions of one instruction set. Work is in parts that any thread may do.
struct Kernels {
  Index (*packed_size)(const Problem&, bool backward);
  Index (*pack_parts)(const Problem&);
  void (*pack)(const Problem&, bool backward, Index part, float* packed);
  void (*forward)(const Problem&, const float* packed, Index first, Index last);
  void (*backward)(const Problem&, const float* packed, Index first, Index last);
  Index (*gradient_parts)(const Problem&);
  void (*gradient)(const Problem&, Index part);
};

}  // namespace rdrop
