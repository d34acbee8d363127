// Vectors of floats of the instruction set that this file is compiled for.
#pragma once
#include <cstring>

#include "problem.h"

#if defined(__AVX512F__)
#define RDROP_WIDTH 16
#define RDROP_PANEL 4
#elif defined(__AVX2__)
#define RDROP_WIDTH 8
#define RDROP_PANEL 2
#elif defined(__aarch64__)
#define RDROP_WIDTH 4
#define RDROP_PANEL 4
#else
#define RDROP_WIDTH 4
#define RDROP_PANEL 2
#endif

#define RDROP_INLINE inline __attribute__((always_inline))
#define RDROP_LAMBDA __attribute__((always_inline))

namespace rdrop {
namespace {

constexpr Index kWidth = RDROP_WIDTH;  // floats of a vector
constexpr Index kPanel = RDROP_PANEL;  // most vectors of a panel
constexpr Index kRows = 6;             // most rows of a tile

typedef float Vector __attribute__((vector_size(RDROP_WIDTH * 4)));
typedef float Unaligned
    __attribute__((vector_size(RDROP_WIDTH * 4), aligned(4), may_alias));

RDROP_INLINE Vector splat(float x) { return x - Vector{}; }
RDROP_INLINE Vector load(const float* p) { return *(const Unaligned*)p; }
RDROP_INLINE void store(float* p, Vector v) { *(Unaligned*)p = v; }

// The first n floats; zeros after them.
RDROP_INLINE Vector load(const float* p, Index n) {
  if (n >= kWidth) return load(p);
  Vector v{};
  for (Index i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

RDROP_INLINE void store(float* p, Vector v, Index n) {
  if (n >= kWidth) return store(p, v);
  for (Index i = 0; i < n; ++i) p[i] = v[i];
}

// Ones if there is no mask.
RDROP_INLINE Vector load_mask(const float* p, Index offset, Index n) {
  return p ? load(p + offset, n) : splat(1.0f);
}

// tanh as a rational function, the one of Eigen and XLA; exactly 1 from where it rounds
// to 1, as a slope of 1 - tanh^2 must vanish. NaN stays NaN.
RDROP_INLINE Vector tanh(Vector x) {
#ifdef __FMA__
  const Vector most = splat(7.99881172180175781f);
#else
  const Vector most = splat(7.90531110763549805f);
#endif
  const Vector s = x * x;
  Vector p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Vector q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  Vector result = x * p / q;
  result = x > most ? splat(1.0f) : result;
  return x < -most ? splat(-1.0f) : result;
}

RDROP_INLINE Vector sigmoid(Vector x) { return tanh(x * 0.5f) * 0.5f + 0.5f; }

// Calls function(j, n) for vectors of n units; n is constant for whole vectors.
template <class Function>
RDROP_INLINE void over_units(Index units, const Function& function) {
  Index j = 0;
  for (; j + kWidth <= units; j += kWidth) function(j, Index{kWidth});
  if (j < units) function(j, units - j);
}

constexpr Index padded(Index n) { return (n + kWidth - 1) / kWidth * kWidth; }

}  // namespace
}  // namespace rdrop
