// Products on AMX tiles with f32 sums: C[rows, n] = Σ over taps A_tap[rows, depth] · B_tap[depth, n].
//
// Operands are one plane of bf16 (precision "low"), or two: x = hi + lo, both rounded to nearest even, and a product is
// lo·hi + hi·hi + hi·lo, about 4e-6 of the largest result away from f64 (bf16x3; lo·lo lies below f32's own rounding).
// Two by two tiles of sums take four of the eight tiles, A and B two each.
//
// k is cut into units of 32, the last one filled with zeros. B is packed once: [panel][tap][unit][plane][tile][pair][16],
// a panel being two tiles of 16 columns, or one. A tile of A is loaded from where it lies if its rows are equally far from
// each other (pixels of one line), else its rows are gathered into a staging block first; f32 rows are split into the
// same block. Infinite operands give NaN in two planes (∞·lo), denormals count as zero.
#pragma once

#include "amx.h"
#include "gemm.h"

namespace mnnpy::MNNPY_NS {

// Rounds (one plane) or splits (two) to bf16: out[0, count) is hi, out[plane, plane + count) is lo.
void split_bf16(const float* in, uint16_t* out, int64_t count, int planes, int64_t plane);

class AmxProduct {
 public:
  static constexpr int64_t kUnit = 32;  // k per tile
  struct TileRows {
    const uint16_t* p;
    int64_t stride;  // bytes from row to row
    int64_t plane;   // elements from hi to lo
  };
  // Where bf16 rows lie: `plane` as above; `filled`: zeros follow each row up to a multiple of kUnit.
  struct Layout {
    int64_t plane = 0;
    bool filled = false;
  };

  AmxProduct() = default;
  // `line`: rows that are equally far from each other in runs of this length (0: unknown).
  AmxProduct(int64_t rows, int64_t n, int64_t taps, int64_t depth, int planes, AmxUnit unit, int threads, int64_t line = 0);

  size_t packed_words() const { return static_cast<size_t>(column_tiles_ * taps_ * units_ * planes_) * 256; }
  int64_t panels() const { return (column_tiles_ + 1) / 2; }
  void pack(const BView& b, uint32_t* packed, int64_t first, int64_t last) const;
  size_t scratch_bytes() const;  // per slot
  bool split() const { return blk_.split(); }
  int planes() const { return planes_; }
  std::string name() const;

  // Fill as in run_chunk, on floats (T = float) or bf16 (T = uint16_t); pool may be nullptr to stay on this thread.
  template <class T, class Fill>
  void run(const uint32_t* packed, float* c, int64_t ldc, const Epilogue& epilogue, Pool* pool, std::byte* scratch,
           const Layout& layout, Fill&& fill) const {
    if (rows_ == 0 || n_ == 0) return;
    const auto one = [&](int64_t chunk, int slot) {
      auto* staged = reinterpret_cast<uint16_t*>(scratch + static_cast<size_t>(slot) * scratch_bytes());
      run_chunk<T>(packed, c, ldc, epilogue, chunk / blk_.panel_chunks, chunk % blk_.panel_chunks, staged, layout, fill);
    };
    const int64_t chunks = blk_.row_blocks * blk_.panel_chunks;
    if (pool != nullptr) {
      pool->parallel_for(chunks, one);
    } else {
      for (int64_t k = 0; k < chunks; ++k) one(k, 0);
    }
  }

 private:
  struct Part {  // of the sum, and of C
    int64_t row0, row_count, panel0, panel1;
    int64_t tap, taps, unit, units;
  };
  static constexpr int64_t kTiles = kTable / 4;  // tiles of A per block, all taps: 8 rows or more each

  template <class T, class Fill>
  void run_chunk(const uint32_t* packed, float* c, int64_t ldc, const Epilogue& epilogue, int64_t row_block,
                 int64_t panel_chunk, uint16_t* staged, const Layout& layout, Fill&& fill) const {
    const T* table[kTable];
    TileRows tiles[kTiles];
    Part part{row_block * blk_.rows, 0, panel_chunk * blk_.panels, 0, 0, 0, 0, 0};
    part.row_count = std::min(blk_.rows, rows_ - part.row0);
    part.panel1 = std::min(panels(), part.panel0 + blk_.panels);
    Epilogue e = epilogue;
    for (part.tap = 0; part.tap < taps_; part.tap += blk_.taps) {
      part.taps = std::min(blk_.taps, taps_ - part.tap);
      fill(part.row0, part.row_count, part.tap, part.taps, static_cast<const T**>(table), part.row_count);
      for (part.unit = 0; part.unit < units_; part.unit += blk_.depth) {
        part.units = std::min(blk_.depth, units_ - part.unit);
        e.accumulate = part.tap > 0 || part.unit > 0;
        e.last = part.tap + part.taps == taps_ && part.unit + part.units == units_;
        stage(part, table, layout, staged, tiles);
        multiply(part, tiles, packed, c, ldc, e);
      }
    }
  }

  void stage(const Part& part, const float* const* table, const Layout& layout, uint16_t* staged, TileRows* tiles) const;
  void stage(const Part& part, const uint16_t* const* table, const Layout& layout, uint16_t* staged, TileRows* tiles) const;
  void multiply(const Part& part, const TileRows* tiles, const uint32_t* packed, float* c, int64_t ldc, const Epilogue& e) const;
  int64_t pitch() const { return planes_ * blk_.depth * kUnit + kUnit; }  // no power of two: rows do not share cache sets
  int64_t tiles_of(int64_t rows) const { return (rows + height_ - 1) / height_; }

  int64_t rows_ = 0, n_ = 0, taps_ = 0, depth_ = 0, units_ = 0, column_tiles_ = 0;
  int planes_ = 1;
  int height_ = 16;  // rows of a tile
  AmxUnit unit_ = AmxUnit::NONE;
  Blocking blk_;  // depth in units, panels of two tiles
};

// Which planes a node asks AMX for: 1 (precision="low"), 2 (algorithm="bf16x3"), or 0 with the reason in ctx.why.
// `pays`: whether "auto" may take it, which it does only where the hardware is real.
int amx_planes(const NodeDesc& node, const BuildContext& ctx, bool pays);

// Whether tiles are full enough, and the product large enough, for AMX to be faster than pairs in vectors.
bool amx_pays(int64_t rows, int64_t n, int64_t taps, int64_t depth);

}  // namespace mnnpy::MNNPY_NS
