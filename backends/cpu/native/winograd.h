// Transforms of Winograd's minimal filtering algorithms F(m, 3), one dimension at a time.
//
// y = Aᵀ[(G g) ⊙ (Bᵀ d)] with the points 0, ±1 (m = 2), ±2 (m = 4), 1/2 (m = 5), -1/2 (m = 6) and infinity (Lavin and Gray, "Fast algorithms
// for convolutional neural networks", 2016; Blahut, "Fast Algorithms for Signal Processing", ch. 5).
#pragma once

#include "micro.h"

namespace mnnpy::MNNPY_NS {

template <int O>
struct Transform;

template <>
struct Transform<2> {
  static constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  MNNPY_INLINE static void input(const VF* d, VF* v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  MNNPY_INLINE static void output(const VF* m, VF* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct Transform<4> {
  static constexpr double kG[6][3] = {{1.0 / 4, 0, 0},           {-1.0 / 6, -1.0 / 6, -1.0 / 6}, {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                      {1.0 / 24, 1.0 / 12, 1.0 / 6}, {1.0 / 24, -1.0 / 12, 1.0 / 6}, {0, 0, 1}};
  MNNPY_INLINE static void input(const VF* d, VF* v) {
    const VF a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
    const VF c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
  MNNPY_INLINE static void output(const VF* m, VF* y) {
    const VF a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * e;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * e + m[5];
  }
};

template <>
struct Transform<5> {
  static constexpr double kG[7][3] = {{-1.0 / 2, 0, 0},
                                      {-1.0 / 3, -1.0 / 3, -1.0 / 3},
                                      {1.0 / 9, -1.0 / 9, 1.0 / 9},
                                      {1.0 / 36, 1.0 / 18, 1.0 / 9},
                                      {-1.0 / 60, 1.0 / 30, -1.0 / 15},
                                      {32.0 / 45, 16.0 / 45, 8.0 / 45},
                                      {0, 0, 1}};
  MNNPY_INLINE static void input(const VF* d, VF* v) {
    const VF p = d[4] - 5.0f * d[2] + 4.0f * d[0], q = d[5] - 5.0f * d[3] + 4.0f * d[1], r = d[6] - 5.0f * d[4] + 4.0f * d[2];
    v[0] = q - 0.5f * p;
    v[5] = q;
    v[6] = r - 0.5f * q;
    const VF a = d[4] - 0.5f * d[3] - 4.0f * d[2] + 2.0f * d[1], b = d[5] - 0.5f * d[4] - 4.0f * d[3] + 2.0f * d[2];
    v[1] = b + a;
    v[2] = b - a;
    const VF c = 2.0f * d[4] - d[3] - 2.0f * d[2] + d[1], e = d[5] - 0.5f * d[4] - d[3] + 0.5f * d[2];
    v[3] = e + c;
    v[4] = e - c;
  }
  MNNPY_INLINE static void output(const VF* m, VF* y) {
    const VF a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c + m[5];
    y[1] = b + 2.0f * e + 0.5f * m[5];
    y[2] = a + 4.0f * c + 0.25f * m[5];
    y[3] = b + 8.0f * e + 0.125f * m[5];
    y[4] = a + 16.0f * c + 0.0625f * m[5] + m[6];
  }
};

template <>
struct Transform<6> {
  static constexpr double kG[8][3] = {{1, 0, 0},
                                      {-2.0 / 9, -2.0 / 9, -2.0 / 9},
                                      {-2.0 / 9, 2.0 / 9, -2.0 / 9},
                                      {1.0 / 90, 1.0 / 45, 2.0 / 45},
                                      {1.0 / 90, -1.0 / 45, 2.0 / 45},
                                      {32.0 / 45, 16.0 / 45, 8.0 / 45},
                                      {32.0 / 45, -16.0 / 45, 8.0 / 45},
                                      {0, 0, 1}};
  MNNPY_INLINE static void input(const VF* d, VF* v) {
    v[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
    v[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
    const VF a = d[2] + d[6] - 4.25f * d[4], b = d[1] + d[5] - 4.25f * d[3];
    v[1] = a + b;
    v[2] = a - b;
    const VF c = d[6] + 0.25f * d[2] - 1.25f * d[4], e = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
    v[3] = c + e;
    v[4] = c - e;
    const VF f = d[6] + 4.0f * d[2] - 5.0f * d[4], g = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
    v[5] = f + g;
    v[6] = f - g;
  }
  MNNPY_INLINE static void output(const VF* m, VF* y) {
    const VF a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4], f = m[5] + m[6], g = m[5] - m[6];
    y[0] = m[0] + a + c + f;
    y[1] = b + 2.0f * e + 0.5f * g;
    y[2] = a + 4.0f * c + 0.25f * f;
    y[3] = b + 8.0f * e + 0.125f * g;
    y[4] = a + 16.0f * c + 0.0625f * f;
    y[5] = b + 32.0f * e + 0.03125f * g + m[7];
  }
};

// A register tile of a product at one point: rows of A have a pitch, B is [depth][NV·W], C is [rows][NV·W].
struct WinogradTile {
  const float *a, *b;
  float* c;
  int64_t pitch, depth;
  bool accumulate;     // C holds a partial sum already
  const float* ahead;  // fetched into L2 meanwhile: weights stream from memory, several tiles use them once they are near
  int64_t ahead_bytes;
};
using WinogradProduct = void (*)(const WinogradTile&);
// Rows 1 … kRows[nv] by vectors 1 … kMaxNV; `ahead` says whether the tile fetches anything.
WinogradProduct winograd_product(int rows, int nv, bool ahead);

}  // namespace mnnpy::MNNPY_NS
