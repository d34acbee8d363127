// Matrix products with a right operand that is packed in panels.
//
// A panel is a few vectors wide and holds all rows of the operand, one after the other.
// A tile of the result stays in registers. Each element is summed in the order of the
// rows whatever the tile, so that results do not depend on how work is divided.
#pragma once
#include "simd.h"

namespace rdrop {
namespace {

// The panels of N columns: as even as possible.
struct Panels {
  Index vectors, count;
  explicit Panels(Index columns)
      : vectors((columns + kWidth - 1) / kWidth),
        count((vectors + kPanel - 1) / kPanel) {}
  Index first(Index panel) const {  // the first vector of a panel
    const Index extra = vectors % count;
    return vectors / count * panel + (panel < extra ? panel : extra);
  }
};

// Packs the matrix [K, N] whose element (k, n) is at source[k * down + n * right].
inline void pack(const float* source, Index down, Index right, Index K, Index N,
                 float* packed) {
  constexpr Index kBlock = 64;
  const Panels panels(N);
  for (Index panel = 0; panel < panels.count; ++panel) {
    const Index first = panels.first(panel) * kWidth;
    const Index width = panels.first(panel + 1) * kWidth - first;
    const Index filled = N - first < width ? N - first : width;
    const float* from = source + first * right;
    float* to = packed + K * first;
    if (right == 1) {
      for (Index k = 0; k < K; ++k, to += width) {
        std::memcpy(to, from + k * down, filled * sizeof(float));
        for (Index n = filled; n < width; ++n) to[n] = 0;
      }
      continue;
    }
    for (Index begin = 0; begin < K; begin += kBlock) {
      const Index end = begin + kBlock < K ? begin + kBlock : K;
      for (Index n = 0; n < width; ++n) {
        for (Index k = begin; k < end; ++k) {
          to[k * width + n] = n < filled ? from[k * down + n * right] : 0;
        }
      }
    }
  }
}

// The left operand: element (row, k) is at data[row * down + k * right].
struct Left {
  const float* data;
  Index down, right;
};

template <int kTileRows, int kVectors>
void tile(Left left, const float* panel, Index K, float* result, Index stride,
          bool add) {
  Vector sums[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = add ? load(result + r * stride + v * kWidth) : Vector{};
    }
  }
  const float* a = left.data;
  for (Index k = 0; k < K; ++k) {
    Vector b[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const Vector x = splat(a[r * left.down]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += x * b[v];
    }
    a += left.right;
    panel += kVectors * kWidth;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      store(result + r * stride + v * kWidth, sums[r][v]);
    }
  }
}

using Tile = void (*)(Left, const float*, Index, float*, Index, bool);

template <int kVectors>
Tile tile_of_rows(Index rows) {
  static constexpr Tile tiles[] = {tile<1, kVectors>, tile<2, kVectors>,
                                   tile<3, kVectors>, tile<4, kVectors>,
                                   tile<5, kVectors>, tile<6, kVectors>};
  return tiles[rows - 1];
}

inline Tile tile_of(Index rows, Index vectors) {
  switch (vectors) {
    case 1:
      return tile_of_rows<1>(rows);
#if RDROP_PANEL > 2
    case 3:
      return tile_of_rows<3>(rows);
    case 4:
      return tile_of_rows<4>(rows);
#endif
    default:
      return tile_of_rows<2>(rows);
  }
}

// result[M, padded(N)] = left[M, K] @ packed[K, N], or += with `add`.
inline void multiply(Left left, Index M, const float* packed, Index K, Index N,
                     float* result, Index stride, bool add) {
  const Panels panels(N);
  const Index tiles = (M + kRows - 1) / kRows;
  for (Index panel = 0; panel < panels.count; ++panel) {
    const Index first = panels.first(panel);
    const Index vectors = panels.first(panel + 1) - first;
    Index row = 0;
    for (Index n = 0; n < tiles; ++n) {
      const Index rows = M / tiles + (n < M % tiles);
      const Left part{left.data + row * left.down, left.down, left.right};
      tile_of(rows, vectors)(part, packed + K * first * kWidth, K,
                             result + row * stride + first * kWidth, stride, add);
      row += rows;
    }
  }
}

}  // namespace
}  // namespace rdrop
