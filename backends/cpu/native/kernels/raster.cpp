// Raster: copies strided regions. Each region is brought to a normal form once (axes of size 1 dropped, axes that
// continue one another merged, destination strides falling) and then gets the loop that fits its inner axes.
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <type_traits>

#include "kernels/light.h"
#include "kernels/numbers.h"

namespace mnnpy::MNNPY_NS {
namespace {

struct Pair16 {
  uint64_t a, b;
};

// Elements of four bytes that move in pairs or fours; no stricter alignment than theirs.
struct Two {
  uint32_t a, b;
};
struct Four {
  uint32_t a, b, c, d;
};

enum class Move { RUN, FILL, GATHER, TRANSPOSE, PLANES };

struct Piece {
  int origin = 0;
  int64_t src = 0, dst = 0;
  Shape8 size, from, to;  // outer axes, then the inner one or two of the move
  Move move = Move::RUN;
  int64_t count = 1;
  int partner = -1;           // the piece that fills every other element between those of this one; -2: has been such
  int wide = 1;               // elements that move as one: offsets, strides and sizes count these
  int64_t plane[4] = {};      // PLANES: element i of every group of four goes to a stretch of its own

  int inner() const { return move == Move::TRANSPOSE ? 2 : 1; }
  int64_t outer() const {
    int64_t n = 1;
    for (int k = 0; k < size.rank - inner(); ++k) n *= size[k];
    return n;
  }
};

// ---- transposition ---------------------------------------------------------------------------------------------------

// N×N elements in 128-bit vectors, N = 16 / sizeof(T). After log2(N) rounds of interleaving row i with row i + N/2
// the rows are the columns.
template <class T>
struct Tile {
  static constexpr int N = 16 / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(16)));
  typedef T VUnaligned __attribute__((vector_size(16), aligned(sizeof(T)), may_alias));

  MNNPY_INLINE static void interleave(V a, V b, V& low, V& high) {
    if constexpr (N == 2) {
      low = __builtin_shufflevector(a, b, 0, 2);
      high = __builtin_shufflevector(a, b, 1, 3);
    } else if constexpr (N == 4) {
      low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else if constexpr (N == 8) {
      low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
      low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
  }
  // y[i·to + j] = x[j·from + i] for i, j < N.
  MNNPY_INLINE static void run(const T* x, int64_t from, T* y, int64_t to) {
    V r[N], s[N];
    for (int k = 0; k < N; ++k) r[k] = *reinterpret_cast<const VUnaligned*>(x + k * from);
    for (int round = 1; round < N; round *= 2) {
      for (int k = 0; k < N / 2; ++k) interleave(r[k], r[k + N / 2], s[2 * k], s[2 * k + 1]);
      for (int k = 0; k < N; ++k) r[k] = s[k];
    }
    for (int k = 0; k < N; ++k) *reinterpret_cast<VUnaligned*>(y + k * to) = r[k];
  }
};

template <class T, int J>
void interleave_columns(const T* x, int64_t from, T* y, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i)
    for (int j = 0; j < J; ++j) y[i * J + j] = x[j * from + i];
}

template <class T, int R>
void separate_rows(const T* x, T* y, int64_t to, int64_t columns) {
  T* row[R];
  for (int i = 0; i < R; ++i) row[i] = y + i * to;
  MNNPY_IVDEP
  for (int64_t j = 0; j < columns; ++j)
    for (int i = 0; i < R; ++i) row[i][j] = x[j * R + i];
}

// y[plane[i] + j] = x[4·j + i].
template <class T>
void separate_planes(const T* x, T* y, const int64_t* plane, int64_t columns) {
  T *a = y + plane[0], *b = y + plane[1], *c = y + plane[2], *d = y + plane[3];
  int64_t j = 0;
  if constexpr (sizeof(T) == 4)
    for (; j + 4 <= columns; j += 4) {
      using V = typename Tile<T>::VUnaligned;
      T t[16];
      Tile<T>::run(x + 4 * j, 4, t, 4);
      *reinterpret_cast<V*>(a + j) = *reinterpret_cast<V*>(t);
      *reinterpret_cast<V*>(b + j) = *reinterpret_cast<V*>(t + 4);
      *reinterpret_cast<V*>(c + j) = *reinterpret_cast<V*>(t + 8);
      *reinterpret_cast<V*>(d + j) = *reinterpret_cast<V*>(t + 12);
    }
  for (; j < columns; ++j) a[j] = x[4 * j], b[j] = x[4 * j + 1], c[j] = x[4 * j + 2], d[j] = x[4 * j + 3];
}

// y[i·to + j] = x[j·from + i], i < rows, j < columns.
template <class T>
void transpose(const T* x, int64_t from, T* y, int64_t to, int64_t rows, int64_t columns) {
  if (columns == to && columns <= 4) {
    if (columns == 2) return interleave_columns<T, 2>(x, from, y, rows);
    if (columns == 3) return interleave_columns<T, 3>(x, from, y, rows);
    if (columns == 4) return interleave_columns<T, 4>(x, from, y, rows);
  }
  if (rows == from && rows <= 4) {
    if (rows == 2) return separate_rows<T, 2>(x, y, to, columns);
    if (rows == 3) return separate_rows<T, 3>(x, y, to, columns);
    if (rows == 4) return separate_rows<T, 4>(x, y, to, columns);
  }
  if constexpr (std::is_integral_v<T>) {
    constexpr int N = Tile<T>::N;
    // Whole cache lines are written at once: rows that lie a power of two apart would evict half-written ones.
    constexpr int64_t line = 64 / sizeof(T), panel = 64;
    const int64_t full_columns = columns / N * N;
    for (int64_t i0 = 0; i0 < rows; i0 += panel) {
      const int64_t i1 = std::min(rows, i0 + panel), full = i0 + (i1 - i0) / N * N;
      for (int64_t j0 = 0; j0 < full_columns; j0 += line) {
        const int64_t j1 = std::min(full_columns, j0 + line);
        for (int64_t i = i0; i < full; i += N)
          for (int64_t j = j0; j < j1; j += N) Tile<T>::run(x + j * from + i, from, y + i * to + j, to);
        for (int64_t i = full; i < i1; ++i)
          for (int64_t j = j0; j < j1; ++j) y[i * to + j] = x[j * from + i];
      }
      for (int64_t j = full_columns; j < columns; ++j)
        for (int64_t i = i0; i < i1; ++i) y[i * to + j] = x[j * from + i];
    }
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) y[i * to + j] = x[j * from + i];
  }
}

template <class T>
void strided(const T* x, int64_t from, T* y, int64_t to, int64_t n) {
  if (from == 1 && to == 2) {
#pragma GCC unroll 8
    for (int64_t k = 0; k < n; ++k) y[2 * k] = x[k];
  } else if (from == 1 && to == 4) {
#pragma GCC unroll 8
    for (int64_t k = 0; k < n; ++k) y[4 * k] = x[k];
  } else if (to == 1 && from == 2) {
    for (int64_t k = 0; k < n; ++k) y[k] = x[2 * k];
  } else if (to == 1) {
    for (int64_t k = 0; k < n; ++k) y[k] = x[k * from];
  } else {
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) y[k * to] = x[k * from];
  }
}

// y[2·k] = a[k], y[2·k + 1] = b[k].
template <class T>
MNNPY_INLINE void weave(const T* a, const T* b, T* y, int64_t n) {
  int64_t k = 0;
  if constexpr (std::is_integral_v<T> && sizeof(T) <= 8) {
    constexpr int N = Tile<T>::N;
    using V = typename Tile<T>::V;
    using VUnaligned = typename Tile<T>::VUnaligned;
    for (; k + N <= n; k += N) {
      const V u = *reinterpret_cast<const VUnaligned*>(a + k), v = *reinterpret_cast<const VUnaligned*>(b + k);
      V low, high;
      Tile<T>::interleave(u, v, low, high);
      *reinterpret_cast<VUnaligned*>(y + 2 * k) = low;
      *reinterpret_cast<VUnaligned*>(y + 2 * k + N) = high;
    }
  }
  for (; k < n; ++k) y[2 * k] = a[k], y[2 * k + 1] = b[k];
}

template <class T>
void copy_run(const T* x, T* y, int64_t n) {
  if (n >= 16) {
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
    return;
  }
  for (int64_t k = 0; k < n; ++k) y[k] = x[k];
}

// Walks the outer axes [begin, end) of a piece and does its inner move.
template <class T>
void move_piece(const Piece& p, const T* src, T* dst, int64_t begin, int64_t end) {
  const int outer = p.size.rank - p.inner();
  int64_t index[kMaxRank + 1] = {};
  const T* x = src + p.src;
  T* y = dst + p.dst;
  int64_t rest = begin;
  for (int k = outer - 1; k >= 0; --k) {
    index[k] = rest % p.size[k];
    rest /= p.size[k];
    x += index[k] * p.from[k];
    y += index[k] * p.to[k];
  }
  const int64_t n = p.size[p.size.rank - 1], from = p.from[p.size.rank - 1], to = p.to[p.size.rank - 1];
  const int row = p.size.rank - 2;
  for (int64_t k = begin; k < end; ++k) {
    switch (p.move) {
      case Move::RUN: copy_run(x, y, n); break;
      case Move::FILL: std::fill_n(y, n, *x); break;
      case Move::GATHER: strided(x, from, y, to, n); break;
      case Move::TRANSPOSE: transpose(x, from, y, p.to[row], p.size[row], n); break;
      case Move::PLANES: separate_planes(x, y, p.plane, n); break;
    }
    for (int j = outer - 1; j >= 0; --j) {
      x += p.from[j];
      y += p.to[j];
      if (++index[j] < p.size[j]) break;
      x -= index[j] * p.from[j];
      y -= index[j] * p.to[j];
      index[j] = 0;
    }
  }
}

// The same for whatever element the piece moves.
template <class T>
void move_any(const Piece& p, const T* src, T* dst, int64_t begin, int64_t end) {
  if constexpr (sizeof(T) == 4) {
    if (p.wide == 2) return move_piece(p, reinterpret_cast<const Two*>(src), reinterpret_cast<Two*>(dst), begin, end);
    if (p.wide == 4) return move_piece(p, reinterpret_cast<const Four*>(src), reinterpret_cast<Four*>(dst), begin, end);
  }
  move_piece(p, src, dst, begin, end);
}

// ---- normal form -----------------------------------------------------------------------------------------------------

void erase_axis(Piece& p, int k) {
  for (int j = k; j + 1 < p.size.rank; ++j) p.size[j] = p.size[j + 1], p.from[j] = p.from[j + 1], p.to[j] = p.to[j + 1];
  --p.size.rank;
}

void swap_axes(Piece& p, int a, int b) {
  std::swap(p.size[a], p.size[b]);
  std::swap(p.from[a], p.from[b]);
  std::swap(p.to[a], p.to[b]);
}

void move_axis(Piece& p, int from, int to) {
  for (; from < to; ++from) swap_axes(p, from, from + 1);
  for (; from > to; --from) swap_axes(p, from, from - 1);
}

void merge_axes(Piece& p) {
  for (int k = 0; k + 1 < p.size.rank;) {
    if (p.from[k] == p.from[k + 1] * p.size[k + 1] && p.to[k] == p.to[k + 1] * p.size[k + 1]) {
      p.size[k + 1] *= p.size[k];
      erase_axis(p, k);
    } else {
      ++k;
    }
  }
}

// Short runs between strides of their multiples become single elements of two or four times the size.
bool widen(Piece& p) {
  const int last = p.size.rank - 1;
  const int64_t n = p.size[last];
  if (p.wide != 1 || (n != 2 && n != 4) || last == 0 || p.src % n != 0 || p.dst % n != 0) return false;
  for (int k = 0; k < last; ++k)
    if (p.from[k] % n != 0 || p.to[k] % n != 0) return false;
  p.wide = static_cast<int>(n);
  p.src /= n;
  p.dst /= n;
  for (int k = 0; k < last; ++k) p.from[k] /= n, p.to[k] /= n;
  p.size[last] = 1;
  return true;
}

// Two axes of two that lie in groups of four in the source (the result of a 2×2 transposed convolution).
bool find_planes(Piece& p, int dense) {
  const int last = p.size.rank - 1;
  if (p.size[dense] != 2 || p.from[last] != 4) return false;
  for (int k = 0; k < last; ++k) {
    if (k == dense || p.size[k] != 2 || p.from[k] != 2) continue;
    for (int i = 0; i < 4; ++i) p.plane[i] = i / 2 * p.to[k] + i % 2 * p.to[dense];
    erase_axis(p, std::max(k, dense));
    erase_axis(p, std::min(k, dense));
    p.move = Move::PLANES;
    return true;
  }
  return false;
}

void normalise(Piece& p, size_t bytes) {
  for (int k = 0; k < p.size.rank;)
    if (p.size[k] == 1) erase_axis(p, k);
    else ++k;
  for (int k = 1; k < p.size.rank; ++k)
    for (int j = k; j > 0 && std::abs(p.to[j - 1]) < std::abs(p.to[j]); --j) swap_axes(p, j - 1, j);
  merge_axes(p);
  if (p.size.rank == 0) {
    p.size.rank = 1;
    p.size[0] = 1;
    p.from[0] = p.to[0] = 1;
  }
  const int last = p.size.rank - 1;
  if (p.to[last] == 1 && p.from[last] == 1) {
    if (bytes == 4 && widen(p)) return normalise(p, 4 * static_cast<size_t>(p.wide));
    p.move = Move::RUN;
    return;
  }
  // An axis along which the source is dense: with a dense destination axis that makes a transposition.
  int dense = -1;
  for (int k = 0; k < last; ++k)
    if (p.from[k] == 1 && p.size[k] > 1) dense = k;
  if (dense >= 0 && p.to[last] == 1 && find_planes(p, dense)) return;
  if (dense >= 0 && p.to[last] == 1 && p.from[last] != 0 && p.size[dense] * p.size[last] >= 16) {
    move_axis(p, dense, last - 1);
    p.move = Move::TRANSPOSE;
    return;
  }
  if (p.to[last] == 1 && p.from[last] == 0) {
    p.move = Move::FILL;
    return;
  }
  // Otherwise the longest axis goes inside if the innermost is too short to carry a loop.
  if (p.size[last] < 8) {
    int longest = last;
    for (int k = 0; k < last; ++k)
      if (p.size[k] > 8 * p.size[longest]) longest = k;
    move_axis(p, longest, last);
  }
  p.move = Move::GATHER;
}

// Long inner moves are split so that threads find enough outer steps.
void split_for_threads(Piece& p, int threads) {
  const int inner = p.inner();
  const int64_t outer = p.outer();
  if (threads <= 1 || outer >= threads || p.count < 65536 || p.size.rank >= kMaxRank) return;
  const int axis = p.size.rank - inner;
  const int64_t n = p.size[axis], grain = p.move == Move::TRANSPOSE ? 64 : 4096;
  for (int64_t parts = 4 * threads; parts >= 2; --parts) {
    if (n % parts != 0 || n / parts < std::min<int64_t>(grain, 16)) continue;
    for (int j = p.size.rank; j > axis; --j) p.size[j] = p.size[j - 1], p.from[j] = p.from[j - 1], p.to[j] = p.to[j - 1];
    ++p.size.rank;
    p.size[axis] = parts;
    p.from[axis] *= n / parts;
    p.to[axis] *= n / parts;
    p.size[axis + 1] = n / parts;
    return;
  }
}

[[noreturn]] void out_of_bounds(const NodeDesc& node, size_t region, const char* what, int64_t low, int64_t high, int64_t size) {
  throw std::invalid_argument("Raster '" + node.name + "': region " + std::to_string(region) + " touches elements " +
                              std::to_string(low) + " to " + std::to_string(high) + " of a " + what + " with " + std::to_string(size));
}

void check_bounds(const NodeDesc& node, size_t region, const char* what, int64_t offset, const Shape8& size, const Shape8& strides,
                  int64_t limit) {
  int64_t low = offset, high = offset;
  for (int k = 0; k < size.rank; ++k) (strides[k] < 0 ? low : high) += strides[k] * (size[k] - 1);
  if (low < 0 || high >= limit) out_of_bounds(node, region, what, low, high, limit);
}

class Raster final : public Kernel {
 public:
  Raster(const NodeDesc& node, const BuildContext& ctx);
  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override;
  std::string algorithm() const override { return name_; }

 private:
  template <class T>
  void run_as(const RunContext& ctx, const void* const* inputs, void* const* outputs) const;
  void fill_value(double value, DType type);
  void find_partners();

  static constexpr int64_t kStretch = 32 << 10;  // bytes of the destination that stay in the first-level cache

  std::vector<Piece> pieces_;
  int64_t count_;
  int64_t slabs_ = 0;  // steps in which all pieces can walk side by side; 0: one piece after the other
  size_t size_;
  bool fill_ = false;
  alignas(16) std::byte pattern_[16] = {};
  std::string name_;
};

Raster::Raster(const NodeDesc& node, const BuildContext& ctx)
    : count_(node.outputs[0].count()), size_(dtype_size(node.outputs[0].dtype)) {
  const auto origins = node.ints("origins"), ranks = node.ints("ranks"), sizes = node.ints("sizes");
  const auto from = node.ints("src_strides"), to = node.ints("dst_strides");
  const auto from_at = node.ints("src_offsets"), to_at = node.ints("dst_offsets");
  const size_t n = origins.size();
  if (ranks.size() != n || from_at.size() != n || to_at.size() != n || from.size() != sizes.size() || to.size() != sizes.size())
    throw std::invalid_argument("Raster '" + node.name + "': the region lists differ in length");
  size_t at = 0;
  int64_t covered = 0;
  for (size_t k = 0; k < n; ++k) {
    if (ranks[k] < 0 || ranks[k] > kMaxRank - 1 || at + static_cast<size_t>(ranks[k]) > sizes.size())
      throw std::invalid_argument("Raster '" + node.name + "': bad rank " + std::to_string(ranks[k]));
    if (origins[k] < 0 || origins[k] >= static_cast<int64_t>(node.inputs.size()))
      throw std::invalid_argument("Raster '" + node.name + "': a region reads operand " + std::to_string(origins[k]));
    Piece p;
    p.origin = static_cast<int>(origins[k]);
    p.src = from_at[k];
    p.dst = to_at[k];
    p.size.rank = static_cast<int>(ranks[k]);
    for (int j = 0; j < p.size.rank; ++j, ++at) {
      p.size[j] = sizes[at];
      p.from[j] = from[at];
      p.to[j] = to[at];
      if (sizes[at] < 0) throw std::invalid_argument("Raster '" + node.name + "': a region has a negative size");
      p.count *= sizes[at];
    }
    if (p.count == 0) continue;
    check_bounds(node, k, "source", p.src, p.size, p.from, node.inputs[p.origin].count());
    check_bounds(node, k, "destination", p.dst, p.size, p.to, count_);
    covered += p.count;
    normalise(p, size_);
    split_for_threads(p, ctx.threads);
    pieces_.push_back(p);
  }
  if (pieces_.size() > 1) {
    for (const Piece& p : pieces_) slabs_ = std::gcd(slabs_, p.outer());
    if (slabs_ < 8) slabs_ = 0;
    else find_partners();
  }
  fill_ = node.i("fill_present", 0) != 0 && covered < count_;
  if (fill_) fill_value(node.f("fill", 0), node.outputs[0].dtype);
  static constexpr const char* kNames[] = {"run", "fill", "gather", "transpose", "planes"};
  name_ = pieces_.empty() ? "none" : kNames[static_cast<int>(pieces_[0].move)];
  if (pieces_.size() > 1) name_ += "*" + std::to_string(pieces_.size());
}

// Two pieces that fill even and odd elements of the same rows (a channel shuffle) move as one.
void Raster::find_partners() {
  auto every_other = [](const Piece& p) {
    return p.move == Move::GATHER && p.wide == 1 && p.size.rank == 2 && p.from[1] == 1 && p.to[1] == 2;
  };
  for (size_t i = 0; i < pieces_.size(); ++i)
    for (size_t j = 0; j < pieces_.size(); ++j) {
      Piece &p = pieces_[i], &q = pieces_[j];
      if (i == j || p.partner != -1 || q.partner != -1 || !every_other(p) || !every_other(q)) continue;
      if (q.dst != p.dst + 1 || p.size[0] != q.size[0] || p.size[1] != q.size[1] || p.to[0] != q.to[0]) continue;
      p.partner = static_cast<int>(j);
      q.partner = -2;
    }
}

// The fill value as an element, by way of the Convert kernel.
void Raster::fill_value(double value, DType type) {
  if (value == 0) return;
  if (type == DType::C64) {
    const float f = static_cast<float>(value);
    std::memcpy(pattern_, &f, 4);
    return;
  }
  if (type == DType::C128 || type == DType::F64) {
    std::memcpy(pattern_, &value, 8);
    return;
  }
  NodeDesc node;
  node.op = "Convert";
  node.inputs.resize(1);
  node.outputs.resize(1);
  node.inputs[0].dtype = DType::F64;
  node.outputs[0].dtype = type;
  struct Alone final : Pool {
    int threads() const override { return 1; }
    void run(int64_t count, void (*call)(void*, int64_t, int), void* body) override {
      for (int64_t k = 0; k < count; ++k) call(body, k, 0);
    }
  } pool;
  const auto kernel = make_kernel(node, {Isa::GENERIC, 1, nullptr});
  const void* in[] = {&value};
  void* out[] = {pattern_};
  kernel->run({&pool, nullptr}, in, out);
}

template <class T>
void Raster::run_as(const RunContext& ctx, const void* const* inputs, void* const* outputs) const {
  T* dst = static_cast<T*>(outputs[0]);
  constexpr double weight = sizeof(T) < 4 ? 0.5 : sizeof(T) / 8.0;
  auto cost = [](const Piece& p) {
    return weight * (p.move == Move::GATHER ? 3 : p.move == Move::TRANSPOSE || p.move == Move::PLANES ? 2 : 1) / p.wide;
  };
  if (fill_) {
    T value;
    std::memcpy(&value, pattern_, sizeof(T));
    share(ctx, count_, weight / 2, [&](int64_t begin, int64_t end, int) { std::fill(dst + begin, dst + end, value); });
  }
  if (slabs_ > 1) {
    // All pieces a stretch of the destination at a time: its lines are written once, not once for every piece.
    double work = 0;
    for (const Piece& p : pieces_) work += cost(p) * static_cast<double>(p.count) + 8.0 * static_cast<double>(p.outer());
    const auto step = std::max<int64_t>(1, kStretch * slabs_ / (count_ * static_cast<int64_t>(sizeof(T)) + 1));
    share(ctx, slabs_, work / static_cast<double>(slabs_), [&](int64_t begin, int64_t end, int) {
      for (int64_t s = begin; s < end; s += step)
        for (const Piece& p : pieces_) {
          const int64_t each = p.outer() / slabs_;
          if (p.partner == -2) continue;
          if (p.partner >= 0) {
            const Piece& q = pieces_[static_cast<size_t>(p.partner)];
            const T *a = static_cast<const T*>(inputs[p.origin]) + p.src, *b = static_cast<const T*>(inputs[q.origin]) + q.src;
            for (int64_t k = s * each; k < std::min(s + step, end) * each; ++k)
              weave(a + k * p.from[0], b + k * q.from[0], dst + p.dst + k * p.to[0], p.size[1]);
            continue;
          }
          move_any(p, static_cast<const T*>(inputs[p.origin]), dst, s * each, std::min(s + step, end) * each);
        }
    });
    return;
  }
  for (const Piece& p : pieces_) {
    const int64_t outer = p.outer();
    share(ctx, outer, cost(p) * static_cast<double>(p.count / outer) + 8, [&](int64_t begin, int64_t end, int) {
      move_any(p, static_cast<const T*>(inputs[p.origin]), dst, begin, end);
    });
  }
}

void Raster::run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const {
  switch (size_) {
    case 1: return run_as<uint8_t>(ctx, inputs, outputs);
    case 2: return run_as<uint16_t>(ctx, inputs, outputs);
    case 4: return run_as<uint32_t>(ctx, inputs, outputs);
    case 8: return run_as<uint64_t>(ctx, inputs, outputs);
    default: return run_as<Pair16>(ctx, inputs, outputs);
  }
}

std::unique_ptr<Kernel> make_raster(const NodeDesc& node, const BuildContext& ctx) {
  if (node.outputs.size() != 1) return decline(ctx, "has one output");
  for (const TensorDesc& t : node.inputs)
    if (dtype_size(t.dtype) != dtype_size(node.outputs[0].dtype)) return decline(ctx, "origins and output differ in element size");
  return std::make_unique<Raster>(node, ctx);
}

}  // namespace

MNNPY_REGISTER("Raster", make_raster);

}  // namespace mnnpy::MNNPY_NS
