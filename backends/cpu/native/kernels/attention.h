// The second product of attention: O[query][column] = Σ over keys P[key][query] · V[key][column].
#pragma once

#include <utility>

#include "gemm.h"

namespace mnnpy::MNNPY_NS {

// Also for bf16: p and v then hold pairs of keys, as pack_pairs() lays them out, and depth counts pairs.
struct WeightedArgs {
  const float* p;        // [depth][ldp]
  int64_t ldp;
  const float* v;        // [depth][NV·W]
  int64_t depth;
  const float* before;   // sums of earlier keys, rows ld_before apart; or nullptr
  int64_t ld_before;
  const float* decay;    // per query, of those sums
  const float* factor;   // per query, of the result; or nullptr
  float* out;
  int64_t ld_out;
  int cols;              // valid columns of the result, (NV-1)·W < cols <= NV·W
};

using WeightedFn = void (*)(const WeightedArgs&);

template <int MR, int NV>
MNNPY_INLINE void finish_weighted(VF (&acc)[MR][NV], const WeightedArgs& t) {
  if (t.before != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += splat(t.decay[r]) * load(t.before + r * t.ld_before + v * W);
  }
  if (t.factor != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] *= t.factor[r];
  }
  const int tail = t.cols - (NV - 1) * W;
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = t.out + r * t.ld_out + v * W;
      if (v == NV - 1 && tail < W)
        store_partial(to, acc[r][v], tail);
      else
        store(to, acc[r][v]);
    }
}

#if MNNPY_ISA == 2
WeightedFn weighted_pairs_fn(int rows, int nv);
#endif

}  // namespace mnnpy::MNNPY_NS
