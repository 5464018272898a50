// Transforms of Winograd's minimal filtering algorithms F(m, 3), one dimension at a time.
//
// y = Aᵀ[(G g) ⊙ (Bᵀ d)] with the points 0, ±1 (m = 2), ±2 (m = 4), ±1/2 (m = 6) and infinity (Lavin and Gray, "Fast algorithms
// for convolutional neural networks", 2016; Blahut, "Fast Algorithms for Signal Processing", ch. 5).
#pragma once

#include "simd.h"

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

}  // namespace mnnpy::MNNPY_NS
