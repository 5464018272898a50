// All sizes of the register tile.
#include <utility>

#include "micro.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <int NV, int... R>
constexpr void fill_column(TileFn (&table)[kMaxRows + 1], std::integer_sequence<int, R...>) {
  ((table[R + 1] = &tile<R + 1, NV>), ...);
}

struct Tiles {
  TileFn fn[kMaxNV + 1][kMaxRows + 1] = {};
  constexpr Tiles() {
    fill_column<1>(fn[1], std::make_integer_sequence<int, kRows[1]>{});
    fill_column<2>(fn[2], std::make_integer_sequence<int, kRows[2]>{});
    fill_column<3>(fn[3], std::make_integer_sequence<int, kRows[3]>{});
    if constexpr (kMaxNV >= 4) fill_column<kMaxNV>(fn[kMaxNV], std::make_integer_sequence<int, kRows[kMaxNV]>{});
  }
};
constinit const Tiles tiles;

}  // namespace

TileFn tile_fn(int rows, int nv) { return tiles.fn[nv][rows]; }

}  // namespace mnnpy::MNNPY_NS
