// Register tile, rounding and packing of products of bf16 pairs.
#include "gemm_bf16.h"

namespace mnnpy::MNNPY_NS {

// The variant as a whole only needs AVX-512 of the first generation.
static bool has_bf16() {
#if MNNPY_ISA == 2
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

bool wants_bf16(const NodeDesc& node, const BuildContext& ctx) {
  const char* why = nullptr;
  const std::string algorithm = node.s("algorithm", "auto");
  if (node.s("precision", "") != "low") {
    why = "bf16 is for precision=\"low\"";
  } else if (algorithm != "auto" && algorithm != "bf16") {
    why = "another algorithm was asked for";
  } else if (!has_bf16()) {
    why = "this CPU has no bf16 products (AVX512_BF16)";
  }
  if (why != nullptr && ctx.why != nullptr) *ctx.why = why;
  return why == nullptr;
}

}  // namespace mnnpy::MNNPY_NS

#if MNNPY_ISA == 2

#include <utility>

// The variant's flags stay those of the first AVX-512 CPUs: only these functions, behind has_bf16(), may use more.
#define MNNPY_BF16 gnu::target("avx512bf16")

namespace mnnpy::MNNPY_NS {
namespace {

// acc += one pair per row times one line of B.
template <int MR, int NV>
[[MNNPY_BF16]] MNNPY_INLINE void multiply_pairs(VF (&acc)[MR][NV], const uint16_t* const (&a)[MR], int64_t k, uint32_t mask,
                                                const uint32_t* b) {
  __m512i line[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) line[v] = _mm512_loadu_si512(b + v * W);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    uint32_t pair;
    std::memcpy(&pair, a[r] + k, sizeof pair);
    const __m512i x = _mm512_set1_epi32(static_cast<int>(pair & mask));
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      acc[r][v] = reinterpret_cast<VF>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc[r][v]), reinterpret_cast<__m512bh>(x),
                                                        reinterpret_cast<__m512bh>(line[v])));
  }
}

template <int MR, int NV>
[[gnu::noinline, MNNPY_BF16]] void pair_tile(const PairTile& t) {
  VF acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = VF{};
  const uint32_t* b = t.b;
  const int64_t even = t.depth & ~int64_t{1};
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const uint16_t* const* rows = t.rows + tap * t.tap_stride;
    const uint16_t* a[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) a[r] = rows[r] + t.k_begin;
    for (int64_t k = 0; k < even; k += 2) {
      multiply_pairs<MR, NV>(acc, a, k, ~0u, b);
      b += NV * W;
    }
    if (even < t.depth) {  // what lies behind an odd row may be anything, an infinity too
      multiply_pairs<MR, NV>(acc, a, even, 0xffffu, b);
      b += NV * W;
    }
  }
  finish_tile(acc, t);
}

template <int NV, int... R>
constexpr void fill_column(PairTileFn (&table)[kMaxRows + 1], std::integer_sequence<int, R...>) {
  ((table[R + 1] = &pair_tile<R + 1, NV>), ...);
}

struct PairTiles {
  PairTileFn fn[kMaxNV + 1][kMaxRows + 1] = {};
  constexpr PairTiles() {
    fill_column<1>(fn[1], std::make_integer_sequence<int, kRows[1]>{});
    fill_column<2>(fn[2], std::make_integer_sequence<int, kRows[2]>{});
    fill_column<3>(fn[3], std::make_integer_sequence<int, kRows[3]>{});
    fill_column<4>(fn[4], std::make_integer_sequence<int, kRows[4]>{});
  }
};
constinit const PairTiles pair_tiles;

// Lanes 2j and 2j+1 of the result are lane j of even and odd.
[[MNNPY_BF16]] MNNPY_INLINE __m512i zip_rounded(VF even, VF odd) {
  alignas(64) static constexpr uint16_t kZip[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(odd), reinterpret_cast<__m512>(even));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kZip), reinterpret_cast<__m512i>(both));
}

// Rows of B lie in memory.
[[MNNPY_BF16]] void pack_pair_rows(const float* src, int64_t k_stride, int64_t depth, int cols, int64_t width, uint32_t* dst) {
  for (int64_t k = 0; k < depth; k += 2, src += 2 * k_stride, dst += width) {
    const bool whole = k + 1 < depth;
    for (int64_t j = 0; j < width; j += W) {
      const int lanes = static_cast<int>(std::clamp<int64_t>(cols - j, 0, W));
      const VF even = load_partial(src + j, lanes);
      const VF odd = whole ? load_partial(src + k_stride + j, lanes) : VF{};
      _mm512_storeu_si512(dst + j, zip_rounded(even, odd));
    }
  }
}

// Columns of B are rows in memory: rounded there, then turned pair by pair in blocks that stay in L1.
void pack_pair_columns(const float* src, int64_t n_stride, int64_t depth, int cols, int64_t width, uint32_t* dst) {
  constexpr int64_t kBlock = 64;
  alignas(64) uint32_t block[kMaxNV * W * kBlock];
  for (int64_t k = 0; k < depth; k += 2 * kBlock) {
    const int64_t count = std::min(2 * kBlock, depth - k), pairs = pairs_of(count);
    for (int64_t j = 0; j < cols; ++j) {
      auto* line = reinterpret_cast<uint16_t*>(block + j * kBlock);
      to_bf16(src + j * n_stride + k, line, count);
      if (count % 2 != 0) line[count] = 0;
    }
    uint32_t* to = dst + k / 2 * width;
    transpose(reinterpret_cast<const float*>(block), kBlock, reinterpret_cast<float*>(to), width, cols, pairs);
    for (int64_t q = 0; q < pairs; ++q)
      for (int64_t j = cols; j < width; ++j) to[q * width + j] = 0;
  }
}

void pack_pair_elements(const float* src, const BView& b, int64_t depth, int cols, int64_t width, uint32_t* dst) {
  for (int64_t k = 0; k < depth; k += 2, dst += width)
    for (int64_t j = 0; j < width; ++j) {
      const float* p = src + k * b.k_stride + j * b.n_stride;
      const float pair[2] = {j < cols ? p[0] : 0.0f, j < cols && k + 1 < depth ? p[b.k_stride] : 0.0f};
      to_bf16(pair, reinterpret_cast<uint16_t*>(dst + j), 2);
    }
}

}  // namespace

PairTileFn pair_tile_fn(int rows, int nv) { return pair_tiles.fn[nv][rows]; }

[[MNNPY_BF16]] void to_bf16(const float* in, uint16_t* out, int64_t count) {
  int64_t k = 0;
  for (; k + 2 * W <= count; k += 2 * W)
    _mm512_storeu_si512(out + k, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(in + k + W), _mm512_loadu_ps(in + k))));
  for (; k < count; k += W) {
    const auto mask = static_cast<__mmask16>(k + W <= count ? 0xffff : (1u << (count - k)) - 1);
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, in + k));
    _mm256_mask_storeu_epi16(out + k, mask, reinterpret_cast<__m256i>(half));
  }
}

void pack_pairs(const Panels& panels, int64_t taps, int64_t depth, const BView& b, uint32_t* packed, size_t first, size_t last) {
  const int64_t pairs = pairs_of(depth);
  for (size_t p = first; p < last; ++p) {
    const auto& panel = panels.list[p];
    const int64_t width = int64_t{panel.nv} * W;
    uint32_t* to = packed + panel.offset * taps * pairs;
    for (int64_t tap = 0; tap < taps; ++tap, to += pairs * width) {
      const float* from = b.data + tap * b.tap_stride + panel.column * b.n_stride;
      if (b.n_stride == 1) {
        pack_pair_rows(from, b.k_stride, depth, panel.cols, width, to);
      } else if (b.k_stride == 1) {
        pack_pair_columns(from, b.n_stride, depth, panel.cols, width, to);
      } else {
        pack_pair_elements(from, b, depth, panel.cols, width, to);
      }
    }
  }
}

}  // namespace mnnpy::MNNPY_NS

#endif
