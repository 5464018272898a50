// ArgReduce and PrefixScan along one axis.
#include <memory>
#include <string>

#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

// ---- ArgReduce -------------------------------------------------------------------------------------------------------

// x is preferred to the best so far; NaN before everything, then the earlier one (or the later, where *last*).
template <bool kMax, class T>
MNNPY_INLINE bool better(T x, T best) {
  if constexpr (std::is_floating_point_v<T>) {
    if (best != best) return false;
    if (x != x) return true;
  }
  return kMax ? x > best : x < best;
}

template <bool kMax, class T>
int64_t arg_row(const T* x, int64_t n, bool last) {
  // The extreme by vectors, then its position.
  T best = x[0];
  bool nan = false;
  if constexpr (std::is_floating_point_v<T>) {
    int bad = 0;
    for (int64_t k = 0; k < n; ++k) bad |= x[k] != x[k];
    nan = bad != 0;
  }
  T lane[8];
  for (T& v : lane) v = best;
  int64_t k = 0;
  for (; k + 8 <= n; k += 8)
    for (int j = 0; j < 8; ++j) lane[j] = (kMax ? x[k + j] > lane[j] : x[k + j] < lane[j]) ? x[k + j] : lane[j];
  for (; k < n; ++k) best = (kMax ? x[k] > best : x[k] < best) ? x[k] : best;
  for (T v : lane) best = (kMax ? v > best : v < best) ? v : best;
  auto hit = [&](T v) { return nan ? v != v : v == best; };
  if (last) {
    for (k = n - 1; k > 0 && !hit(x[k]); --k) {}
  } else {
    for (k = 0; k < n - 1 && !hit(x[k]); ++k) {}
  }
  return k;
}

template <bool kMax, class T>
void arg_columns(const T* x, int64_t n, int64_t stride, int64_t width, bool last, int64_t* y) {
  T best[256];
  for (int64_t j = 0; j < width; ++j) best[j] = x[j], y[j] = 0;
  for (int64_t k = 1; k < n; ++k)
    for (int64_t j = 0; j < width; ++j) {
      const T v = x[k * stride + j];
      const bool tie = last && (v == best[j] || (v != v && best[j] != best[j]));
      if (tie || better<kMax, T>(v, best[j])) best[j] = v, y[j] = k;
    }
}

class ArgReduce final : public Kernel {
 public:
  ArgReduce(AxisSplit s, DType t, bool is_max, bool last) : split_(s), type_(t), load_(load_op(t)), max_(is_max), last_(last) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    with_type(compute_type(type_), [&](auto v) {
      using T = std::conditional_t<std::is_same_v<decltype(v), bool>, uint8_t, decltype(v)>;
      max_ ? run_as<true, T>(ctx, inputs[0], static_cast<int64_t*>(outputs[0]))
           : run_as<false, T>(ctx, inputs[0], static_cast<int64_t*>(outputs[0]));
    });
  }
  std::string algorithm() const override { return split_.inner == 1 ? "rows" : "columns"; }

 private:
  template <bool kMax, class T>
  void run_as(const RunContext& ctx, const void* in, int64_t* out) const {
    const auto [outer, n, inner] = split_;
    const int64_t width = std::min<int64_t>(256, inner), blocks = width == 0 ? 0 : (inner + width - 1) / width;
    const size_t size = dtype_size(type_);
    share(ctx, outer * blocks, static_cast<double>(n * width) * 2, [&](int64_t begin, int64_t end, int) {
      std::vector<T> wide(load_ != nullptr ? static_cast<size_t>(n * width) : 0);
      for (int64_t k = begin; k < end; ++k) {
        const int64_t o = k / blocks, j = k % blocks * width, m = std::min(width, inner - j);
        const auto* x = static_cast<const std::byte*>(in) + (o * n * inner + j) * static_cast<int64_t>(size);
        const T* p = reinterpret_cast<const T*>(x);
        int64_t stride = inner;
        if (load_ != nullptr) {
          for (int64_t r = 0; r < n; ++r) load_(x + r * inner * static_cast<int64_t>(size), wide.data() + r * m, m);
          p = wide.data();
          stride = m;
        }
        if (inner == 1) out[o] = arg_row<kMax, T>(p, n, last_);
        else arg_columns<kMax, T>(p, n, stride, m, last_, out + o * inner + j);
      }
    });
  }

  AxisSplit split_;
  DType type_;
  LoadFn load_;
  bool max_, last_;
};

std::unique_ptr<Kernel> make_arg_reduce(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1 || node.outputs[0].dtype != DType::I64) return decline(ctx, "takes one operand, gives i64");
  const TensorDesc& x = node.inputs[0];
  const int axis = normal_axis(node.i("axis", 0), x.rank());
  const std::string fn = node.s("fn", "");
  if (axis < 0 || axis >= x.rank() || is_complex(x.dtype) || (fn != "Max" && fn != "Min")) return decline(ctx, "bad axis, dtype or fn");
  const AxisSplit s = split_axis(x.shape, axis);
  if (s.n == 0 && s.outer * s.inner != 0) throw std::invalid_argument("ArgReduce '" + node.name + "': the axis is empty");
  return std::make_unique<ArgReduce>(s, x.dtype, fn == "Max", node.i("select_last", 0) != 0);
}

// ---- PrefixScan ------------------------------------------------------------------------------------------------------

class PrefixScan final : public Kernel {
 public:
  PrefixScan(AxisSplit s, DType t, bool product, bool exclusive, bool reverse)
      : split_(s), type_(t), load_(load_op(t)), store_(store_op(t)), product_(product), exclusive_(exclusive), reverse_(reverse) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    with_type(compute_type(type_), [&](auto v) {
      using T = decltype(v);
      if constexpr (!std::is_same_v<T, bool>) run_as<T>(ctx, inputs[0], outputs[0]);
    });
  }
  bool in_place(int) const override { return true; }
  std::string algorithm() const override { return split_.inner == 1 ? "rows" : "columns"; }

 private:
  template <class T>
  void run_as(const RunContext& ctx, const void* in, void* out) const {
    // f32 is accumulated in double, integers wrap in their unsigned type.
    using A = typename std::conditional_t<std::is_floating_point_v<T>, std::type_identity<double>, std::make_unsigned<T>>::type;
    const auto [outer, n, inner] = split_;
    const int64_t width = std::min<int64_t>(128, inner), blocks = width == 0 ? 0 : (inner + width - 1) / width;
    const auto size = static_cast<int64_t>(dtype_size(type_));
    share(ctx, outer * blocks, static_cast<double>(n * width) * 2, [&](int64_t begin, int64_t end, int) {
      A acc[128];
      T x[128], y[128];
      for (int64_t k = begin; k < end; ++k) {
        const int64_t o = k / blocks, j = k % blocks * width, m = std::min(width, inner - j);
        for (int64_t i = 0; i < m; ++i) acc[i] = product_ ? A(1) : A(0);
        for (int64_t s = 0; s < n; ++s) {
          const int64_t r = reverse_ ? n - 1 - s : s, at = ((o * n + r) * inner + j) * size;
          const auto* from = static_cast<const std::byte*>(in) + at;
          auto* to = static_cast<std::byte*>(out) + at;
          if (load_ != nullptr) load_(from, x, m);
          else std::memcpy(x, from, static_cast<size_t>(m) * sizeof(T));
          for (int64_t i = 0; i < m; ++i) {
            const A before = acc[i];
            acc[i] = static_cast<A>(product_ ? product(before, static_cast<A>(x[i])) : before + static_cast<A>(x[i]));
            y[i] = static_cast<T>(exclusive_ ? before : acc[i]);
          }
          if (store_ != nullptr) store_(y, to, m, {});
          else std::memcpy(to, y, static_cast<size_t>(m) * sizeof(T));
        }
      }
    });
  }
  template <class A>
  MNNPY_INLINE static A product(A a, A b) {
    if constexpr (sizeof(A) < 4) return static_cast<A>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
    else return a * b;
  }

  AxisSplit split_;
  DType type_;
  LoadFn load_;
  StoreFn store_;
  bool product_, exclusive_, reverse_;
};

std::unique_ptr<Kernel> make_prefix_scan(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1 || node.inputs[0].dtype != node.outputs[0].dtype) return decline(ctx, "takes one operand");
  const TensorDesc& x = node.inputs[0];
  const int axis = normal_axis(node.i("axis", 0), x.rank());
  const std::string fn = node.s("fn", "");
  if (axis < 0 || axis >= x.rank() || is_complex(x.dtype) || x.dtype == DType::BOOL || (fn != "Sum" && fn != "Prod"))
    return decline(ctx, "bad axis, dtype or fn");
  return std::make_unique<PrefixScan>(split_axis(x.shape, axis), x.dtype, fn == "Prod", node.i("exclusive", 0) != 0, node.i("reverse", 0) != 0);
}

}  // namespace

MNNPY_REGISTER("ArgReduce", make_arg_reduce);
MNNPY_REGISTER("PrefixScan", make_prefix_scan);

}  // namespace mnnpy::MNNPY_NS
