// The register tile all dense f32 kernels are made of.
//
// A tile is MR rows by NV vectors of columns. Rows are pointers, one list per tap, so that the same code serves matrix
// products (one tap) and convolutions (a tap per kernel position, rows are pixels; padding points at zeros). B is
// packed in panels of NV·W columns: [tap][k][NV·W].
#pragma once

#include <algorithm>

#include "simd.h"

namespace mnnpy::MNNPY_NS {

enum class Act : int { NONE, RELU, CLIP, SIGMOID, TANH, GELU, GELU_TANH, SILU, HARD_SWISH, LEAKY_RELU, HARD_SIGMOID };

// y = act(alpha·(A·B) + bias + residual)
struct Epilogue {
  Act act = Act::NONE;
  float scale = 1.0f;            // alpha of the product
  float act_alpha = 0.0f, act_beta = 0.0f;
  const float* bias = nullptr;      // by column
  const float* residual = nullptr;  // as C, same row stride
  bool accumulate = false;       // C holds a partial sum already
  bool last = true;              // false: more partial sums follow, only the raw sum is stored
};

// Maximal rows of a tile by its width in vectors: accumulators, one row of B and a broadcast fill the registers.
#if MNNPY_ISA == 2
constexpr int kMaxNV = 4;
constexpr int kRows[kMaxNV + 1] = {0, 14, 12, 8, 6};
#elif defined(__aarch64__)
constexpr int kMaxNV = 4;
constexpr int kRows[kMaxNV + 1] = {0, 14, 12, 8, 6};
#else
constexpr int kMaxNV = 3;
constexpr int kRows[kMaxNV + 1] = {0, 10, 6, 4};
#endif
constexpr int kMaxRows = kRows[1];

MNNPY_INLINE VF activate(Act act, VF x, VF alpha, VF beta) {
  switch (act) {
    case Act::NONE: return x;
    case Act::RELU: return max_second(VF{}, x);
    case Act::CLIP: return vclip(x, alpha, beta);
    case Act::SIGMOID: return vsigmoid(x);
    case Act::TANH: return vtanh(x);
    case Act::GELU: return vgelu(x);
    case Act::GELU_TANH: return vgelu_tanh(x);
    case Act::SILU: return vsilu(x);
    case Act::HARD_SWISH: return x * vclip(x * (1.0f / 6.0f) + 0.5f, VF{}, splat(1.0f));
    case Act::LEAKY_RELU: return x < 0.0f ? x * alpha : x;
    case Act::HARD_SIGMOID: return vclip(x * alpha + beta, VF{}, splat(1.0f));
  }
  return x;
}

// act over `count` floats in place.
[[gnu::noinline]] inline void activate_row(Act act, float alpha, float beta, float* p, int64_t count) {
  const VF a = splat(alpha), b = splat(beta);
  const auto all = [&](auto f) {
    int64_t k = 0;
    for (; k + W <= count; k += W) store(p + k, f(load(p + k)));
    if (k < count) store_partial(p + k, f(load_partial(p + k, static_cast<int>(count - k))), static_cast<int>(count - k));
  };
  switch (act) {
#define MNNPY_ACT(A) \
  case Act::A: return all([&](VF x) { return activate(Act::A, x, a, b); })
    MNNPY_ACT(RELU);
    MNNPY_ACT(CLIP);
    MNNPY_ACT(SIGMOID);
    MNNPY_ACT(TANH);
    MNNPY_ACT(GELU);
    MNNPY_ACT(GELU_TANH);
    MNNPY_ACT(SILU);
    MNNPY_ACT(HARD_SWISH);
    MNNPY_ACT(LEAKY_RELU);
    MNNPY_ACT(HARD_SIGMOID);
#undef MNNPY_ACT
    case Act::NONE: return;
  }
}

// Cheap activations are applied in registers as a clip; the others by a pass over the finished tile in L1.
inline bool is_clip(Act act) { return act == Act::NONE || act == Act::RELU || act == Act::CLIP; }

// Where a tile goes, and what becomes of it on the way.
struct TileOut {
  float* c;
  int64_t ldc;
  int cols;           // valid columns, (NV-1)·W < cols <= NV·W
  const Epilogue* epilogue;
  int64_t column;     // of the tile, for bias
  int64_t offset;     // of c from the start of C, for the residual
};

struct TileArgs : TileOut {
  const float* const* rows;  // rows[tap · tap_stride + row]
  int64_t tap_stride;
  int64_t taps;
  int64_t depth;      // k per tap
  int64_t k_begin;    // first k of each row that is used
  const float* b;     // [tap][depth][NV·W]
};

// Adds partial sums, bias and residual, activates and stores.
template <int MR, int NV>
MNNPY_INLINE void finish_tile(VF (&acc)[MR][NV], const TileOut& t) {
  const Epilogue& e = *t.epilogue;
  const int tail = t.cols - (NV - 1) * W;  // lanes of the last vector
  if (e.accumulate) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const float* p = t.c + r * t.ldc + v * W;
        acc[r][v] += v == NV - 1 && tail < W ? load_partial(p, tail) : load(p);
      }
  }
  const bool clip = is_clip(e.act);
  if (e.last) {
    if (e.scale != 1.0f) {
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] *= e.scale;
    }
    if (e.bias != nullptr) {
      VF bias[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const float* p = e.bias + t.column + v * W;
        bias[v] = v == NV - 1 && tail < W ? load_partial(p, tail) : load(p);
      }
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += bias[v];
    }
    if (e.residual != nullptr) {
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const float* p = e.residual + t.offset + r * t.ldc + v * W;
          acc[r][v] += v == NV - 1 && tail < W ? load_partial(p, tail) : load(p);
        }
    }
    if (clip && e.act != Act::NONE) {
      const VF low = splat(e.act == Act::RELU ? 0.0f : e.act_alpha);
      const VF high = splat(e.act == Act::RELU ? __builtin_inff() : e.act_beta);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = vclip(acc[r][v], low, high);
    }
  }
  if (tail == W) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(t.c + r * t.ldc + v * W, acc[r][v]);
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        if (v == NV - 1)
          store_partial(t.c + r * t.ldc + v * W, acc[r][v], tail);
        else
          store(t.c + r * t.ldc + v * W, acc[r][v]);
      }
  }
  if (e.last && !clip)
    for (int r = 0; r < MR; ++r) activate_row(e.act, e.act_alpha, e.act_beta, t.c + r * t.ldc, t.cols);
}

template <int MR, int NV>
[[gnu::noinline]] void tile(const TileArgs& t) {
  VF acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = VF{};

  const float* b = t.b;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const float* const* rows = t.rows + tap * t.tap_stride;
    const float* a[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) a[r] = rows[r] + t.k_begin;
    const int64_t depth = t.depth;
    for (int64_t k = 0; k < depth; ++k) {
      VF bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const VF x = splat(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
      }
      b += NV * W;
    }
  }
  finish_tile(acc, t);
}

using TileFn = void (*)(const TileArgs&);
// Rows 1 … kRows[nv] by vectors 1 … kMaxNV. Defined in tiles.cpp.
TileFn tile_fn(int rows, int nv);

}  // namespace mnnpy::MNNPY_NS
