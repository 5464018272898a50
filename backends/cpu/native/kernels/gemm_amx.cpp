// Splitting, packing, staging and the tiles of products on AMX.
#include "gemm_amx.h"

#include <cstring>
#include <utility>

namespace mnnpy::MNNPY_NS {
namespace {

typedef uint16_t VH __attribute__((vector_size(W * 2)));

MNNPY_INLINE VI as_bits(VF x) { return reinterpret_cast<VI>(x); }

// bf16 in the upper half of each lane, rounded to nearest even; NaN stays NaN.
MNNPY_INLINE VF round_upper(VF x) {
  const VU bits = reinterpret_cast<VU>(x);
  const VU up = bits + 0x7fffu + ((bits >> 16) & 1u);
  const VU rounded = x != x ? bits | 0x400000u : up;
  return reinterpret_cast<VF>(rounded & 0xffff0000u);
}

struct Planes {
  VF hi, lo;
};

// Large values that would round to infinity are cut instead; what is not finite has no lo.
MNNPY_INLINE Planes split(VF x) {
  const VI magnitude = as_bits(x) & 0x7fffffff;
  const VF cut = as_float(as_bits(x) & static_cast<int32_t>(0xffff0000));
  const VI finite = magnitude < 0x7f800000;
  const VI over = (magnitude >= 0x7f7f8000) & finite;
  const VF hi = over ? cut : round_upper(x);
  return {hi, round_upper(finite ? x - hi : VF{})};
}

MNNPY_INLINE void store_upper(uint16_t* out, VF x, int64_t count) {
  const VH half = __builtin_convertvector(reinterpret_cast<VU>(x) >> 16, VH);
  std::memcpy(out, &half, static_cast<size_t>(count) * sizeof(uint16_t));
}

// Lanes of `even` and `odd` side by side, as tiles want the pairs of B.
MNNPY_INLINE void store_pairs(uint32_t* out, VF even, VF odd) {
  const VU pairs = (reinterpret_cast<VU>(even) >> 16) | reinterpret_cast<VU>(odd);
  std::memcpy(out, &pairs, sizeof pairs);
}

}  // namespace

void split_bf16(const float* in, uint16_t* out, int64_t count, int planes, int64_t plane) {
  const auto one = [&](int64_t k, VF x, int64_t lanes) {
    if (planes == 1) return store_upper(out + k, round_upper(x), lanes);
    const Planes p = split(x);
    store_upper(out + k, p.hi, lanes);
    store_upper(out + plane + k, p.lo, lanes);
  };
  int64_t k = 0;
  for (; k + W <= count; k += W) one(k, load(in + k), W);
  if (k < count) one(k, load_partial(in + k, static_cast<int>(count - k)), count - k);
}

namespace {

constexpr int64_t kWide = 32;  // columns of a full panel
constexpr int64_t kWords = 256;  // 32 bits each, in a tile

// [kUnit][kWide] floats of B, zero outside.
void take_block(const BView& b, const float* from, int64_t depth, int64_t cols, float* block) {
  std::memset(block, 0, sizeof(float) * AmxProduct::kUnit * kWide);
  if (b.n_stride == 1) {
    for (int64_t k = 0; k < depth; ++k) std::memcpy(block + k * kWide, from + k * b.k_stride, static_cast<size_t>(cols) * sizeof(float));
  } else if (b.k_stride == 1) {
    transpose(from, b.n_stride, block, kWide, cols, depth);
  } else {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < cols; ++j) block[k * kWide + j] = from[k * b.k_stride + j * b.n_stride];
  }
}

void pack_unit(const float* block, int64_t column_tiles, int planes, uint32_t* to) {
  for (int64_t tile = 0; tile < column_tiles; ++tile)
    for (int64_t pair = 0; pair < AmxProduct::kUnit / 2; ++pair)
      for (int64_t j = 0; j < 16; j += W) {
        const float* p = block + 2 * pair * kWide + tile * 16 + j;
        uint32_t* at = to + tile * kWords + pair * 16 + j;
        if (planes == 1) {
          store_pairs(at, round_upper(load(p)), round_upper(load(p + kWide)));
        } else {
          const Planes even = split(load(p)), odd = split(load(p + kWide));
          store_pairs(at, even.hi, odd.hi);
          store_pairs(at + column_tiles * kWords, even.lo, odd.lo);
        }
      }
}

struct AmxTiles {
  const AmxProduct::TileRows* rows;  // [tap · tap_stride + tile]
  int64_t tap_stride, taps, units;
  const uint32_t* b;
  int64_t b_skip;  // words from the end of a tap's units to the next tap's
  float* sums;     // [NR·16][kWide]
};

template <class Unit, int NR, int NC>
[[MNNPY_AMX]] MNNPY_INLINE void multiply_tiles() {
  Unit::template multiply_bf16<0, 4, 6>();
  if constexpr (NC == 2) Unit::template multiply_bf16<1, 4, 7>();
  if constexpr (NR == 2) Unit::template multiply_bf16<2, 5, 6>();
  if constexpr (NR == 2 && NC == 2) Unit::template multiply_bf16<3, 5, 7>();
}

// Tiles FIRST and, of two, FIRST + 1.
template <class Unit, int FIRST, int COUNT>
[[MNNPY_AMX]] MNNPY_INLINE void load_tiles(const void* a, ptrdiff_t a_stride, const void* b, ptrdiff_t b_stride) {
  Unit::template load<FIRST>(a, a_stride);
  if constexpr (COUNT == 2) Unit::template load<FIRST + 1>(b, b_stride);
}

// Sums of NR tiles of rows by NC tiles of columns: tiles 0 … 3; A goes through 4 and 5, B through 6 and 7.
template <class Unit, int NR, int NC, int PLANES>
[[MNNPY_AMX, gnu::noinline]] void run_tiles(const AmxTiles& t) {
  Unit::template zero<0>();
  if constexpr (NC == 2) Unit::template zero<1>();
  if constexpr (NR == 2) Unit::template zero<2>();
  if constexpr (NR == 2 && NC == 2) Unit::template zero<3>();
  const uint32_t* b = t.b;
  const int64_t units = t.units;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const AmxProduct::TileRows r0 = t.rows[tap * t.tap_stride], r1 = t.rows[tap * t.tap_stride + NR - 1];
    for (int64_t unit = 0; unit < units; ++unit, b += PLANES * NC * kWords) {
      const uint16_t *a0 = r0.p + unit * AmxProduct::kUnit, *a1 = r1.p + unit * AmxProduct::kUnit;
      load_tiles<Unit, 6, NC>(b, 64, b + kWords, 64);
      if constexpr (PLANES == 2) {  // lo·hi, hi·hi, hi·lo: each tile is loaded once
        load_tiles<Unit, 4, NR>(a0 + r0.plane, r0.stride, a1 + r1.plane, r1.stride);
        multiply_tiles<Unit, NR, NC>();
      }
      load_tiles<Unit, 4, NR>(a0, r0.stride, a1, r1.stride);
      multiply_tiles<Unit, NR, NC>();
      if constexpr (PLANES == 2) {
        load_tiles<Unit, 6, NC>(b + NC * kWords, 64, b + (NC + 1) * kWords, 64);
        multiply_tiles<Unit, NR, NC>();
      }
    }
    b += t.b_skip;
  }
  constexpr int64_t kStride = kWide * sizeof(float);
  Unit::template store<0>(t.sums, kStride);
  if constexpr (NC == 2) Unit::template store<1>(t.sums + 16, kStride);
  if constexpr (NR == 2) Unit::template store<2>(t.sums + 16 * kWide, kStride);
  if constexpr (NR == 2 && NC == 2) Unit::template store<3>(t.sums + 16 * kWide + 16, kStride);
}

using TilesFn = void (*)(const AmxTiles&);

template <class Unit>
TilesFn tiles_fn(int64_t row_tiles, int64_t column_tiles, int planes) {
  static constexpr TilesFn kFns[8] = {&run_tiles<Unit, 1, 1, 1>, &run_tiles<Unit, 1, 1, 2>, &run_tiles<Unit, 1, 2, 1>,
                                      &run_tiles<Unit, 1, 2, 2>, &run_tiles<Unit, 2, 1, 1>, &run_tiles<Unit, 2, 1, 2>,
                                      &run_tiles<Unit, 2, 2, 1>, &run_tiles<Unit, 2, 2, 2>};
  return kFns[(row_tiles - 1) * 4 + (column_tiles - 1) * 2 + planes - 1];
}

// From sums in L1 to C, with all that finish_tile() does.
void finish_sums(const float* sums, int64_t rows, const TileOut& t) {
  const Epilogue& e = *t.epilogue;
  const bool clip = e.last && is_clip(e.act) && e.act != Act::NONE;
  const VF low = splat(e.act == Act::RELU ? 0.0f : e.act_alpha), high = splat(e.act == Act::RELU ? __builtin_inff() : e.act_beta);
  for (int64_t r = 0; r < rows; ++r) {
    float* c = t.c + r * t.ldc;
    for (int j = 0; j < t.cols; j += W) {
      const int lanes = std::min(W, t.cols - j);
      const auto take = [&](const float* p) { return lanes == W ? load(p) : load_partial(p, lanes); };
      VF x = load(sums + r * kWide + j);
      if (e.accumulate) x += take(c + j);
      if (e.last) {
        x *= e.scale;
        if (e.bias != nullptr) x += take(e.bias + t.column + j);
        if (e.residual != nullptr) x += take(e.residual + t.offset + r * t.ldc + j);
        if (clip) x = vclip(x, low, high);
      }
      if (lanes == W) {
        store(c + j, x);
      } else {
        store_partial(c + j, x, lanes);
      }
    }
    if (e.last && !is_clip(e.act)) activate_row(e.act, e.act_alpha, e.act_beta, c, t.cols);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles as tall as they are full: of one line each where that fits, else of nearly equal height.
int tile_height(int64_t rows, int64_t line) {
  for (int64_t h = 16; h >= 12 && line > 0; --h)
    if (line % h == 0) return static_cast<int>(h);
  if (rows >= 256 || rows == 0) return 16;
  return static_cast<int>(ceil_div(rows, ceil_div(rows, 16)));
}

}  // namespace

AmxProduct::AmxProduct(int64_t rows, int64_t n, int64_t taps, int64_t depth, int planes, AmxUnit unit, int threads, int64_t line)
    : rows_(rows), n_(n), taps_(taps), depth_(depth), units_(ceil_div(depth, kUnit)), column_tiles_(ceil_div(n, 16)),
      planes_(planes), height_(tile_height(rows, line)), unit_(unit) {
  constexpr int64_t kPanelBytes = 512 << 10, kBlockBytes = 384 << 10;  // parts of an L2 of 2 MiB
  const int64_t deep = kPanelBytes / (planes * 2048);  // units per partial sum
  blk_.taps = std::min<int64_t>(taps, kTable / 32);
  blk_.depth = units_;
  if (units_ > deep + deep / 4) {
    blk_.depth = ceil_div(units_, ceil_div(units_, deep));
    blk_.taps = 1;
  } else if (taps * units_ > deep + deep / 4) {
    blk_.taps = std::clamp<int64_t>(deep / std::max<int64_t>(units_, 1), 1, blk_.taps);
  }
  blk_.depth = std::max<int64_t>(blk_.depth, 1);
  blk_.taps = ceil_div(taps, ceil_div(taps, blk_.taps));
  blk_.groups = ceil_div(taps, blk_.taps) * ceil_div(units_, blk_.depth);
  blk_.panels = panels();

  const int64_t step = 2 * height_, by_cache = kBlockBytes / (blk_.taps * blk_.depth * kUnit * 2 * planes);
  const int64_t most = std::max(step, std::min({by_cache, kTable / blk_.taps, int64_t{256}}) / step * step);
  const double flops = 2.0 * static_cast<double>(rows * n) * static_cast<double>(taps * depth);
  // Several chunks per thread, each worth the hand-over by its arithmetic or (few rows) by its share of B.
  const double worth = std::max(flops / 3e6, static_cast<double>(packed_words()) * 4 / (256 << 10));
  const int64_t wanted = threads == 1 ? 1 : std::min<int64_t>(threads * 4, static_cast<int64_t>(worth));
  blk_.row_blocks = std::max<int64_t>(1, ceil_div(rows, most));
  if (wanted > blk_.row_blocks) blk_.row_blocks = std::clamp<int64_t>(rows / (2 * step), blk_.row_blocks, wanted);
  blk_.rows = std::min(most, std::max(step, ceil_div(ceil_div(rows, blk_.row_blocks), step) * step));
  blk_.row_blocks = std::max<int64_t>(1, ceil_div(rows, blk_.rows));
  blk_.panel_chunks = 1;
  if (blk_.row_blocks < wanted && blk_.panels > 1) {
    const int64_t parts = std::min(blk_.panels, ceil_div(wanted, blk_.row_blocks));
    blk_.panels = ceil_div(blk_.panels, parts);
    blk_.panel_chunks = ceil_div(panels(), blk_.panels);
  }
}

std::string AmxProduct::name() const {
  return std::string(planes_ == 2 ? "amx-bf16x3" : "amx-bf16") + (unit_ == AmxUnit::EMULATED ? "-emulated" : "");
}

size_t AmxProduct::scratch_bytes() const {
  return round_up_64(static_cast<size_t>(blk_.taps * tiles_of(blk_.rows) * height_ * pitch()) * sizeof(uint16_t));
}

void AmxProduct::pack(const BView& b, uint32_t* packed, int64_t first, int64_t last) const {
  alignas(64) float block[kUnit * kWide];
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panel * kWide, tiles = std::min<int64_t>(2, column_tiles_ - 2 * panel);
    uint32_t* to = packed + 2 * panel * taps_ * units_ * planes_ * kWords;
    for (int64_t tap = 0; tap < taps_; ++tap)
      for (int64_t k = 0; k < depth_; k += kUnit, to += planes_ * tiles * kWords) {
        const float* from = b.data + tap * b.tap_stride + k * b.k_stride + column * b.n_stride;
        take_block(b, from, std::min(kUnit, depth_ - k), std::min(kWide, n_ - column), block);
        pack_unit(block, tiles, planes_, to);
      }
  }
}

void AmxProduct::stage(const Part& part, const float* const* table, const Layout&, uint16_t* staged, TileRows* tiles) const {
  const int64_t count = tiles_of(part.row_count), plane = part.units * kUnit;
  const int64_t valid = std::min(plane, depth_ - part.unit * kUnit);
  for (int64_t tap = 0; tap < part.taps; ++tap)
    for (int64_t tile = 0; tile < count; ++tile) {
      tiles[tap * count + tile] = {staged, pitch() * 2, plane};
      for (int64_t r = tile * height_; r < (tile + 1) * height_; ++r, staged += pitch()) {
        const int64_t from = r < part.row_count ? valid : 0;
        if (from > 0) split_bf16(table[tap * part.row_count + r] + part.unit * kUnit, staged, from, planes_, plane);
        for (int p = 0; p < planes_; ++p)
          std::memset(staged + p * plane + from, 0, static_cast<size_t>(plane - from) * sizeof(uint16_t));
      }
    }
}

void AmxProduct::stage(const Part& part, const uint16_t* const* table, const Layout& layout, uint16_t* staged,
                       TileRows* tiles) const {
  const int64_t count = tiles_of(part.row_count), plane = part.units * kUnit;
  const int64_t valid = std::min(plane, depth_ - part.unit * kUnit);
  for (int64_t tap = 0; tap < part.taps; ++tap)
    for (int64_t tile = 0; tile < count; ++tile) {
      const uint16_t* const* rows = table + tap * part.row_count + tile * height_;
      const int64_t present = std::min<int64_t>(height_, part.row_count - tile * height_);
      const int64_t step = present > 1 ? rows[1] - rows[0] : 0;
      bool equal = present == height_ && (layout.filled || valid == plane);
      for (int64_t r = 1; r < present && equal; ++r) equal = rows[r] - rows[r - 1] == step;
      if (equal) {
        tiles[tap * count + tile] = {rows[0] + part.unit * kUnit, step * 2, layout.plane};
        continue;
      }
      tiles[tap * count + tile] = {staged, pitch() * 2, plane};
      for (int64_t r = 0; r < height_; ++r, staged += pitch()) {
        const int64_t from = r < present ? valid : 0;
        for (int p = 0; p < planes_; ++p) {
          uint16_t* to = staged + p * plane;
          if (from > 0) std::memcpy(to, rows[r] + p * layout.plane + part.unit * kUnit, static_cast<size_t>(from) * sizeof(uint16_t));
          std::memset(to + from, 0, static_cast<size_t>(plane - from) * sizeof(uint16_t));
        }
      }
    }
}

void AmxProduct::multiply(const Part& part, const TileRows* tiles, const uint32_t* packed, float* c, int64_t ldc,
                          const Epilogue& e) const {
  alignas(64) float sums[2 * 16 * kWide];
  const int64_t count = tiles_of(part.row_count);
  TileConfig config;
  config.palette = 1;
  for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = static_cast<uint8_t>(t < 6 ? height_ : 16);
  const auto all = [&]<class Unit>(Unit) {
    const TileScope<Unit> scope(config);
    for (int64_t panel = part.panel0; panel < part.panel1; ++panel) {
      const int64_t wide = std::min<int64_t>(2, column_tiles_ - 2 * panel), unit_words = planes_ * wide * kWords;
      AmxTiles t{nullptr, count, part.taps, part.units, nullptr, (units_ - part.units) * unit_words, sums};
      t.b = packed + 2 * panel * taps_ * units_ * planes_ * kWords + (part.tap * units_ + part.unit) * unit_words;
      TileOut out{nullptr, ldc, static_cast<int>(std::min(kWide, n_ - panel * kWide)), &e, panel * kWide, 0};
      for (int64_t tile = 0; tile < count; tile += 2) {
        const int64_t tall = std::min<int64_t>(2, count - tile);
        t.rows = tiles + tile;
        tiles_fn<Unit>(tall, wide, planes_)(t);
        for (int64_t q = tile; q < tile + tall; ++q) {
          const int64_t row = q * height_;
          out.offset = (part.row0 + row) * ldc + out.column;
          out.c = c + out.offset;
          finish_sums(sums + (q - tile) * 16 * kWide, std::min<int64_t>(height_, part.row_count - row), out);
        }
      }
    }
  };
#if MNNPY_HAS_AMX
  if (unit_ == AmxUnit::HARDWARE) return all(HardwareTiles{});
#endif
  all(EmulatedTiles{});
}

int amx_planes(const NodeDesc& node, const BuildContext& ctx, bool pays) {
  const std::string algorithm = node.s("algorithm", "auto"), precision = node.s("precision", "");
  const AmxUnit unit = amx_unit();
  const bool automatic = algorithm == "auto";
  const char* why = nullptr;
  int planes = 0;
  if (automatic || algorithm == "bf16") planes = precision == "low" ? 1 : 0;
  if (algorithm == "bf16x3") planes = 2;
  if (planes == 0) {
    why = "bf16 on AMX is for precision=\"low\" or algorithm=\"bf16x3\"";
  } else if (precision == "high") {
    why = "precision=\"high\" allows no bf16";
  } else if (unit == AmxUnit::NONE || (unit == AmxUnit::HARDWARE && (MNNPY_HAS_AMX == 0 || ctx.isa != Isa::AVX512))) {
    why = unit == AmxUnit::NONE ? amx_reason() : "this variant has no AMX";
  } else if (automatic && (unit == AmxUnit::EMULATED || !pays)) {
    why = "AMX does not pay here";
  }
  if (why != nullptr && ctx.why != nullptr) *ctx.why = why;
  return why == nullptr ? planes : 0;
}

// An estimate: below some work, or with tiles far from full, conversions and the set-up of tiles eat the gain.
bool amx_pays(int64_t rows, int64_t n, int64_t taps, int64_t depth) {
  const double work = static_cast<double>(rows * n) * static_cast<double>(taps * depth);
  const double tiles = static_cast<double>(ceil_div(rows, 2) * 2 * ceil_div(n, 16) * 16) * static_cast<double>(taps * ceil_div(depth, 32) * 32);
  return rows >= 8 && n >= 32 && work > 1e6 && tiles < 1.5 * work;
}

}  // namespace mnnpy::MNNPY_NS
