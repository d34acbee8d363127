// The loops over time, for the rows of a batch that one thread has.
//
// This file is compiled once for each instruction set; RDROP_KERNELS names the result.
// It uses no inline function of a library, as the linker might keep the copy that other
// processors cannot run.
#include "cells.h"
#include "product.h"

namespace rdrop {
namespace {

constexpr Index kBlockRows = 64;      // rows of a product outside of the loop
constexpr Index kGradientRows = 256;  // rows that a kernel's gradient takes at once
constexpr Index kGradientPanels = 2;  // panels of a part of a gradient

// Memory for a thread, which begins on a cache line.
template <class T>
class Array {
 public:
  explicit Array(Index count)
      : memory_(static_cast<char*>(__builtin_malloc(count * sizeof(T) + 64))) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_);
    data_ = reinterpret_cast<T*>(memory_ + (64 - address % 64));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { __builtin_free(memory_); }
  operator T*() const { return data_; }

 private:
  char* memory_;
  T* data_;
};
using Scratch = Array<float>;

Index least(Index a, Index b) { return a < b ? a : b; }

void clear(float* values, Index count) {
  std::memset(values, 0, count * sizeof(float));
}

void copy(float* to, const float* from, Index count) {
  std::memcpy(to, from, count * sizeof(float));
}

// to = mask * from, or a copy if there is no mask.
void masked(float* to, const float* from, const float* mask, Index count) {
  if (!mask) return copy(to, from, count);
  over_units(count, [&](Index j, Index n) RDROP_LAMBDA {
    store(to + j, load(from + j, n) * load(mask + j, n), n);
  });
}

// to += mask * from.
void add_masked(float* to, const float* from, const float* mask, Index count) {
  over_units(count, [&](Index j, Index n) RDROP_LAMBDA {
    store(to + j, load(to + j, n) + load(from + j, n) * load_mask(mask, j, n), n);
  });
}

bool is_padding(const Problem& p, Index t, Index b) {
  return p.valid && !p.valid[t * p.B + b];
}

Index copies(const Mask& mask) { return mask && mask.per_gate ? mask.gates : 1; }

// Sizes of the packed kernels, of one gate each.
Index packed_kernel(const Problem& p, bool backward) {
  return backward ? p.H * padded(p.D) : p.D * padded(p.H);
}
Index packed_recurrent(const Problem& p) { return p.H * padded(p.H); }

template <class Cell>
struct Loop {
  static constexpr Index G = Cell::kGates, slots = Cell::kSlots;

  static Index packed_size(const Problem& p, bool backward) {
    return G * (packed_kernel(p, backward) + packed_recurrent(p));
  }

  // Packs one gate of a kernel; backwards it is transposed.
  static void pack_part(const Problem& p, bool backward, Index part, float* packed) {
    const Index gate = part % G, columns = G * p.H;
    const bool is_recurrent = part >= G;
    const float* source = is_recurrent ? p.recurrent_kernel : p.kernel;
    float* to = packed + (is_recurrent ? G * packed_kernel(p, backward) +
                                             gate * packed_recurrent(p)
                                       : gate * packed_kernel(p, backward));
    const Index rows = is_recurrent ? p.H : p.D;
    if (backward) {
      pack(source + gate * p.H, 1, columns, p.H, rows, to);
    } else {
      pack(source + gate * p.H, columns, 1, rows, p.H, to);
    }
  }

  static void forward(const Problem& p, const float* packed, Index first, Index last) {
    const Index R = last - first, H = p.H, wide = padded(H);
    const Index steps = least(p.T, R < kBlockRows ? kBlockRows / R : 1);
    Scratch hs(R * wide), cs(R * wide), u(R * G * wide), z(steps * R * G * wide);
    Scratch lefts(R * wide), xs(steps * R * p.D);
    Array<Index> of_step(R), of_block(steps * R);
    clear(hs, R * wide);
    clear(cs, R * wide);
    for (Index r = 0; r < R; ++r) {
      copy(hs + r * wide, p.h0 + (first + r) * H, H);
      if (Cell::kHasMemory) copy(cs + r * wide, p.c0 + (first + r) * H, H);
    }
    for (Index begin = 0; begin < p.T; begin += steps) {
      const Index end = least(begin + steps, p.T);
      project(p, packed, first, last, begin, end, xs, of_block, z);
      const float* z_row = z;
      for (Index s = begin; s < end; ++s) {
        const Index t = p.step(s);
        restart(p, t, first, last, hs, cs);
        keep_carry(p, t, first, last, hs, cs);
        const Index count = rows_of_step(p, t, first, last, of_step);
        recur(p, packed, t, first, count, of_step, hs, lefts, u);
        for (Index n = 0; n < count; ++n, z_row += G * wide) {
          const Index r = of_step[n], b = first + r, at = p.row(t, b);
          float* kept = p.kept ? p.kept + at * slots * H : nullptr;
          Cell::forward(p, {t, b, z_row, u + n * G * wide, hs + r * wide,
                            cs + r * wide, p.ys + at * H, kept});
        }
      }
    }
    for (Index r = 0; r < R; ++r) {
      copy(p.h_last + (first + r) * H, hs + r * wide, H);
      if (Cell::kHasMemory) copy(p.c_last + (first + r) * H, cs + r * wide, H);
    }
  }

  // The rows of a step that are not padding, counted from the first; their number.
  static Index rows_of_step(const Problem& p, Index t, Index first, Index last,
                            Index* rows) {
    Index count = 0;
    for (Index b = first; b < last; ++b) {
      if (!is_padding(p, t, b)) rows[count++] = b - first;
    }
    return count;
  }

  // z = (m_x * x) W of the rows of a block of steps that are not padding.
  static void project(const Problem& p, const float* packed, Index first, Index last,
                      Index begin, Index end, float* xs, Index* rows, float* z) {
    const Index R = last - first, wide = padded(p.H);
    Index count = 0;
    for (Index n = 0; n < (end - begin) * R; ++n) {
      if (!is_padding(p, p.step(begin + n / R), first + n % R)) rows[count++] = n;
    }
    for (Index gate = 0; gate < G; ++gate) {
      if (gate < copies(p.inputs)) {
        for (Index n = 0; n < count; ++n) {
          const Index t = p.step(begin + rows[n] / R), b = first + rows[n] % R;
          masked(xs + n * p.D, p.xs + p.row(t, b) * p.D, p.inputs.at(t, b, gate), p.D);
        }
      }
      multiply({xs, p.D, 1}, count, packed + gate * packed_kernel(p, false), p.D, p.H,
               z + gate * wide, G * wide, false);
    }
  }

  // The carry is zero again in the rows that are reset.
  static void restart(const Problem& p, Index t, Index first, Index last, float* hs,
                      float* cs) {
    if (!p.resets) return;
    const Index wide = padded(p.H);
    for (Index b = first; b < last; ++b) {
      if (!p.resets[t * p.B + b]) continue;
      clear(hs + (b - first) * wide, wide);
      clear(cs + (b - first) * wide, wide);
    }
  }

  // Keeps the carry before a step; the output of padding is zero.
  static void keep_carry(const Problem& p, Index t, Index first, Index last,
                         const float* hs, const float* cs) {
    const Index H = p.H, wide = padded(H);
    for (Index b = first; b < last; ++b) {
      const Index at = p.row(t, b), r = b - first;
      if (p.hs) copy(p.hs + at * H, hs + r * wide, H);
      if (p.cs && Cell::kHasMemory) copy(p.cs + at * H, cs + r * wide, H);
      if (!is_padding(p, t, b)) continue;
      clear(p.ys + at * H, H);
      if (p.kept) clear(p.kept + at * slots * H, slots * H);
    }
  }

  // u = (m_h * h) U of some rows of a step.
  static void recur(const Problem& p, const float* packed, Index t, Index first,
                    Index count, const Index* rows, const float* hs, float* lefts,
                    float* u) {
    const Index wide = padded(p.H);
    const float* kernels = packed + G * packed_kernel(p, false);
    const bool copied = p.recurrent || p.valid;
    for (Index gate = 0; gate < G; ++gate) {
      if (copied && gate < copies(p.recurrent)) {
        for (Index n = 0; n < count; ++n) {
          masked(lefts + n * wide, hs + rows[n] * wide,
                 p.recurrent.at(t, first + rows[n], gate), p.H);
        }
      }
      multiply({copied ? lefts : hs, wide, 1}, count,
               kernels + gate * packed_recurrent(p), p.H, p.H, u + gate * wide,
               G * wide, false);
    }
  }

  static void backward(const Problem& p, const float* packed, Index first,
                       Index last) {
    const Index R = last - first, H = p.H, wide = padded(H);
    const Index steps = least(p.T, R < kBlockRows ? kBlockRows / R : 1);
    Scratch d_hs(R * wide), d_cs(R * wide), product(R * wide), lefts(R * H);
    Array<Index> rows(R);
    Scratch d_xs(steps * R * padded(p.D));
    clear(d_hs, R * wide);
    clear(d_cs, R * wide);
    for (Index r = 0; r < R; ++r) {
      copy(d_hs + r * wide, p.d_h_last + (first + r) * H, H);
      if (Cell::kHasMemory) copy(d_cs + r * wide, p.d_c_last + (first + r) * H, H);
    }
    for (Index end = p.T; end > 0;) {
      const Index begin = end > steps ? end - steps : 0;
      for (Index s = end; s-- > begin;) {
        const Index t = p.step(s);
        const Index count = rows_of_step(p, t, first, last, rows);
        for (Index n = 0; n < count; ++n) {
          const Index r = rows[n], b = first + r, at = p.row(t, b);
          const float* c = Cell::kHasMemory ? p.cs + at * H : nullptr;
          Cell::backward(p, {t, b, p.d_ys + at * H, p.hs + at * H, c, d_hs + r * wide,
                             d_cs + r * wide, p.kept + at * slots * H});
        }
        pull_product(p, packed, t, first, count, rows, lefts, product, d_hs);
        restart(p, t, first, last, d_hs, d_cs);
      }
      if (p.d_xs) pull_inputs(p, packed, first, last, begin, end, d_xs);
      end = begin;
    }
    for (Index r = 0; r < R; ++r) {
      copy(p.d_h0 + (first + r) * H, d_hs + r * wide, H);
      if (Cell::kHasMemory) copy(p.d_c0 + (first + r) * H, d_cs + r * wide, H);
    }
  }

  // Adds the cotangent of h by way of the recurrent kernel, to some rows.
  static void pull_product(const Problem& p, const float* packed, Index t, Index first,
                           Index count, const Index* rows, float* lefts,
                           float* product, float* d_hs) {
    const Index H = p.H, wide = padded(H);
    const Index down = (p.row(t, first + 1) - p.row(t, first)) * slots * H;
    const float* kernels = packed + G * packed_kernel(p, true);
    const float* kept = p.kept + p.row(t, first) * slots * H;
    const bool each = copies(p.recurrent) > 1;
    bool add = false;
    for (Index slot = 0, left = G; slot < slots; ++slot) {
      const Index gate = Cell::kRecurrentGate[slot];
      if (gate < 0) continue;
      Left operand{kept + slot * H, down, 1};
      if (p.valid) {
        for (Index n = 0; n < count; ++n) {
          copy(lefts + n * H, operand.data + rows[n] * down, H);
        }
        operand = {lefts, H, 1};
      }
      multiply(operand, count, kernels + gate * packed_recurrent(p), H, H, product,
               wide, add);
      add = !each;
      if (!each && --left) continue;
      for (Index n = 0; n < count; ++n) {
        const float* mask = p.recurrent.at(t, first + rows[n], each ? gate : 0);
        add_masked(d_hs + rows[n] * wide, product + n * wide, mask, H);
      }
    }
  }

  // The cotangents of the inputs of a block of steps.
  static void pull_inputs(const Problem& p, const float* packed, Index first,
                          Index last, Index begin, Index end, float* d_xs) {
    const Index R = last - first, H = p.H, wide = padded(p.D);
    const bool each = copies(p.inputs) > 1;
    // Rows of one step, or steps of one row: each lies evenly in memory.
    const Index outer = p.time_major ? end - begin : R;
    const Index t0 = least(p.step(begin), p.step(end - 1));
    for (Index n = 0; n < outer; ++n) {
      Index t = p.time_major ? t0 + n : t0, b = p.time_major ? first : first + n;
      Index inner = p.time_major ? R : end - begin;
      clear(p.d_xs + p.row(t, b) * p.D, p.valid ? inner * p.D : 0);
      for (; inner > 0 && is_padding(p, t, b); --inner) ++(p.time_major ? b : t);
      const Index at = p.row(t, b);
      while (inner > 0 && is_padding(p, p.time_major ? t : t + inner - 1,
                                     p.time_major ? b + inner - 1 : b)) {
        --inner;
      }
      if (inner == 0) continue;
      bool add = false;
      for (Index slot = 0, left = G; slot < slots; ++slot) {
        const Index gate = Cell::kInputGate[slot];
        if (gate < 0) continue;
        multiply({p.kept + (at * slots + slot) * H, slots * H, 1}, inner,
                 packed + gate * packed_kernel(p, true), H, p.D, d_xs, wide, add);
        add = !each;
        if (!each && --left) continue;
        for (Index m = 0; m < inner; ++m) {
          const Index t_m = p.time_major ? t : t + m, b_m = p.time_major ? b + m : b;
          const float* mask = p.inputs.at(t_m, b_m, each ? gate : 0);
          float* to = p.d_xs + (at + m) * p.D;
          if (each && gate) {
            add_masked(to, d_xs + m * wide, mask, p.D);
          } else {
            masked(to, d_xs + m * wide, mask, p.D);
          }
        }
      }
    }
  }

  // Parts of the gradients of the kernels: some columns of one slot each.
  static Index chunks(const Problem& p) {
    const Index chunk = kGradientPanels * kPanel * kWidth;
    return (p.H + chunk - 1) / chunk;
  }
  static Index gradient_parts(const Problem& p) { return slots * chunks(p); }

  static void gradient(const Problem& p, Index part) {
    const Index slot = part / chunks(p), chunk = kGradientPanels * kPanel * kWidth;
    const Index column = part % chunks(p) * chunk;
    const Index columns = least(chunk, p.H - column), wide = padded(columns);
    const Index input = Cell::kInputGate[slot], recurrent = Cell::kRecurrentGate[slot];
    const Index most = p.D > p.H ? p.D : p.H;
    Scratch packed(kGradientRows * wide), left(kGradientRows * most);
    Scratch right(p.valid ? kGradientRows * columns : 0), d_bias(wide);
    Scratch d_kernel(p.D * wide), d_recurrent(p.H * wide);
    Array<Index> rows(kGradientRows);
    clear(d_kernel, p.D * wide);
    clear(d_recurrent, p.H * wide);
    clear(d_bias, wide);
    for (Index next = 0; next < p.T * p.B;) {
      const Index count = rows_of_gradient(p, &next, rows);
      if (count == 0) break;
      const float* d = p.kept + slot * p.H + column;
      for (Index n = 0; n < count; ++n) {
        add_masked(d_bias, d + rows[n] * slots * p.H, nullptr, columns);
      }
      if (p.valid) {
        for (Index n = 0; n < count; ++n) {
          copy(right + n * columns, d + rows[n] * slots * p.H, columns);
        }
        pack(right, columns, 1, count, columns, packed);
      } else {
        pack(d + rows[0] * slots * p.H, slots * p.H, 1, count, columns, packed);
      }
      if (input >= 0) {
        accumulate(p, p.xs, p.D, p.inputs, input, count, rows, left, packed, columns,
                   d_kernel);
      }
      if (recurrent >= 0) {
        accumulate(p, p.hs, p.H, p.recurrent, recurrent, count, rows, left, packed,
                   columns, d_recurrent);
      }
    }
    if (input >= 0) {
      write(d_kernel, p.D, columns, p.d_kernel + input * p.H + column, G * p.H);
      copy(p.d_bias + input * p.H + column, d_bias, columns);
    } else {
      copy(p.d_recurrent_bias + column, d_bias, columns);
    }
    if (recurrent >= 0) {
      write(d_recurrent, p.H, columns, p.d_recurrent_kernel + recurrent * p.H + column,
            G * p.H);
    }
  }

  // Step and example of a row of the arrays.
  static Index step_of(const Problem& p, Index row) {
    return p.time_major ? row / p.B : row % p.T;
  }
  static Index example_of(const Problem& p, Index row) {
    return p.time_major ? row % p.B : row / p.T;
  }

  // The next rows of the arrays that are not padding; their number.
  static Index rows_of_gradient(const Problem& p, Index* next, Index* rows) {
    Index count = 0;
    for (; *next < p.T * p.B && count < kGradientRows; ++*next) {
      const bool all = !p.valid;
      if (all || !is_padding(p, step_of(p, *next), example_of(p, *next))) {
        rows[count++] = *next;
      }
    }
    return count;
  }

  // result += (mask * values)^T packed, over some rows.
  static void accumulate(const Problem& p, const float* values, Index width,
                         const Mask& mask, Index gate, Index count, const Index* rows,
                         float* left, const float* packed, Index columns,
                         float* result) {
    const float* from = values + rows[0] * width;
    if (mask || p.valid) {
      for (Index n = 0; n < count; ++n) {
        const Index t = step_of(p, rows[n]), b = example_of(p, rows[n]);
        masked(left + n * width, values + rows[n] * width,
               mask.at(t, b, mask.per_gate ? gate : 0), width);
      }
      from = left;
    }
    multiply({from, 1, width}, width, packed, count, columns, result, padded(columns),
             true);
  }

  static void write(const float* from, Index rows, Index columns, float* to,
                    Index stride) {
    for (Index r = 0; r < rows; ++r) {
      copy(to + r * stride, from + r * padded(columns), columns);
    }
  }
};

// Calls a function of the loop of the cell.
#define RDROP_OF_CELL(call)            \
  switch (p.cell) {                    \
    case CellKind::kLstm:              \
      return Loop<Lstm>::call;         \
    case CellKind::kGru:               \
      return Loop<Gru>::call;          \
    default:                           \
      return Loop<Simple>::call;       \
  }

Index packed_size(const Problem& p, bool backward) {
  RDROP_OF_CELL(packed_size(p, backward))
}
Index pack_parts(const Problem& p) { RDROP_OF_CELL(G * 2) }
void pack_part(const Problem& p, bool backward, Index part, float* packed) {
  RDROP_OF_CELL(pack_part(p, backward, part, packed))
}
void forward(const Problem& p, const float* packed, Index first, Index last) {
  RDROP_OF_CELL(forward(p, packed, first, last))
}
void backward(const Problem& p, const float* packed, Index first, Index last) {
  RDROP_OF_CELL(backward(p, packed, first, last))
}
Index gradient_parts(const Problem& p) { RDROP_OF_CELL(gradient_parts(p)) }
void gradient(const Problem& p, Index part) { RDROP_OF_CELL(gradient(p, part)) }

}  // namespace

extern const Kernels RDROP_KERNELS = {packed_size, pack_parts, pack_part, forward,
                                      backward,    gradient_parts, gradient};

}  // namespace rdrop
