// Strassen's products in Winograd's form on the register tile.
//
//   S1 = A21 + A22   S2 = S1 − A11    S3 = A11 − A21   S4 = A12 − S2
//   T1 = B12 − B11   T2 = B22 − T1    T3 = B22 − B12   T4 = B21 − T2
//   P1 = A11·B11  P2 = A12·B21  P5 = S1·T1  P6 = S2·T2  P7 = S3·T3  P4 = A22·T4  P3 = S4·B22     (in this order)
//
// A running pair of sums replaces the matrices of products: u0 = P1, C11 = u0 + P2, u1 = P5, u0 += P6, u1 += u0,
// C22 = u1 + P7, u0 += P7, C21 = u0 + P4, C12 = u1 + P3. The inner level does this per register tile, u0 and u1 in L1; the
// outer level per group of panels, u0 and u1 in L2. The T of the inner level are formed by the first tile of rows that
// needs them while it multiplies, where the adders are idle anyway; the S once per block of rows.
#include "strassen.h"

#include <cmath>
#include <utility>

namespace mnnpy::MNNPY_NS {
namespace {

#define MNNPY_LAMBDA __attribute__((always_inline))

constexpr int kProducts = 7;

// What becomes of a product.
enum class Step : int {
  KEEP0,      // u0 = P
  LAST0,      // result u0 + P
  KEEP1,      // u1 = P
  BOTH,       // u0 += P, u1 += u0
  LAST1_ADD,  // result u1 + P, u0 += P
  LAST1,      // result u1 + P
  LAST,       // result P
};
constexpr Step kSteps[kProducts] = {Step::KEEP0, Step::LAST0, Step::KEEP1, Step::BOTH, Step::LAST1_ADD, Step::LAST0, Step::LAST1};
constexpr int kQuadrant[kProducts] = {-1, 0, -1, -1, 3, 2, 1};  // of the result: C11, C12, C21, C22

constexpr bool finishes(Step s) { return s != Step::KEEP0 && s != Step::KEEP1 && s != Step::BOTH; }

struct TileGroup {
  const float* a[kProducts];
  int64_t lda[kProducts];
  const float* b[4];      // B11, B12, B21, B22: [depth][NV·W]
  float* t;               // T1 … T4
  bool form;              // fill t on the way
  // Set where B itself is a difference of the outer level, to be filled on the way as well: b[q] = from[q] − minus[q].
  const float *from[4], *minus[4];
  int64_t depth;
  float* running;         // u0 and u1 of the tile
  const float* stream;    // memory to fetch on the way, and lines per step of k
  int64_t lines;
  // Where the four results go: to C, after the step of the outer level with its own running sums.
  Step outer;
  float *u0[4], *u1[4];   // rows of NV·W floats
  TileOut out[4];
};

// acc to the running sums (rows of `ld` floats); true where acc is a result now.
template <int MR, int NV>
MNNPY_INLINE bool advance(VF (&acc)[MR][NV], Step step, float* u0, float* u1) {
  constexpr int64_t ld = NV * W;
#define MNNPY_EACH(BODY)                 \
  _Pragma("GCC unroll 16") for (int r = 0; r < MR; ++r) _Pragma("GCC unroll 4") for (int v = 0; v < NV; ++v) { \
    float* p0 = u0 + r * ld + v * W;     \
    float* p1 = u1 + r * ld + v * W;     \
    VF& x = acc[r][v];                   \
    (void)p0, (void)p1;                  \
    BODY                                 \
  }
  switch (step) {
    case Step::KEEP0: MNNPY_EACH(store(p0, x);) return false;
    case Step::KEEP1: MNNPY_EACH(store(p1, x);) return false;
    case Step::BOTH: MNNPY_EACH(x += load(p0); store(p0, x); store(p1, x + load(p1));) return false;
    case Step::LAST0: MNNPY_EACH(x += load(p0);) return true;
    case Step::LAST1: MNNPY_EACH(x += load(p1);) return true;
    case Step::LAST1_ADD: MNNPY_EACH(store(p0, x + load(p0)); x += load(p1);) return true;
    case Step::LAST: return true;
  }
#undef MNNPY_EACH
  return true;
}

// What a product brings nearer on the way: rows of A for the product to come, which are too short for the hardware to see
// where they go, and the B of the next group of panels, a few lines at a time, so that no tile waits for main memory.
struct Fetch {
  const float* rows;
  int64_t ld;
  const float* stream;
  int64_t lines;  // per step of k
};
constexpr int64_t kLine = 16, kStep = 2 * kLine;  // floats of a cache line; k between two fetches
constexpr int64_t kAhead = 16;  // rows of B

// acc += A·B; next(bv) loads the next row of B.
template <int MR, int NV, class Next>
MNNPY_INLINE void multiply(VF (&acc)[MR][NV], const float* const (&a)[MR], int64_t depth, Fetch& fetch, Next&& next) {
  for (int64_t begin = 0; begin < depth; begin += kStep) {
    const int64_t end = std::min(depth, begin + kStep);
    const float* line = fetch.rows + begin;
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r, line += fetch.ld) __builtin_prefetch(line), __builtin_prefetch(line + kLine);
    for (int64_t q = 0; q < fetch.lines; ++q, fetch.stream += kLine) __builtin_prefetch(fetch.stream, 0, 2);
    for (int64_t k = begin; k < end; ++k) {
      VF bv[NV];
      next(bv);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const VF e = splat(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += e * bv[v];
      }
    }
  }
}

// The right operand of product s.
struct Right {
  const float *x, *y, *z;  // x, or x − y, or (x − y) − z
  float *to, *difference;  // receive the operand, and x − y where there is z
};

inline Right right_operand(const TileGroup& g, int s, int64_t size) {
  constexpr int kPlain[kProducts] = {0, 2, -1, -1, -1, -1, 3};
  float* const t = g.t;
  const bool outer = g.form && g.minus[0] != nullptr;
  const auto whole = [&](int q) { return const_cast<float*>(g.b[q]); };
  if (kPlain[s] >= 0) {
    const int q = kPlain[s];
    if (outer && s < 2) return {g.from[q], g.minus[q], nullptr, whole(q), nullptr};
    return {g.b[q], nullptr, nullptr, nullptr, nullptr};
  }
  float* to = t + (s - 2) * size;
  if (!g.form) return {to, nullptr, nullptr, nullptr, nullptr};
  switch (s) {
    case 2:
      if (outer) return {g.from[1], g.minus[1], g.b[0], to, whole(1)};
      return {g.b[1], g.b[0], nullptr, to, nullptr};
    case 3:
      if (outer) return {g.from[3], g.minus[3], t, to, whole(3)};
      return {g.b[3], t, nullptr, to, nullptr};
    case 4: return {g.b[3], g.b[1], nullptr, to, nullptr};
    default: return {g.b[2], t + size, nullptr, to, nullptr};
  }
}

// Fetches what the result of quadrant q meets, while the product is under way.
template <int MR, int NV>
MNNPY_INLINE void expect(const TileGroup& g, int q) {
  if (finishes(g.outer)) {
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(g.out[q].c + r * g.out[q].ldc + v * W, 1);
  }
}

template <int MR, int NV>
[[gnu::noinline]] void seven(const TileGroup& g) {
  constexpr int64_t width = NV * W;
  float *const u0 = g.running, *const u1 = u0 + MR * width;
  Fetch fetch{nullptr, 0, g.stream, g.lines};
  for (int s = 0; s < kProducts; ++s) {
    VF acc[MR][NV];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = VF{};
    const float* a[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) a[r] = g.a[s] + r * g.lda[s];
    const bool wrap = s == kProducts - 1;  // to the first product of the next tile
    fetch.ld = g.lda[wrap ? 0 : s + 1];
    fetch.rows = g.a[wrap ? 0 : s + 1] + (wrap ? MR * fetch.ld : 0);
    Right b = right_operand(g, s, g.depth * width);
    if (kQuadrant[s] >= 0) expect<MR, NV>(g, kQuadrant[s]);
    if (b.y == nullptr) {
      multiply<MR, NV>(acc, a, g.depth, fetch, [&b](VF (&bv)[NV]) MNNPY_LAMBDA {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) bv[v] = load(b.x + v * W);
        b.x += width;
      });
    } else if (b.z == nullptr) {
      multiply<MR, NV>(acc, a, g.depth, fetch, [&b](VF (&bv)[NV]) MNNPY_LAMBDA {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          __builtin_prefetch(b.x + kAhead * width + v * W);
          __builtin_prefetch(b.y + kAhead * width + v * W);
          bv[v] = load(b.x + v * W) - load(b.y + v * W);
          store(b.to + v * W, bv[v]);
        }
        b.x += width, b.y += width, b.to += width;
      });
    } else {
      multiply<MR, NV>(acc, a, g.depth, fetch, [&b](VF (&bv)[NV]) MNNPY_LAMBDA {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          __builtin_prefetch(b.x + kAhead * width + v * W);
          __builtin_prefetch(b.y + kAhead * width + v * W);
          const VF d = load(b.x + v * W) - load(b.y + v * W);
          store(b.difference + v * W, d);
          bv[v] = d - load(b.z + v * W);
          store(b.to + v * W, bv[v]);
        }
        b.x += width, b.y += width, b.z += width, b.to += width, b.difference += width;
      });
    }
    if (!advance(acc, kSteps[s], u0, u1)) continue;
    const int q = kQuadrant[s];
    if (advance(acc, g.outer, g.u0[q], g.u1[q])) finish_tile(acc, g.out[q]);
  }
}

using SevenFn = void (*)(const TileGroup&);
template <int NV, int... R>
constexpr void fill_column(SevenFn (&table)[kMaxRows + 1], std::integer_sequence<int, R...>) {
  ((table[R + 1] = &seven<R + 1, NV>), ...);
}
struct Sevens {
  SevenFn fn[kMaxNV + 1][kMaxRows + 1] = {};
  constexpr Sevens() {
    fill_column<2>(fn[2], std::make_integer_sequence<int, kRows[2]>{});
    fill_column<3>(fn[3], std::make_integer_sequence<int, kRows[3]>{});
    if constexpr (kMaxNV >= 4) fill_column<kMaxNV>(fn[kMaxNV], std::make_integer_sequence<int, kRows[kMaxNV]>{});
  }
};
constinit const Sevens sevens;

// `count` panels of nv vectors, then the usual cut of what is left.
Panels even_panels(int64_t n, int nv, int64_t count) {
  Panels out;
  out.n = n;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t column = p * nv * W;
    out.list.push_back({column, nv, static_cast<int>(std::min<int64_t>(n - column, int64_t{nv} * W)), column});
  }
  const int64_t begin = count * nv * W;
  out.width = begin;
  if (begin >= n) return out;
  const Panels rest(n - begin);
  for (auto p : rest.list) {
    p.column += begin, p.offset += begin;
    out.list.push_back(p);
  }
  out.width += rest.width;
  return out;
}

// u0 and u1 of the largest tile.
constexpr int64_t running_floats() { return 2 * 32 * W; }

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// S1 … S4 of quadrants of `cols` columns, for one row.
void sum_rows(const float* a11, const float* a12, const float* a21, const float* a22, int64_t cols, float* const (&s)[4]) {
  const auto all = [&](int64_t k, auto read, auto write) {
    const VF x = read(a11 + k), y = read(a21 + k), s1 = y + read(a22 + k), s2 = s1 - x;
    write(s[0] + k, s1);
    write(s[1] + k, s2);
    write(s[2] + k, x - y);
    write(s[3] + k, read(a12 + k) - s2);
  };
  int64_t k = 0;
  for (; k + W <= cols; k += W) all(k, [](const float* p) { return load(p); }, [](float* p, VF v) { store(p, v); });
  const int left = static_cast<int>(cols - k);
  if (left > 0)
    all(k, [left](const float* p) { return load_partial(p, left); }, [left](float* p, VF v) { store_partial(p, v, left); });
}

}  // namespace

// One block of rows and one group of k.
struct Strassen::Job {
  const float* a;       // first row of the block, first k of the group
  const Operand* left;  // leaf operands of A, [outer product][product]
  float* sums;
  int64_t lda;
  const float* packed;
  float* c;
  int64_t ldc;
  const Epilogue* epilogue;  // of this group of k
  int64_t row0, count;       // of the block, in rows and in leaf rows
  int64_t k0;
  bool last, last_block;     // of the groups of k, of the blocks of rows
};

// The panels to fetch while a group is multiplied: `count` stretches of `lines` lines, shared evenly by `steps`.
struct Strassen::Next {
  const float* at[4];
  int64_t count = 0, lines = 0, per_step = 0, done = 0;

  void take(int64_t steps, const float*& stream, int64_t& step_lines) {
    const int64_t which = lines > 0 ? done / lines : count;
    step_lines = which < count ? per_step : 0;
    stream = which < count ? at[which] + done % lines * kLine : nullptr;
    done += steps * step_lines;
  }
};

Strassen::Strassen(int64_t rows, int64_t n, int64_t depth, int threads, int levels, int nv)
    : levels_(levels), nv_(nv), rows_(rows), depth_(depth), cut_(int64_t{1} << levels) {
  constexpr int64_t kLeaf = 256;   // seven leaf panels stay in L2
  constexpr int64_t kRowsMax = 128;  // leaf rows whose sums stay near
  leaf_rows_ = rows / cut_;
  const int64_t blocks = std::max<int64_t>(1, (leaf_rows_ + kRowsMax - 1) / kRowsMax);
  block_ = round_up((leaf_rows_ + blocks - 1) / blocks, blocks > 1 ? kRows[nv] : 1);
  groups_ = std::max<int64_t>(1, (depth + cut_ * kLeaf - 1) / (cut_ * kLeaf));
  leaf_ = depth / (groups_ * cut_);
  tail_ = depth - groups_ * cut_ * leaf_;
  const int64_t vectors = (n + W - 1) / W;
  panel_groups_ = vectors / (cut_ * nv);
  panels_ = even_panels(n, nv, panel_groups_ * cut_);
  if (threads > 1) {
    const int64_t chunks = chunks_per_part();
    row_parts_ = std::clamp<int64_t>((3 * threads + chunks - 1) / chunks, 1, std::max<int64_t>(1, block_ / 16));
  }
}

namespace {

constexpr double kWidth[5] = {0, 1.2, 2.04, 3.02, 4.0};  // of a row of a panel, by vectors

double plain_cost(int64_t rows, int64_t n, int64_t depth) {
  double total = 0;
  for (const auto& p : Panels(n).list) total += kWidth[p.nv] * static_cast<double>(rows * depth);
  return total;
}

}  // namespace

// In vectors of multiply-adds; the weights of the other work are what it took beside them on a Zen 4.
double Strassen::cost(int threads) const {
  constexpr double kInner = 5, kOuter = 4;  // running sums and results, per vector of a product
  constexpr double kForm = 4;               // a vector of T
  constexpr double kLeft = 6;               // a vector of S
  const auto f = [](int64_t x) { return static_cast<double>(x); };
  const double leaves = levels_ == 1 ? 7 : 49, sums = levels_ == 1 ? 4 : 44;
  const double groups = f(groups_ * panel_groups_), parts = f((leaf_rows_ + block_ - 1) / block_ * row_parts_);
  double total = leaves * groups * f(leaf_rows_) * (f(leaf_) * kWidth[nv_] + kInner * nv_);
  total += groups * parts * (levels_ == 1 ? 4 : 28 + 16) * f(leaf_) * nv_ * kForm;
  if (levels_ == 2) total += groups * 28 * f(leaf_rows_) * nv_ * kOuter;
  total += sums * f(groups_ * leaf_rows_ * leaf_) / W * kLeft;
  for (size_t p = 0; p < panels_.list.size(); ++p) {
    const bool grouped = p < static_cast<size_t>(panel_groups_ * cut_);
    const double rest = grouped ? f((rows_ - leaf_rows_ * cut_) * depth_) + f(leaf_rows_ * cut_ * tail_) : f(rows_ * depth_);
    total += kWidth[panels_.list[p].nv] * rest;
  }
  const int64_t chunks = chunks_per_part() * row_parts_, rounds = (chunks + threads - 1) / threads;
  return total * f(rounds * threads) / f(chunks);
}

Strassen Strassen::plan(int64_t rows, int64_t n, int64_t depth, int threads, const std::string& algorithm, int64_t levels) {
  Strassen best;
  if (algorithm != "auto" && algorithm != "strassen") return best;
  double limit = algorithm == "strassen" ? HUGE_VAL : 0.92 * plain_cost(rows, n, depth);
  for (int level = 1; level <= 2; ++level) {
    const int64_t cut = int64_t{1} << level;
    if ((levels != 0 && level != levels) || rows < cut || depth < cut) continue;
    for (int nv = kMaxNV; nv >= 2; --nv) {
      if ((n + W - 1) / W < cut * nv) continue;
      Strassen s(rows, n, depth, threads, level, nv);
      const double cost = s.cost(threads);
      if (cost < limit) limit = cost, best = std::move(s);
    }
  }
  return best;
}

int64_t Strassen::sum_floats() const {
  const int64_t leaf = block_ * round_up(leaf_, W);
  return levels_ == 1 ? 4 * leaf : 4 * 4 * leaf + 28 * leaf;
}

int64_t Strassen::slot_floats() const {
  const int64_t width = int64_t{nv_} * W;
  const int64_t one = 4 * leaf_ * width;
  return running_floats() + (levels_ == 1 ? one : 3 * one + 8 * block_ * width);
}

size_t Strassen::scratch_floats(int slots) const {
  if (levels_ == 0) return 0;
  return round_up_64(static_cast<size_t>(sum_floats())) + round_up_64(static_cast<size_t>(slot_floats())) * static_cast<size_t>(slots);
}

// Sums of A for leaf rows [first, last): rows r and count + r of the outer sums give row r of the inner ones.
void Strassen::form_left(const Job& job, int64_t first, int64_t last) const {
  const int64_t q = job.count, h = leaf_, pitch = round_up(h, W);
  const auto one = [&](Operand x, int64_t rows, int64_t cols, int64_t r, float* to, int64_t ld) {
    float* const s[4] = {to + r * ld, to + (rows + r) * ld, to + (2 * rows + r) * ld, to + (3 * rows + r) * ld};
    const float *top = x.data + r * x.ld, *bottom = top + rows * x.ld;
    sum_rows(top, top + cols, bottom, bottom + cols, cols, s);
  };
  if (levels_ == 1) {
    for (int64_t r = first; r < last; ++r) one({job.a, job.lda}, q, h, r, job.sums, pitch);
    return;
  }
  for (int64_t r = first; r < last; ++r) one({job.a, job.lda}, 2 * q, 2 * h, r, job.sums, 2 * pitch);
  for (int64_t r = first; r < last; ++r) one({job.a, job.lda}, 2 * q, 2 * h, q + r, job.sums, 2 * pitch);
  float* inner = job.sums + 16 * block_ * pitch;
  for (int o = 0; o < kProducts; ++o)
    for (int64_t r = first; r < last; ++r) one(job.left[7 * o], q, h, r, inner + 4 * o * q * pitch, pitch);
}

namespace {

// The seven left operands of a matrix of 2·rows rows and 2·cols columns, in the order of the products.
template <class Operand>
void left_operands(Operand x, int64_t rows, int64_t cols, const float* sums, int64_t pitch, Operand* out) {
  const auto s = [&](int k) { return Operand{sums + k * rows * pitch, pitch}; };
  out[0] = x, out[1] = {x.data + cols, x.ld};
  out[2] = s(0), out[3] = s(1), out[4] = s(2);
  out[5] = {x.data + rows * x.ld + cols, x.ld};
  out[6] = s(3);
}

// All tiles of rows [r0, r1); `each` sets operands and results of the rows from r on.
template <class Next, class Each>
void tiles(TileGroup& g, int nv, int64_t r0, int64_t r1, Next& next, Each&& each) {
  const int most = kRows[nv];
  const int64_t count = (r1 - r0 + most - 1) / most, base = (r1 - r0) / count, extra = (r1 - r0) % count;
  const int64_t steps = kProducts * ((g.depth + kStep - 1) / kStep);
  int64_t r = r0;
  for (int64_t q = 0; q < count; ++q) {
    const int64_t height = base + (q < extra ? 1 : 0);
    each(r);
    next.take(steps, g.stream, g.lines);
    g.form = q == 0;
    sevens.fn[nv][height](g);
    r += height;
  }
}

}  // namespace

// Where the B of the group after this one lies, for `rows` rows to be multiplied meanwhile.
void Strassen::upcoming(const Job& job, int64_t group, int64_t rows, Next& next) const {
  int64_t k0 = job.k0;
  if (++group == panel_groups_) {
    if (job.last) return;
    group = 0, k0 += cut_ * leaf_;
  }
  const int64_t width = int64_t{nv_} * W;
  for (int64_t p = 0; p < cut_; ++p) next.at[p] = job.packed + panels_.list[static_cast<size_t>(group * cut_ + p)].offset * depth_ + k0 * width;
  next.count = cut_, next.lines = cut_ * leaf_ * width / kLine;
  const int64_t calls = (rows + kRows[nv_] - 1) / kRows[nv_] * (levels_ == 1 ? 1 : kProducts);
  const int64_t steps = calls * kProducts * ((leaf_ + kStep - 1) / kStep);
  next.per_step = std::min<int64_t>(16, (next.lines * next.count + steps - 1) / steps);
}

void Strassen::plain(const Job& job, size_t panel, int64_t r0, int64_t r1, int64_t k0, int64_t k1) const {
  if (r0 >= r1) return;
  const auto& p = panels_.list[panel];
  const int64_t width = int64_t{p.nv} * W;
  const float* table[kMaxRows];
  Epilogue e = *job.epilogue;
  e.accumulate = k0 > 0;
  e.last = k1 == depth_;
  // The k left over come first, as a partial sum.
  if (k0 == depth_ - tail_ && tail_ > 0 && k1 == depth_) e.accumulate = groups_ > 1, e.last = false;
  TileArgs t;
  t.tap_stride = 0, t.taps = 1, t.depth = k1 - k0, t.k_begin = k0, t.ldc = job.ldc, t.epilogue = &e;
  t.b = job.packed + p.offset * depth_ + k0 * width;
  t.cols = p.cols, t.column = p.column, t.rows = table;
  const float* a = job.a - job.row0 * job.lda - job.k0;
  const int most = kRows[p.nv];
  const int64_t count = (r1 - r0 + most - 1) / most, base = (r1 - r0) / count, extra = (r1 - r0) % count;
  for (int64_t q = 0, r = r0; q < count; ++q) {
    const int64_t height = base + (q < extra ? 1 : 0);
    for (int64_t k = 0; k < height; ++k) table[k] = a + (r + k) * job.lda;
    t.offset = r * job.ldc + p.column;
    t.c = job.c + t.offset;
    tile_fn(static_cast<int>(height), p.nv)(t);
    r += height;
  }
}

void Strassen::group_one(const Job& job, int64_t group, int64_t r0, int64_t r1, float* slot) const {
  const int64_t width = int64_t{nv_} * W;
  const auto* panel = &panels_.list[static_cast<size_t>(2 * group)];
  TileGroup g;
  for (int q = 0; q < 4; ++q) g.b[q] = job.packed + panel[q % 2].offset * depth_ + (job.k0 + q / 2 * leaf_) * width;
  g.running = slot, g.t = slot + running_floats(), g.depth = leaf_, g.outer = Step::LAST, g.minus[0] = nullptr;
  Next next;
  upcoming(job, group, r1 - r0, next);
  tiles(g, nv_, r0, r1, next, [&](int64_t r) {
    for (int s = 0; s < kProducts; ++s) g.a[s] = job.left[s].data + r * job.left[s].ld, g.lda[s] = job.left[s].ld;
    for (int q = 0; q < 4; ++q) {
      const int64_t at = (job.row0 + q / 2 * job.count + r) * job.ldc + panel[q % 2].column;
      g.u0[q] = g.u1[q] = nullptr;
      g.out[q] = {job.c + at, job.ldc, panel[q % 2].cols, job.epilogue, panel[q % 2].column, at};
    }
  });
}

void Strassen::group_two(const Job& job, int64_t group, int64_t r0, int64_t r1, float* slot) const {
  const int64_t width = int64_t{nv_} * W, size = leaf_ * width, rows = r1 - r0;
  const auto* panel = &panels_.list[static_cast<size_t>(4 * group)];
  float *x = slot + running_floats() + 4 * size, *y = x + 4 * size, *u0 = y + 4 * size, *u1 = u0 + 4 * rows * width;
  // Block (i, j) of quadrant (I, J) of B.
  const auto block = [&](int quadrant, int q) {
    const auto& p = panel[quadrant % 2 * 2 + q % 2];
    return job.packed + p.offset * depth_ + (job.k0 + (quadrant / 2 * 2 + q / 2) * leaf_) * width;
  };
  TileGroup g;
  g.running = slot, g.t = slot + running_floats(), g.depth = leaf_;
  Next next;
  upcoming(job, group, rows, next);
  for (int o = 0; o < kProducts; ++o) {
    constexpr int kPlain[kProducts] = {0, 2, -1, -1, -1, -1, 3}, kFrom[kProducts] = {0, 0, 1, 3, 3, 2, 0};
    for (int q = 0; q < 4; ++q) {
      if (kPlain[o] >= 0) {
        g.b[q] = block(kPlain[o], q), g.minus[q] = nullptr;
        continue;
      }
      // T1, T2 and T4 follow each other in x; T3 lies in y.
      float* const to = (o == 4 ? y : x) + q * size;
      g.b[q] = to, g.from[q] = block(kFrom[o], q);
      g.minus[q] = o == 2 ? block(0, q) : o == 4 ? block(1, q) : to;
    }
    g.outer = kSteps[o];
    const int quadrant = std::max(0, kQuadrant[o]);
    const Operand* left = job.left + kProducts * o;
    tiles(g, nv_, r0, r1, next, [&](int64_t r) {
      for (int s = 0; s < kProducts; ++s) g.a[s] = left[s].data + r * left[s].ld, g.lda[s] = left[s].ld;
      for (int q = 0; q < 4; ++q) {
        const auto& p = panel[quadrant % 2 * 2 + q % 2];
        const int64_t at = (job.row0 + (quadrant / 2 * 2 + q / 2) * job.count + r) * job.ldc + p.column;
        g.u0[q] = u0 + (q * rows + r - r0) * width;
        g.u1[q] = u1 + (q * rows + r - r0) * width;
        g.out[q] = {job.c + at, job.ldc, p.cols, job.epilogue, p.column, at};
      }
    });
  }
}

// Chunk `index` of a block: a part of the rows of a group of panels, or of a panel that is left over.
void Strassen::chunk(const Job& job, int64_t index, int64_t parts, float* slot) const {
  const int64_t group = index / parts, part = index % parts;
  const int64_t r0 = job.count * part / parts, r1 = job.count * (part + 1) / parts;
  const bool owns_rest = part == parts - 1 && job.last_block;
  const int64_t k1 = job.last ? depth_ : job.k0 + cut_ * leaf_;
  const auto grouped = static_cast<size_t>(panel_groups_ * cut_);
  if (group >= panel_groups_) {
    const size_t p = grouped + static_cast<size_t>(group - panel_groups_);
    const int64_t end = owns_rest ? rows_ : job.row0 + cut_ * r1;
    plain(job, p, job.row0 + cut_ * r0, end, job.k0, k1);
    return;
  }
  const auto p0 = static_cast<size_t>(group * cut_), p1 = p0 + static_cast<size_t>(cut_);
  if (job.last && tail_ > 0)
    for (size_t p = p0; p < p1; ++p)
      for (int64_t q = 0; q < cut_; ++q)
        plain(job, p, job.row0 + q * job.count + r0, job.row0 + q * job.count + r1, depth_ - tail_, depth_);
  if (r0 < r1) {
    if (levels_ == 1)
      group_one(job, group, r0, r1, slot);
    else
      group_two(job, group, r0, r1, slot);
  }
  if (owns_rest)
    for (size_t p = p0; p < p1; ++p) plain(job, p, cut_ * leaf_rows_, rows_, job.k0, k1);
}

void Strassen::run(const float* a, int64_t lda, const float* packed, float* c, int64_t ldc, const Epilogue& epilogue,
                   float* scratch, Pool* pool) const {
  float* slots = scratch + round_up_64(static_cast<size_t>(sum_floats()));
  const size_t per_slot = round_up_64(static_cast<size_t>(slot_floats()));
  const auto each = [&](int64_t count, auto&& body) {
    if (pool != nullptr) return pool->parallel_for(count, body);
    for (int64_t k = 0; k < count; ++k) body(k, 0);
  };
  const int64_t pitch = round_up(leaf_, W);
  const int64_t chunks = chunks_per_part();
  for (int64_t first = 0; first < leaf_rows_; first += block_) {
    const int64_t count = std::min(block_, leaf_rows_ - first);
    for (int64_t group = 0; group < groups_; ++group) {
      Operand left[kProducts * kProducts], outer[kProducts];
      Epilogue e = epilogue;
      Job job{};
      job.row0 = first * cut_, job.count = count, job.k0 = group * cut_ * leaf_;
      job.a = a + job.row0 * lda + job.k0;
      job.left = left, job.sums = scratch, job.lda = lda, job.packed = packed, job.c = c, job.ldc = ldc, job.epilogue = &e;
      job.last = group == groups_ - 1, job.last_block = first + count == leaf_rows_;
      e.accumulate = group > 0 || (job.last && tail_ > 0);
      e.last = job.last;
      if (levels_ == 1) {
        left_operands(Operand{job.a, lda}, count, leaf_, scratch, pitch, left);
      } else {
        left_operands(Operand{job.a, lda}, 2 * count, 2 * leaf_, scratch, 2 * pitch, outer);
        const float* inner = scratch + 16 * block_ * pitch;
        for (int o = 0; o < kProducts; ++o)
          left_operands(outer[o], count, leaf_, inner + 4 * o * count * pitch, pitch, left + kProducts * o);
      }
      const int64_t step = 8, forms = (count + step - 1) / step;
      each(forms, [&](int64_t k, int) { form_left(job, k * step, std::min(count, (k + 1) * step)); });
      each(chunks * row_parts_, [&](int64_t k, int slot) { chunk(job, k, row_parts_, slots + per_slot * static_cast<size_t>(slot)); });
    }
  }
}

}  // namespace mnnpy::MNNPY_NS
