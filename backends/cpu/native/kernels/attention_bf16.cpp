// The second product of attention on bf16 pairs with f32 sums.
#include "kernels/attention.h"

#if MNNPY_ISA == 2

namespace mnnpy::MNNPY_NS {
namespace {

template <int MR, int NV>
[[gnu::noinline, gnu::target("avx512bf16")]] void weighted_pairs(const WeightedArgs& t) {
  VF acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = VF{};
  const auto* p = reinterpret_cast<const int32_t*>(t.p);
  const auto* b = reinterpret_cast<const uint32_t*>(t.v);
  for (int64_t k = 0; k < t.depth; ++k, p += t.ldp, b += NV * W) {
    __m512i line[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) line[v] = _mm512_loadu_si512(b + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const __m512i x = _mm512_set1_epi32(p[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        acc[r][v] = reinterpret_cast<VF>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc[r][v]), reinterpret_cast<__m512bh>(x),
                                                          reinterpret_cast<__m512bh>(line[v])));
    }
  }
  finish_weighted(acc, t);
}

template <int NV, int... R>
constexpr void fill_column(WeightedFn (&table)[kMaxRows + 1], std::integer_sequence<int, R...>) {
  ((table[R + 1] = &weighted_pairs<R + 1, NV>), ...);
}

struct WeightedPairs {
  WeightedFn fn[kMaxNV + 1][kMaxRows + 1] = {};
  constexpr WeightedPairs() {
    fill_column<1>(fn[1], std::make_integer_sequence<int, kRows[1]>{});
    fill_column<2>(fn[2], std::make_integer_sequence<int, kRows[2]>{});
    fill_column<3>(fn[3], std::make_integer_sequence<int, kRows[3]>{});
    fill_column<4>(fn[4], std::make_integer_sequence<int, kRows[4]>{});
  }
};
constinit const WeightedPairs weighted_pairs_tiles;

}  // namespace

WeightedFn weighted_pairs_fn(int rows, int nv) { return weighted_pairs_tiles.fn[nv][rows]; }

}  // namespace mnnpy::MNNPY_NS

#endif
