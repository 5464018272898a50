// Folding of rows and columns. f32 is summed by several vector accumulators over short blocks, the blocks in double.
#include "kernels/reduce.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <class T>
using Wide = std::conditional_t<std::is_floating_point_v<T>, double, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class A>
MNNPY_INLINE A& get(Total& t) {
  if constexpr (std::is_same_v<A, double>) return t.f;
  else if constexpr (std::is_same_v<A, int64_t>) return t.i;
  else return t.u;
}
template <class A>
MNNPY_INLINE A get(const Total& t) {
  return get<A>(const_cast<Total&>(t));
}

template <Fold F, class T>
constexpr Wide<T> neutral() {
  using A = Wide<T>;
  if constexpr (F == Fold::PROD) return A(1);
  else if constexpr (F == Fold::MAX || F == Fold::MIN) {
    if constexpr (std::is_floating_point_v<T>)
      return F == Fold::MAX ? -std::numeric_limits<A>::infinity() : std::numeric_limits<A>::infinity();
    else
      return F == Fold::MAX ? A(std::numeric_limits<T>::min()) : A(std::numeric_limits<T>::max());
  } else {
    return A(0);
  }
}

// acc ∘ x for an element (after map) or another accumulator.
template <Fold F, class A>
MNNPY_INLINE A join(A acc, A x) {
  if constexpr (F == Fold::PROD) {
    if constexpr (std::is_same_v<A, int64_t>) return static_cast<A>(static_cast<uint64_t>(acc) * static_cast<uint64_t>(x));
    else return acc * x;
  } else if constexpr (F == Fold::MAX) {
    return x > acc || x != x ? x : acc;
  } else if constexpr (F == Fold::MIN) {
    return x < acc || x != x ? x : acc;
  } else {
    if constexpr (std::is_same_v<A, int64_t>) return static_cast<A>(static_cast<uint64_t>(acc) + static_cast<uint64_t>(x));
    else return acc + x;
  }
}
template <Fold F, class A>
MNNPY_INLINE A map(A x) {
  if constexpr (F == Fold::SQUARES) {
    if constexpr (std::is_same_v<A, int64_t>) return static_cast<A>(static_cast<uint64_t>(x) * static_cast<uint64_t>(x));
    else return x * x;
  } else if constexpr (F == Fold::ABSOLUTES) {
    if constexpr (std::is_same_v<A, double>) return std::fabs(x);
    else return x < 0 ? A(0) - x : x;
  } else {
    return x;
  }
}

template <Fold F, class T>
void start(Total* acc, int64_t n) {
  for (int64_t k = 0; k < n; ++k) get<Wide<T>>(acc[k]) = neutral<F, T>();
}

// Eight chains hide the latency and let the compiler use vectors.
template <Fold F, class T>
void row(const void* from, int64_t n, Total* acc) {
  using A = Wide<T>;
  const T* x = static_cast<const T*>(from);
  A a[8];
  for (A& v : a) v = neutral<F, T>();
  int64_t k = 0;
  for (; k + 8 <= n; k += 8)
    for (int j = 0; j < 8; ++j) a[j] = join<F, A>(a[j], map<F, A>(static_cast<A>(x[k + j])));
  A total = get<A>(acc[0]);
  for (A v : a) total = join<F, A>(total, v);
  for (; k < n; ++k) total = join<F, A>(total, map<F, A>(static_cast<A>(x[k])));
  get<A>(acc[0]) = total;
}

template <Fold F, class T>
void columns(const void* from, int64_t rows, int64_t stride, int64_t n, Total* acc) {
  using A = Wide<T>;
  const T* x = static_cast<const T*>(from);
  A local[kColumns];
  for (int64_t j = 0; j < n; ++j) local[j] = get<A>(acc[j]);
  for (int64_t r = 0; r < rows; ++r) {
    MNNPY_IVDEP
    for (int64_t j = 0; j < n; ++j) local[j] = join<F, A>(local[j], map<F, A>(static_cast<A>(x[r * stride + j])));
  }
  for (int64_t j = 0; j < n; ++j) get<A>(acc[j]) = local[j];
}

// ---- f32 by vectors --------------------------------------------------------------------------------------------------

template <Fold F>
MNNPY_INLINE VF join_f(VF acc, VF x) {
  if constexpr (F == Fold::MAX) return vmax(acc, x);
  else if constexpr (F == Fold::MIN) return vmin(acc, x);
  else if constexpr (F == Fold::SQUARES) return acc + x * x;
  else if constexpr (F == Fold::ABSOLUTES) return acc + vabs(x);
  else return acc + x;
}

template <Fold F>
void row_f32(const void* from, int64_t n, Total* acc) {
  const float* x = static_cast<const float*>(from);
  constexpr int64_t block = 64 * W;
  constexpr Fold rest_fold = F == Fold::MAX || F == Fold::MIN ? F : Fold::SUM;
  const VF first = splat(static_cast<float>(neutral<F, float>()));
  double total = acc[0].f;
  int64_t k = 0;
  while (n - k >= W) {
    const int64_t end = k + std::min(block, (n - k) / W * W);
    VF a = first, b = first, c = first, d = first;
    for (; k + 4 * W <= end; k += 4 * W) {
      a = join_f<F>(a, load(x + k));
      b = join_f<F>(b, load(x + k + W));
      c = join_f<F>(c, load(x + k + 2 * W));
      d = join_f<F>(d, load(x + k + 3 * W));
    }
    for (; k < end; k += W) a = join_f<F>(a, load(x + k));
    if constexpr (F == Fold::MAX || F == Fold::MIN) {
      const VF m = join_f<F>(join_f<F>(a, b), join_f<F>(c, d));
      for (int j = 0; j < W; ++j) total = join<F, double>(total, m[j]);
    } else {
      total += sum_lanes((a + b) + (c + d));
    }
  }
  for (; k < n; ++k) total = join<rest_fold, double>(total, map<F, double>(x[k]));
  acc[0].f = total;
}

template <Fold F>
void columns_f32(const void* from, int64_t rows, int64_t stride, int64_t n, Total* acc) {
  const float* x = static_cast<const float*>(from);
  constexpr Fold rest_fold = F == Fold::MAX || F == Fold::MIN ? F : Fold::SUM;
  const VF first = splat(static_cast<float>(neutral<F, float>()));
  for (int64_t r0 = 0; r0 < rows; r0 += 64) {
    const int64_t r1 = std::min(rows, r0 + 64);
    int64_t j = 0;
    auto flush = [&](VF v, int64_t at) {
      for (int i = 0; i < W; ++i) acc[at + i].f = join<rest_fold, double>(acc[at + i].f, static_cast<double>(v[i]));
    };
    for (; j + 4 * W <= n; j += 4 * W) {
      VF a = first, b = first, c = first, d = first;
      for (int64_t r = r0; r < r1; ++r) {
        const float* p = x + r * stride + j;
        a = join_f<F>(a, load(p));
        b = join_f<F>(b, load(p + W));
        c = join_f<F>(c, load(p + 2 * W));
        d = join_f<F>(d, load(p + 3 * W));
      }
      flush(a, j), flush(b, j + W), flush(c, j + 2 * W), flush(d, j + 3 * W);
    }
    for (; j + W <= n; j += W) {
      VF a = first;
      for (int64_t r = r0; r < r1; ++r) a = join_f<F>(a, load(x + r * stride + j));
      flush(a, j);
    }
    if (j < n) {
      const int rest = static_cast<int>(n - j);
      VF a = first;
      for (int64_t r = r0; r < r1; ++r) a = join_f<F>(a, load_partial(x + r * stride + j, rest));
      for (int i = 0; i < rest; ++i) acc[j + i].f = join<rest_fold, double>(acc[j + i].f, static_cast<double>(a[i]));
    }
  }
}

template <Fold F, class T>
void merge(const Total* from, int64_t n, Total* acc) {
  using A = Wide<T>;
  constexpr Fold rest_fold = F == Fold::MAX || F == Fold::MIN || F == Fold::PROD ? F : Fold::SUM;
  for (int64_t k = 0; k < n; ++k) get<A>(acc[k]) = join<rest_fold, A>(get<A>(acc[k]), get<A>(from[k]));
}

template <class T>
void finish(const Total* acc, int64_t n, int64_t count, bool mean, bool root, void* to) {
  using A = Wide<T>;
  T* y = static_cast<T*>(to);
  for (int64_t k = 0; k < n; ++k) {
    A v = get<A>(acc[k]);
    if (mean) {
      if constexpr (std::is_floating_point_v<T>) v /= static_cast<A>(count);
      else v = count == 0 ? A(0) : static_cast<A>(v / static_cast<A>(count));
    }
    if (root) v = static_cast<A>(std::sqrt(static_cast<double>(v)));
    y[k] = static_cast<T>(v);
  }
}

template <Fold F, class T>
FoldOps ops_of() {
  FoldOps ops{start<F, T>, row<F, T>, columns<F, T>, merge<F, T>, finish<T>};
  if constexpr (std::is_same_v<T, float> && F != Fold::PROD) {
    ops.row = row_f32<F>;
    ops.columns = columns_f32<F>;
  }
  return ops;
}

template <Fold F>
FoldOps by_type(DType t) {
  FoldOps found{};
  with_type(t, [&](auto v) {
    using T = decltype(v);
    if constexpr (!std::is_same_v<T, bool>) found = ops_of<F, T>();
    else if constexpr (F == Fold::MAX || F == Fold::MIN) found = ops_of<F, uint8_t>();
  });
  return found;
}

}  // namespace

FoldOps fold_ops(Fold fold, DType t) {
  switch (fold) {
    case Fold::SUM: return by_type<Fold::SUM>(t);
    case Fold::PROD: return by_type<Fold::PROD>(t);
    case Fold::MAX: return by_type<Fold::MAX>(t);
    case Fold::MIN: return by_type<Fold::MIN>(t);
    case Fold::SQUARES: return by_type<Fold::SQUARES>(t);
    default: return by_type<Fold::ABSOLUTES>(t);
  }
}

}  // namespace mnnpy::MNNPY_NS
