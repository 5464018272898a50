// Blocked f32 products on the register tile: C[rows, n] = Σ over taps A_tap[rows, depth] · B_tap[depth, n].
#pragma once

#include <optional>

#include "micro.h"

namespace mnnpy::MNNPY_NS {

// How the columns of B are cut into panels of 1 … kMaxNV vectors.
struct Panels {
  struct Panel {
    int64_t column;
    int nv;
    int cols;
    int64_t offset;  // floats before this panel, per unit of k
  };
  int64_t n = 0;
  int64_t width = 0;  // floats per unit of k, all panels
  std::vector<Panel> list;

  Panels() = default;
  explicit Panels(int64_t n);
};

// B as an array with strides (in floats) over taps, k and columns.
struct BView {
  const float* data;
  int64_t tap_stride, k_stride, n_stride;
};

// Packs panels [first, last) to [panel][tap][k][nv·W]; `packed` is the start of all panels.
void pack_b(const Panels& panels, int64_t taps, int64_t depth, const BView& b, float* packed, size_t first, size_t last);

struct Blocking {
  int64_t rows = 0;            // per block
  int64_t taps = 0, depth = 0;  // per partial sum
  int64_t panels = 0;          // per chunk
  int64_t row_blocks = 0, panel_chunks = 0;
  bool split() const { return groups > 1; }
  int64_t groups = 1;          // partial sums
};
constexpr int64_t kTable = 2048;  // row pointers per block

Blocking plan_blocks(int64_t rows, int64_t taps, int64_t depth, const Panels& panels, int threads);

// Fill(row, count, tap, tap_count, table, stride): table[t·stride + r] = pointer to `depth` floats of row+r at tap+t.
template <class Fill>
void run_chunk(const Blocking& blk, const Panels& panels, const float* packed, int64_t rows, int64_t taps, int64_t depth,
               float* c, int64_t ldc, const Epilogue& epilogue, int64_t row_block, int64_t panel_chunk, Fill&& fill) {
  const float* table[kTable];
  const int64_t row0 = row_block * blk.rows, row_count = std::min(blk.rows, rows - row0);
  const auto p0 = static_cast<size_t>(panel_chunk * blk.panels);
  const size_t p1 = std::min(panels.list.size(), p0 + static_cast<size_t>(blk.panels));
  Epilogue e = epilogue;
  TileArgs t;
  t.tap_stride = row_count;
  t.ldc = ldc;
  t.epilogue = &e;
  for (int64_t tap = 0; tap < taps; tap += blk.taps) {
    const int64_t tap_count = std::min(blk.taps, taps - tap);
    fill(row0, row_count, tap, tap_count, static_cast<const float**>(table), row_count);
    for (int64_t k = 0; k < depth; k += blk.depth) {
      const int64_t k_count = std::min(blk.depth, depth - k);
      e.accumulate = tap > 0 || k > 0;
      e.last = tap + tap_count == taps && k + k_count == depth;
      t.taps = tap_count;
      t.depth = k_count;
      t.k_begin = k;
      for (size_t p = p0; p < p1; ++p) {
        const auto& panel = panels.list[p];
        const int64_t width = int64_t{panel.nv} * W;
        t.b = packed + panel.offset * taps * depth + (tap * depth + k) * width;
        t.cols = panel.cols;
        t.column = panel.column;
        const int most = kRows[panel.nv];
        const int64_t tiles = (row_count + most - 1) / most;
        const int64_t base = row_count / tiles, extra = row_count % tiles;  // tiles of nearly equal height
        const TileFn tall = tile_fn(static_cast<int>(base + 1 <= most ? base + 1 : base), panel.nv);
        const TileFn low = tile_fn(static_cast<int>(base), panel.nv);
        int64_t r = 0;
        for (int64_t q = 0; q < tiles; ++q) {
          t.rows = table + r;
          t.offset = (row0 + r) * ldc + panel.column;
          t.c = c + t.offset;
          (q < extra ? tall : low)(t);
          r += base + (q < extra ? 1 : 0);
        }
      }
    }
  }
}

// Everything; pool may be nullptr to stay on this thread.
template <class Fill>
void run_blocks(const Blocking& blk, const Panels& panels, const float* packed, int64_t rows, int64_t taps, int64_t depth,
                float* c, int64_t ldc, const Epilogue& epilogue, Pool* pool, Fill&& fill) {
  if (rows == 0 || panels.n == 0) return;
  const int64_t chunks = blk.row_blocks * blk.panel_chunks;
  const auto one = [&](int64_t chunk, int) {
    run_chunk(blk, panels, packed, rows, taps, depth, c, ldc, epilogue, chunk / blk.panel_chunks, chunk % blk.panel_chunks,
              fill);
  };
  if (pool != nullptr) {
    pool->parallel_for(chunks, one);
  } else {
    for (int64_t k = 0; k < chunks; ++k) one(k, 0);
  }
}

// Rows of a plain matrix.
struct MatrixRows {
  const float* a;
  int64_t lda;
  void operator()(int64_t row, int64_t count, int64_t, int64_t, const float** table, int64_t) const {
    for (int64_t r = 0; r < count; ++r) table[r] = a + (row + r) * lda;
  }
};

// out[cols][rows] = in[rows][cols] (row strides in floats).
void transpose(const float* in, int64_t ld_in, float* out, int64_t ld_out, int64_t rows, int64_t cols);

// The fused attributes act, act_alpha, act_beta, alpha; nullopt for an unknown act.
std::optional<Epilogue> epilogue_from(const NodeDesc& node);

// Memory of packed weights, aligned.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t count);
  ~Floats();
  Floats(Floats&& o) noexcept : data_(o.data_), count_(o.count_), shared_(std::move(o.shared_)) {
    o.data_ = nullptr, o.count_ = 0;
  }
  Floats& operator=(Floats&& o) noexcept;
  // Call once the contents are final: equal contents of other kernels and this one then share memory.
  void share();
  float* data() { return data_; }
  const float* data() const { return data_; }
  size_t bytes() const { return count_ * sizeof(float); }

 private:
  float* data_ = nullptr;
  size_t count_ = 0;
  std::shared_ptr<const void> shared_;  // owns data_ after share()
};

inline size_t round_up_64(size_t n) { return (n + 63) / 64 * 64; }

}  // namespace mnnpy::MNNPY_NS
