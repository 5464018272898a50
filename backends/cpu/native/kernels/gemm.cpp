// Packing and blocking of f32 products.
#include "gemm.h"

#include <cstdlib>
#include <limits>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mnnpy::MNNPY_NS {

Panels::Panels(int64_t columns) : n(columns) {
  // Full-width panels, then the cheapest way to cut the rest: a single vector keeps the multipliers least busy.
  constexpr double kCost[5] = {0, 1.2, 2.04, 3.02, 4.0};
  const int64_t vectors = (n + W - 1) / W;
  const auto reach = static_cast<size_t>(std::min<int64_t>(vectors, 4 * kMaxNV));
  std::vector<double> best(reach + 1, 0.0);
  std::vector<int> pick(reach + 1, 0);
  for (size_t v = 1; v <= reach; ++v) {
    best[v] = std::numeric_limits<double>::infinity();
    for (int nv = 1; nv <= kMaxNV && static_cast<size_t>(nv) <= v; ++nv) {
      const double cost = best[v - static_cast<size_t>(nv)] + kCost[nv];
      if (cost <= best[v]) best[v] = cost, pick[v] = nv;
    }
  }
  int64_t left = vectors, column = 0;
  while (left > 0) {
    const int nv = left > static_cast<int64_t>(reach) ? kMaxNV : pick[static_cast<size_t>(left)];
    const int64_t cols = std::min<int64_t>(n - column, int64_t{nv} * W);
    list.push_back({column, nv, static_cast<int>(cols), width});
    column += cols;
    width += int64_t{nv} * W;
    left -= nv;
  }
}

namespace {

void pack_rows(const float* src, int64_t k_stride, int64_t depth, int cols, int64_t width, float* dst) {
  for (int64_t k = 0; k < depth; ++k, src += k_stride, dst += width) {
    int64_t j = 0;
    for (; j + W <= cols; j += W) store(dst + j, load(src + j));
    if (j < width) {
      store(dst + j, load_partial(src + j, static_cast<int>(cols - j)));
    }
  }
}

// Columns are rows in memory: transposes blocks that stay in L1.
void pack_columns(const float* src, int64_t n_stride, int64_t depth, int cols, int64_t width, float* dst) {
  constexpr int64_t kBlock = 64;
  for (int64_t k = 0; k < depth; k += kBlock) {
    const int64_t count = std::min(kBlock, depth - k);
    transpose(src + k, n_stride, dst + k * width, width, cols, count);
    for (int64_t q = 0; q < count; ++q)
      for (int64_t j = cols; j < width; ++j) dst[(k + q) * width + j] = 0.0f;
  }
}

}  // namespace

void pack_b(const Panels& panels, int64_t taps, int64_t depth, const BView& b, float* packed, size_t first, size_t last) {
  for (size_t p = first; p < last; ++p) {
    const auto& panel = panels.list[p];
    const int64_t width = int64_t{panel.nv} * W;
    float* to = packed + panel.offset * taps * depth;
    for (int64_t tap = 0; tap < taps; ++tap, to += depth * width) {
      const float* from = b.data + tap * b.tap_stride + panel.column * b.n_stride;
      if (b.n_stride == 1) {
        pack_rows(from, b.k_stride, depth, panel.cols, width, to);
      } else if (b.k_stride == 1) {
        pack_columns(from, b.n_stride, depth, panel.cols, width, to);
      } else {
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t j = 0; j < width; ++j)
            to[k * width + j] = j < panel.cols ? from[k * b.k_stride + j * b.n_stride] : 0.0f;
      }
    }
  }
}

Blocking plan_blocks(int64_t rows, int64_t taps, int64_t depth, const Panels& panels, int threads) {
  constexpr int64_t kDeep = 1024;       // a panel of this depth takes a quarter of L2
  constexpr int64_t kBlockBytes = 384 << 10;  // rows of A that are read once per panel
  Blocking b;
  b.taps = taps;
  b.depth = depth;
  // A few rows only: every panel is read once, nothing is gained by keeping it in L2.
  if (rows > kMaxRows) {
    if (depth > kDeep + kDeep / 4) {
      const int64_t parts = (depth + kDeep - 1) / kDeep;
      b.depth = (depth + parts - 1) / parts;
      b.taps = 1;
    } else if (taps * depth > kDeep + kDeep / 4) {
      b.taps = std::clamp<int64_t>(kDeep / depth, 1, taps);
      const int64_t parts = (taps + b.taps - 1) / b.taps;
      b.taps = (taps + parts - 1) / parts;
    }
  }
  b.taps = std::min<int64_t>(b.taps, kTable / (2 * kMaxRows));
  b.groups = ((taps + b.taps - 1) / b.taps) * ((depth + b.depth - 1) / b.depth);
  b.panels = std::max<int64_t>(1, static_cast<int64_t>(panels.list.size()));

  const int64_t by_cache = std::max<int64_t>(48, kBlockBytes / std::max<int64_t>(1, b.taps * b.depth * 4));
  int64_t most = std::min({rows, int64_t{192}, kTable / b.taps, by_cache});
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(taps * depth) * static_cast<double>(panels.n);
  // Several chunks per thread, each worth the hand-over by its arithmetic or (few rows) by its share of B.
  const double worth = std::max(flops / 1e6, static_cast<double>(taps * depth * panels.n) * 4 / (256 << 10));
  const int64_t wanted = threads == 1 ? 1 : std::min<int64_t>(threads * 4, static_cast<int64_t>(worth));
  most = std::max<int64_t>(1, most);
  b.row_blocks = std::max<int64_t>(1, (rows + most - 1) / most);
  if (wanted > b.row_blocks) b.row_blocks = std::clamp<int64_t>(rows / 48, b.row_blocks, wanted);
  b.rows = std::max<int64_t>(1, (rows + b.row_blocks - 1) / b.row_blocks);
  // Multiples of the tallest common tile waste no part of it.
  const int64_t unit = kRows[kMaxNV], rounded = (b.rows + unit - 1) / unit * unit;
  if (b.row_blocks > 1 && rounded <= kTable / b.taps) b.rows = rounded;
  b.row_blocks = std::max<int64_t>(1, (rows + b.rows - 1) / b.rows);
  b.panel_chunks = 1;
  if (b.row_blocks < wanted && b.panels > 1) {
    const int64_t parts = std::min<int64_t>(b.panels, (wanted + b.row_blocks - 1) / b.row_blocks);
    b.panels = (b.panels + parts - 1) / parts;
    b.panel_chunks = (static_cast<int64_t>(panels.list.size()) + b.panels - 1) / b.panels;
  }
  return b;
}

void transpose(const float* in, int64_t ld_in, float* out, int64_t ld_out, int64_t rows, int64_t cols) {
  typedef float V4 __attribute__((vector_size(16)));
  typedef float V4U __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int32_t I4 __attribute__((vector_size(16)));
  constexpr int64_t kBlock = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = std::min(rows, r0 + kBlock);
    for (int64_t c0 = 0; c0 < cols; c0 += 4) {
      const bool whole = c0 + 4 <= cols;
      int64_t r = r0;
      for (; whole && r + 4 <= r1; r += 4) {
        const float* p = in + r * ld_in + c0;
        const V4 a = *reinterpret_cast<const V4U*>(p), b = *reinterpret_cast<const V4U*>(p + ld_in);
        const V4 c = *reinterpret_cast<const V4U*>(p + 2 * ld_in), d = *reinterpret_cast<const V4U*>(p + 3 * ld_in);
#if defined(__clang__)
        const V4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const V4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        const V4 o0 = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), o1 = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
        const V4 o2 = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), o3 = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
#else
        const V4 ab0 = __builtin_shuffle(a, b, I4{0, 4, 1, 5}), ab1 = __builtin_shuffle(a, b, I4{2, 6, 3, 7});
        const V4 cd0 = __builtin_shuffle(c, d, I4{0, 4, 1, 5}), cd1 = __builtin_shuffle(c, d, I4{2, 6, 3, 7});
        const V4 o0 = __builtin_shuffle(ab0, cd0, I4{0, 1, 4, 5}), o1 = __builtin_shuffle(ab0, cd0, I4{2, 3, 6, 7});
        const V4 o2 = __builtin_shuffle(ab1, cd1, I4{0, 1, 4, 5}), o3 = __builtin_shuffle(ab1, cd1, I4{2, 3, 6, 7});
#endif
        float* q = out + c0 * ld_out + r;
        *reinterpret_cast<V4U*>(q) = o0;
        *reinterpret_cast<V4U*>(q + ld_out) = o1;
        *reinterpret_cast<V4U*>(q + 2 * ld_out) = o2;
        *reinterpret_cast<V4U*>(q + 3 * ld_out) = o3;
      }
      for (; r < r1; ++r)
        for (int64_t c = c0; c < std::min(cols, c0 + 4); ++c) out[c * ld_out + r] = in[r * ld_in + c];
    }
  }
  static_cast<void>(sizeof(I4));
}

std::optional<Epilogue> epilogue_from(const NodeDesc& node) {
  constexpr const char* kNames[] = {"",     "Relu",     "Clip", "Sigmoid",   "Tanh",      "Gelu",
                                    "GeluTanh", "Silu", "HardSwish", "LeakyRelu", "HardSigmoid"};
  Epilogue e;
  const std::string act = node.s("act", "");
  bool known = false;
  for (size_t k = 0; k < std::size(kNames); ++k)
    if (act == kNames[k]) e.act = static_cast<Act>(k), known = true;
  if (!known) return std::nullopt;
  e.scale = static_cast<float>(node.f("alpha", 1.0));
  e.act_alpha = static_cast<float>(node.f("act_alpha", 0.0));
  e.act_beta = static_cast<float>(node.f("act_beta", 0.0));
  return e;
}

Floats::Floats(size_t count) : count_(count) {
  if (count == 0) return;
  constexpr size_t kHuge = size_t{2} << 20;
  const size_t bytes = count * sizeof(float);
  const size_t align = bytes >= kHuge ? kHuge : 64;
  void* p = nullptr;
  if (posix_memalign(&p, align, (bytes + align - 1) / align * align) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHuge) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  data_ = static_cast<float*>(p);
}

Floats::~Floats() {
  if (!shared_) std::free(data_);
}

void Floats::share() {
  if (shared_ || data_ == nullptr) return;
  shared_ = share_block(std::shared_ptr<const void>(data_, [](const void* p) { std::free(const_cast<void*>(p)); }), bytes());
  data_ = static_cast<float*>(const_cast<void*>(shared_.get()));
}

Floats& Floats::operator=(Floats&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(count_, o.count_);
  std::swap(shared_, o.shared_);
  return *this;
}

}  // namespace mnnpy::MNNPY_NS
