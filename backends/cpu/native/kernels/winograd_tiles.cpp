// The products of Winograd's transformed tiles, in all sizes of the register tile.
#include <utility>

#include "winograd.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <int MR, int NV, bool Ahead>
void product(const WinogradTile& t) {
  VF acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = VF{};
  const float *a = t.a, *b = t.b;
  const int64_t pitch = t.pitch, quarter = t.ahead_bytes / 4;
  const char* ahead = reinterpret_cast<const char*>(t.ahead);
  const int64_t advance = Ahead ? quarter / t.depth : 0;
  for (int64_t k = 0; k < t.depth; ++k) {
    VF bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
    if constexpr (Ahead) {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + quarter, 0, 2);
      __builtin_prefetch(ahead + 2 * quarter, 0, 2);
      __builtin_prefetch(ahead + 3 * quarter, 0, 2);
      ahead += advance;
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const VF x = splat(a[r * pitch + k]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
    }
    b += NV * W;
  }
  if (t.accumulate) {  // at the end: each part is a short sum of its own
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += load(t.c + (r * NV + v) * W);
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(t.c + (r * NV + v) * W, acc[r][v]);
}

struct Products {
  WinogradProduct fn[2][kMaxNV + 1][kMaxRows + 1] = {};
  template <int NV, int... R>
  constexpr void fill(std::integer_sequence<int, R...>) {
    ((fn[0][NV][R + 1] = &product<R + 1, NV, false>), ...);
    ((fn[1][NV][R + 1] = &product<R + 1, NV, true>), ...);
  }
  constexpr Products() {
    fill<1>(std::make_integer_sequence<int, kRows[1]>{});
    fill<2>(std::make_integer_sequence<int, kRows[2]>{});
    fill<3>(std::make_integer_sequence<int, kRows[3]>{});
    if constexpr (kMaxNV >= 4) fill<kMaxNV>(std::make_integer_sequence<int, kRows[kMaxNV]>{});
  }
};
constinit const Products products;

}  // namespace

WinogradProduct winograd_product(int rows, int nv, bool ahead) { return products.fn[ahead ? 1 : 0][nv][rows]; }

}  // namespace mnnpy::MNNPY_NS
