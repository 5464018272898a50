// Products of bf16 pairs with f32 sums: C[rows, n] = Σ over taps A_tap[rows, depth] · B_tap[depth, n].
//
// Two neighbours along k share 32 bits, as VDPBF16PS wants them. Panels and blocking are those of the f32 product with a
// pair in the place of a float. B is packed once: [panel][tap][pair][nv·W]. Rows of A are rounded (to nearest even) into a
// staging block right before they are used, or lie in memory as bf16 already. Denormals count as zero.
#pragma once

#include "gemm.h"

namespace mnnpy::MNNPY_NS {

#if MNNPY_ISA == 2

struct PairTile : TileOut {
  const uint16_t* const* rows;  // rows[tap · tap_stride + row]
  int64_t tap_stride;
  int64_t taps;
  int64_t depth;    // k per tap; may be odd
  int64_t k_begin;  // first k of each row that is used, even
  const uint32_t* b;  // [tap][pair][NV·W]
};

using PairTileFn = void (*)(const PairTile&);
// Rows 1 … kRows[nv] by vectors 1 … kMaxNV.
PairTileFn pair_tile_fn(int rows, int nv);

// Rounds to nearest even.
void to_bf16(const float* in, uint16_t* out, int64_t count);

// As pack_b, with ⌈depth/2⌉ pairs per tap.
void pack_pairs(const Panels& panels, int64_t taps, int64_t depth, const BView& b, uint32_t* packed, size_t first, size_t last);

inline int64_t pairs_of(int64_t depth) { return (depth + 1) / 2; }
// Elements from one staged row to the next: a line more than a power of two, so that rows do not share cache sets.
inline int64_t staged_pitch(const Blocking& blk) { return (blk.depth + 15) / 16 * 32 + 32; }
inline size_t staged_bytes(const Blocking& blk) {
  return round_up_64(static_cast<size_t>(blk.rows * blk.taps * staged_pitch(blk)) * sizeof(uint16_t));
}

// One panel of C rows [0, count) from a table of rows; t holds everything but rows, c and offset.
inline void run_pair_panel(PairTile t, int nv, const uint16_t* const* table, int64_t row0, int64_t count, float* c) {
  const int64_t most = kRows[nv], tiles = (count + most - 1) / most;
  const int64_t base = count / tiles, extra = count % tiles;  // tiles of nearly equal height
  int64_t r = 0;
  for (int64_t q = 0; q < tiles; ++q) {
    const int64_t height = base + (q < extra ? 1 : 0);
    t.rows = table + r;
    t.offset = (row0 + r) * t.ldc + t.column;
    t.c = c + t.offset;
    pair_tile_fn(static_cast<int>(height), nv)(t);
    r += height;
  }
}

// Fill as in run_chunk, on floats (T = float, staged) or bf16 (T = uint16_t). blk counts depth in pairs.
template <class T, class Fill>
void run_pair_chunk(const Blocking& blk, const Panels& panels, const uint32_t* packed, int64_t rows, int64_t taps,
                    int64_t depth, float* c, int64_t ldc, const Epilogue& epilogue, int64_t row_block, int64_t panel_chunk,
                    uint16_t* staged, Fill&& fill) {
  constexpr bool kStaged = std::is_same_v<T, float>;
  const T* source[kTable];
  const uint16_t* table[kStaged ? kTable : 1];
  const int64_t row0 = row_block * blk.rows, row_count = std::min(blk.rows, rows - row0), pitch = staged_pitch(blk);
  const auto p0 = static_cast<size_t>(panel_chunk * blk.panels);
  const size_t p1 = std::min(panels.list.size(), p0 + static_cast<size_t>(blk.panels));
  Epilogue e = epilogue;
  PairTile t;
  t.tap_stride = row_count;
  t.ldc = ldc;
  t.epilogue = &e;
  for (int64_t tap = 0; tap < taps; tap += blk.taps) {
    const int64_t tap_count = std::min(blk.taps, taps - tap);
    fill(row0, row_count, tap, tap_count, static_cast<const T**>(source), row_count);
    for (int64_t k = 0; k < depth; k += 2 * blk.depth) {
      t.taps = tap_count;
      t.depth = std::min(2 * blk.depth, depth - k);
      t.k_begin = kStaged ? 0 : k;
      e.accumulate = tap > 0 || k > 0;
      e.last = tap + tap_count == taps && k + t.depth == depth;
      const uint16_t* const* lines;
      if constexpr (kStaged) {
        for (int64_t q = 0; q < tap_count * row_count; ++q) {
          to_bf16(source[q] + k, staged + q * pitch, t.depth);
          table[q] = staged + q * pitch;
        }
        lines = table;
      } else {
        lines = source;
      }
      for (size_t p = p0; p < p1; ++p) {
        const auto& panel = panels.list[p];
        t.b = packed + panel.offset * taps * pairs_of(depth) + (tap * pairs_of(depth) + k / 2) * panel.nv * W;
        t.cols = panel.cols;
        t.column = panel.column;
        run_pair_panel(t, panel.nv, lines, row0, row_count, c);
      }
    }
  }
}

// Everything; pool may be nullptr to stay on this thread. `staged` holds staged_bytes per slot.
template <class T, class Fill>
void run_pair_blocks(const Blocking& blk, const Panels& panels, const uint32_t* packed, int64_t rows, int64_t taps,
                     int64_t depth, float* c, int64_t ldc, const Epilogue& epilogue, Pool* pool, std::byte* staged,
                     Fill&& fill) {
  if (rows == 0 || panels.n == 0) return;
  const int64_t chunks = blk.row_blocks * blk.panel_chunks;
  const auto one = [&](int64_t chunk, int slot) {
    auto* mine = reinterpret_cast<uint16_t*>(staged + static_cast<size_t>(slot) * staged_bytes(blk));
    run_pair_chunk<T>(blk, panels, packed, rows, taps, depth, c, ldc, epilogue, chunk / blk.panel_chunks,
                      chunk % blk.panel_chunks, mine, fill);
  };
  if (pool != nullptr) {
    pool->parallel_for(chunks, one);
  } else {
    for (int64_t k = 0; k < chunks; ++k) one(k, 0);
  }
}

// Shape, panels and blocks of one such product. AmxProduct has the same interface: kernels are templates over both.
class PairProduct {
 public:
  struct Layout {};

  PairProduct() = default;
  PairProduct(int64_t rows, int64_t n, int64_t taps, int64_t depth, int threads)
      : rows_(rows), taps_(taps), depth_(depth), panels_(n), blk_(plan_blocks(rows, taps, pairs_of(depth), panels_, threads)) {}

  size_t packed_words() const { return static_cast<size_t>(panels_.width * taps_ * pairs_of(depth_)); }
  int64_t panels() const { return static_cast<int64_t>(panels_.list.size()); }
  void pack(const BView& b, uint32_t* packed, int64_t first, int64_t last) const {
    pack_pairs(panels_, taps_, depth_, b, packed, static_cast<size_t>(first), static_cast<size_t>(last));
  }
  size_t scratch_bytes() const { return staged_bytes(blk_); }  // per slot, for rows of f32
  bool split() const { return blk_.split(); }
  std::string name() const { return "bf16"; }

  template <class T, class Fill>
  void run(const uint32_t* packed, float* c, int64_t ldc, const Epilogue& epilogue, Pool* pool, std::byte* scratch,
           const Layout&, Fill&& fill) const {
    run_pair_blocks<T>(blk_, panels_, packed, rows_, taps_, depth_, c, ldc, epilogue, pool, scratch, fill);
  }

 private:
  int64_t rows_ = 0, taps_ = 0, depth_ = 0;
  Panels panels_;
  Blocking blk_;
};

#endif

// Whether bf16 is asked for (precision="low", algorithm open or "bf16") and this CPU has it; else ctx.why says what lacks.
bool wants_bf16(const NodeDesc& node, const BuildContext& ctx);

}  // namespace mnnpy::MNNPY_NS
