// MatMul, Convolution and Pool for every numeric type, row-major [N, C, …]: plain loops, the reference of the fast kernels.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/light.h"
#include "kernels/numbers.h"

namespace mnnpy::MNNPY_NS {
namespace {

// Elements as stored, and the type they are summed in.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
template <class T>
struct Number {
  using Sum = T;
  static Sum get(T x) { return x; }
  static T put(Sum x) { return x; }
};
template <>
struct Number<Half> {
  using Sum = float;
  static float get(Half x) { return half_to_float(x.bits); }
  static Half put(float x) { return {float_to_half(x)}; }
};
template <>
struct Number<Brain> {
  using Sum = float;
  static float get(Brain x) { return bf16_to_float(x.bits); }
  static Brain put(float x) { return {float_to_bf16(x)}; }
};
// Products of narrow integers wrap; unsigned arithmetic keeps that defined.
template <class S>
MNNPY_INLINE S mul_add(S a, S b, S c) {
  if constexpr (std::is_integral_v<S>) {
    using U = std::make_unsigned_t<S>;
    using Wide = std::conditional_t<(sizeof(S) < 4), uint32_t, U>;
    return static_cast<S>(static_cast<U>(static_cast<Wide>(static_cast<U>(a)) * static_cast<Wide>(static_cast<U>(b)) +
                                         static_cast<Wide>(static_cast<U>(c))));
  } else {
    return a * b + c;
  }
}

template <class F>
bool with_number(DType t, F&& f) {
  switch (t) {
    case DType::I8: f(int8_t{}); return true;
    case DType::I16: f(int16_t{}); return true;
    case DType::I32: f(int32_t{}); return true;
    case DType::I64: f(int64_t{}); return true;
    case DType::U8: f(uint8_t{}); return true;
    case DType::U16: f(uint16_t{}); return true;
    case DType::U32: f(uint32_t{}); return true;
    case DType::U64: f(uint64_t{}); return true;
    case DType::F16: f(Half{}); return true;
    case DType::BF16: f(Brain{}); return true;
    case DType::F32: f(float{}); return true;
    case DType::F64: f(double{}); return true;
    default: return false;
  }
}

bool direct(const NodeDesc& node) {
  const std::string algorithm = node.s("algorithm", "auto");
  return algorithm == "auto" || algorithm == "direct";
}

bool plain(const NodeDesc& node) {
  const bool more = node.inputs.size() > 3 && node.inputs[3].present;
  return !more && node.s("act", "").empty() && node.f("alpha", 1.0) == 1.0 && node.s("layout", "NCHW") == "NCHW";
}

bool one_type(const NodeDesc& node) {
  for (const TensorDesc& t : node.inputs)
    if (t.present && t.dtype != node.inputs[0].dtype) return false;
  return node.outputs[0].dtype == node.inputs[0].dtype;
}

// ---- MatMul ----------------------------------------------------------------------------------------------------------

struct Strided {  // batch strides per output batch dim, innermost first
  std::vector<int64_t> dims, a, b;
};

template <class T>
class MatMulAny final : public Kernel {
  using N = Number<T>;
  using S = typename N::Sum;

 public:
  explicit MatMulAny(const NodeDesc& node) {
    const Dims &sa = node.inputs[0].shape, &sb = node.inputs[1].shape;
    const size_t ra = sa.size(), rb = sb.size();
    const bool ta = node.i("trans_a", 0) != 0 && ra > 1, tb = node.i("trans_b", 0) != 0 && rb > 1;
    const int64_t a0 = ra > 1 ? sa[ra - 2] : 1, a1 = sa[ra - 1], b0 = rb > 1 ? sb[rb - 2] : sb[0], b1 = rb > 1 ? sb[rb - 1] : 1;
    m_ = ta ? a1 : a0, k_ = ta ? a0 : a1, n_ = tb ? b0 : b1;
    row_ = ta ? 1 : a1, a_k_ = ta ? a1 : 1, b_k_ = tb ? 1 : b1, b_n_ = tb ? b1 : 1;
    int64_t na = a0 * a1, nb = b0 * b1;
    for (size_t q = 0; q + 2 < std::max(ra, rb); ++q) {
      const int64_t da = q + 2 < ra ? sa[ra - 3 - q] : 1, db = q + 2 < rb ? sb[rb - 3 - q] : 1;
      batch_.dims.push_back(da == 1 ? db : da);
      batch_.a.push_back(da == 1 ? 0 : na);
      batch_.b.push_back(db == 1 ? 0 : nb);
      na *= da, nb *= db;
      batches_ *= batch_.dims.back();
    }
    bias_ = node.inputs.size() > 2 && node.inputs[2].present;
  }

  size_t scratch_bytes(int threads) const override { return align64(static_cast<size_t>(n_) * sizeof(S)) * static_cast<size_t>(threads); }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* bias = bias_ ? static_cast<const T*>(inputs[2]) : nullptr;
    share(ctx, batches_ * m_, static_cast<double>(n_) * static_cast<double>(k_ + 1), [&](int64_t begin, int64_t end, int slot) {
      auto* sums = reinterpret_cast<S*>(ctx.scratch + align64(static_cast<size_t>(n_) * sizeof(S)) * static_cast<size_t>(slot));
      for (int64_t r = begin; r < end; ++r) {
        int64_t rest = r / m_, ia = 0, ib = 0;
        for (size_t d = 0; d < batch_.dims.size(); ++d) {
          ia += rest % batch_.dims[d] * batch_.a[d], ib += rest % batch_.dims[d] * batch_.b[d];
          rest /= batch_.dims[d];
        }
        row(static_cast<const T*>(inputs[0]) + ia + r % m_ * row_, static_cast<const T*>(inputs[1]) + ib, bias, sums,
            static_cast<T*>(outputs[0]) + r * n_);
      }
    });
  }

 private:
  void row(const T* a, const T* b, const T* bias, S* sums, T* out) const {
    for (int64_t j = 0; j < n_; ++j) sums[j] = S{};
    if (b_n_ == 1) {
      for (int64_t k = 0; k < k_; ++k) {
        const S x = N::get(a[k * a_k_]);
        const T* from = b + k * b_k_;
        MNNPY_IVDEP
        for (int64_t j = 0; j < n_; ++j) sums[j] = mul_add<S>(x, N::get(from[j]), sums[j]);
      }
    } else {
      for (int64_t j = 0; j < n_; ++j) {
        const T* from = b + j * b_n_;
        S s{};
        for (int64_t k = 0; k < k_; ++k) s = mul_add<S>(N::get(a[k * a_k_]), N::get(from[k * b_k_]), s);
        sums[j] = s;
      }
    }
    for (int64_t j = 0; j < n_; ++j) out[j] = N::put(bias != nullptr ? mul_add<S>(S{1}, sums[j], N::get(bias[j])) : sums[j]);
  }

  int64_t m_, n_, k_, row_, a_k_, b_k_, b_n_, batches_ = 1;
  Strided batch_;
  bool bias_;
};

// Why the shapes do not fit, or nullptr.
const char* misfit(const NodeDesc& node) {
  const Dims &a = node.inputs[0].shape, &b = node.inputs[1].shape;
  const size_t ra = a.size(), rb = b.size();
  const bool ta = node.i("trans_a", 0) != 0 && ra > 1, tb = node.i("trans_b", 0) != 0 && rb > 1;
  const int64_t ka = ta ? a[ra - 2] : a[ra - 1], kb = rb == 1 ? b[0] : tb ? b[rb - 1] : b[rb - 2];
  if (ka != kb) return "inner sizes differ";
  int64_t total = ra == 1 ? 1 : ta ? a[ra - 1] : a[ra - 2];
  const int64_t n = rb == 1 ? 1 : tb ? b[rb - 2] : b[rb - 1];
  total *= n;
  for (size_t q = 0; q + 2 < std::max(ra, rb); ++q) {
    const int64_t da = q + 2 < ra ? a[ra - 3 - q] : 1, db = q + 2 < rb ? b[rb - 3 - q] : 1;
    if (da != db && da != 1 && db != 1) return "batch dimensions do not broadcast";
    total *= da == 1 ? db : da;
  }
  if (node.outputs[0].count() != total) return "the output has another size";
  if (node.inputs.size() > 2 && node.inputs[2].present && node.inputs[2].count() != n) return "the bias is not a vector over the columns";
  return nullptr;
}

std::unique_ptr<Kernel> make_matmul(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() < 2 || node.outputs.size() != 1 || !one_type(node)) return decline(ctx, "operands differ in dtype");
  if (!direct(node)) return decline(ctx, "another algorithm was asked for");
  if (!plain(node)) return decline(ctx, "only f32 products have fused epilogues");
  const Dims &a = node.inputs[0].shape, &b = node.inputs[1].shape;
  if (a.empty() || b.empty()) return decline(ctx, "operands need rank >= 1");
  const char* why = misfit(node);
  if (why != nullptr) return decline(ctx, why);
  std::unique_ptr<Kernel> made;
  with_number(node.inputs[0].dtype, [&](auto t) { made = std::make_unique<MatMulAny<decltype(t)>>(node); });
  if (!made) return decline(ctx, "dtype is not numeric");
  return made;
}

// ---- windows ---------------------------------------------------------------------------------------------------------

struct Window {  // always three spatial dims
  int64_t batch, channels, in[3], out[3], kernel[3], stride[3], dilation[3], before[3], after[3];
  int64_t in_count() const { return in[0] * in[1] * in[2]; }
  int64_t out_count() const { return out[0] * out[1] * out[2]; }
};

bool window_of(const NodeDesc& node, const Dims& kernel, Window& w) {
  const Dims &x = node.inputs[0].shape, &y = node.outputs[0].shape;
  const size_t s = x.size() - 2;
  const auto strides = node.ints("strides"), pads = node.ints("pads"), dilations = node.ints("dilations");
  if (x.size() < 3 || x.size() > 5 || y.size() != x.size() || kernel.size() != s || strides.size() != s ||
      pads.size() != 2 * s || dilations.size() != s)
    return false;
  if (y[0] != x[0]) return false;
  w.batch = x[0], w.channels = x[1];
  for (size_t k = 0; k < 3; ++k) {
    const bool real = k + s >= 3;
    const size_t q = real ? k + s - 3 : 0;
    w.in[k] = real ? x[2 + q] : 1;
    w.out[k] = real ? y[2 + q] : 1;
    w.kernel[k] = real ? kernel[q] : 1;
    w.stride[k] = real ? strides[q] : 1;
    w.dilation[k] = real ? dilations[q] : 1;
    w.before[k] = real ? pads[q] : 0;
    w.after[k] = real ? pads[s + q] : 0;
    if (w.stride[k] < 1 || w.dilation[k] < 1) return false;
  }
  return true;
}

// Kernel positions [first, last) of dim d whose input lies inside, for output o.
MNNPY_INLINE void span(const Window& w, int d, int64_t o, int64_t& first, int64_t& last) {
  const int64_t start = o * w.stride[d] - w.before[d];
  first = start < 0 ? (-start + w.dilation[d] - 1) / w.dilation[d] : 0;
  last = start >= w.in[d] ? 0 : std::min(w.kernel[d], (w.in[d] - 1 - start) / w.dilation[d] + 1);
}

template <class T>
class ConvAny final : public Kernel {
  using N = Number<T>;
  using S = typename N::Sum;

 public:
  ConvAny(const NodeDesc& node, const Window& w) : w_(w) {
    group_ = node.i("group", 1);
    m_ = node.inputs[1].shape[0];
    cg_ = node.inputs[1].shape[1];
    bias_ = node.inputs.size() > 2 && node.inputs[2].present;
  }

  size_t scratch_bytes(int threads) const override { return align64(static_cast<size_t>(w_.out[2]) * sizeof(S)) * static_cast<size_t>(threads); }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const T*>(inputs[0]);
    const auto* w = static_cast<const T*>(inputs[1]);
    const auto* bias = bias_ ? static_cast<const T*>(inputs[2]) : nullptr;
    auto* y = static_cast<T*>(outputs[0]);
    const int64_t rows = w_.out[0] * w_.out[1], taps = w_.kernel[0] * w_.kernel[1] * w_.kernel[2];
    share(ctx, w_.batch * m_ * rows, static_cast<double>(w_.out[2] * taps * cg_), [&](int64_t begin, int64_t end, int slot) {
      auto* sums = reinterpret_cast<S*>(ctx.scratch + align64(static_cast<size_t>(w_.out[2]) * sizeof(S)) * static_cast<size_t>(slot));
      for (int64_t r = begin; r < end; ++r) {
        const int64_t n = r / (m_ * rows), m = r / rows % m_, q = r % rows;
        const int64_t c0 = m / (m_ / group_) * cg_;
        line(x + (n * w_.channels + c0) * w_.in_count(), w + m * cg_ * taps, q / w_.out[1], q % w_.out[1],
             bias != nullptr ? N::get(bias[m]) : S{}, sums);
        T* out = y + r * w_.out[2];
        for (int64_t k = 0; k < w_.out[2]; ++k) out[k] = N::put(sums[k]);
      }
    });
  }

 private:
  // One output line: adds shifted input lines, so that the inner loop runs over pixels.
  void line(const T* x, const T* w, int64_t od, int64_t oh, S start, S* sums) const {
    for (int64_t k = 0; k < w_.out[2]; ++k) sums[k] = start;
    int64_t d0, d1, h0, h1;
    span(w_, 0, od, d0, d1);
    span(w_, 1, oh, h0, h1);
    for (int64_t c = 0; c < cg_; ++c)
      for (int64_t kd = d0; kd < d1; ++kd)
        for (int64_t kh = h0; kh < h1; ++kh)
          for (int64_t kw = 0; kw < w_.kernel[2]; ++kw) {
            const int64_t id = od * w_.stride[0] - w_.before[0] + kd * w_.dilation[0];
            const int64_t ih = oh * w_.stride[1] - w_.before[1] + kh * w_.dilation[1];
            const int64_t shift = kw * w_.dilation[2] - w_.before[2], s = w_.stride[2];
            const int64_t first = shift < 0 ? (-shift + s - 1) / s : 0;
            const int64_t last = w_.in[2] - 1 - shift < 0 ? 0 : std::min(w_.out[2], (w_.in[2] - 1 - shift) / s + 1);
            const S weight = N::get(w[((c * w_.kernel[0] + kd) * w_.kernel[1] + kh) * w_.kernel[2] + kw]);
            const T* from = x + ((c * w_.in[0] + id) * w_.in[1] + ih) * w_.in[2] + shift;
            MNNPY_IVDEP
            for (int64_t k = first; k < last; ++k) sums[k] = mul_add<S>(weight, N::get(from[k * s]), sums[k]);
          }
  }

  Window w_;
  int64_t group_, m_, cg_;
  bool bias_;
};

std::unique_ptr<Kernel> make_convolution(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() < 2 || !one_type(node)) return decline(ctx, "operands differ in dtype");
  if (!direct(node)) return decline(ctx, "another algorithm was asked for");
  if (!plain(node)) return decline(ctx, "only f32 convolutions have layout NHWC and fused epilogues");
  const Dims& w = node.inputs[1].shape;
  Window window;
  if (w.size() < 3 || !window_of(node, Dims(w.begin() + 2, w.end()), window)) return decline(ctx, "needs one to three spatial dims, and attributes and sizes that fit");
  const int64_t group = node.i("group", 1);
  for (size_t d = 0; d < 3; ++d) {
    const int64_t reach = window.in[d] + window.before[d] + window.after[d] - ((window.kernel[d] - 1) * window.dilation[d] + 1);
    if (window.out[d] != (reach >= 0 ? reach / window.stride[d] + 1 : 0)) return decline(ctx, "the output has another size");
  }
  if (node.outputs[0].shape[1] != w[0]) return decline(ctx, "the output has another size");
  if (node.inputs.size() > 2 && node.inputs[2].present && node.inputs[2].count() != w[0]) return decline(ctx, "the bias is not a vector over output channels");
  if (group < 1 || w[1] * group != window.channels || w[0] % group != 0) return decline(ctx, "channels do not fit the groups");
  std::unique_ptr<Kernel> made;
  with_number(node.inputs[0].dtype, [&](auto t) { made = std::make_unique<ConvAny<decltype(t)>>(node, window); });
  if (!made) return decline(ctx, "dtype is not numeric");
  return made;
}

enum class PoolFn { MAX, AVERAGE, LP };

template <class T>
class PoolAny final : public Kernel {
  using N = Number<T>;
  using S = typename N::Sum;

 public:
  PoolAny(const NodeDesc& node, const Window& w, PoolFn fn) : w_(w), fn_(fn) {
    count_pad_ = node.i("count_include_pad", 0) != 0;
    p_ = static_cast<double>(node.i("p", 2));
    indices_ = node.outputs.size() > 1 && node.outputs[1].present;
    column_major_ = node.i("column_major", 0) != 0;
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const T*>(inputs[0]);
    auto* y = static_cast<T*>(outputs[0]);
    auto* index = indices_ ? static_cast<int64_t*>(outputs[1]) : nullptr;
    const int64_t window = w_.kernel[0] * w_.kernel[1] * w_.kernel[2];
    share(ctx, w_.batch * w_.channels, static_cast<double>(w_.out_count() * window * 2), [&](int64_t begin, int64_t end, int) {
      for (int64_t plane = begin; plane < end; ++plane) {
        int64_t at = plane * w_.out_count();
        for (int64_t od = 0; od < w_.out[0]; ++od)
          for (int64_t oh = 0; oh < w_.out[1]; ++oh)
            for (int64_t ow = 0; ow < w_.out[2]; ++ow, ++at) {
              const int64_t o[3] = {od, oh, ow};
              int64_t where = 0;
              y[at] = one(x + plane * w_.in_count(), o, where);
              if (index != nullptr) index[at] = plane * w_.in_count() + where;
            }
      }
    });
  }

 private:
  T one(const T* x, const int64_t* o, int64_t& where) const {
    int64_t first[3], last[3], start[3];
    for (int d = 0; d < 3; ++d) {
      span(w_, d, o[d], first[d], last[d]);
      start[d] = o[d] * w_.stride[d] - w_.before[d];
    }
    S best = lowest();
    S sum{};
    double norm = 0;
    bool any = false;
    for (int64_t a = first[0]; a < last[0]; ++a)
      for (int64_t b = first[1]; b < last[1]; ++b)
        for (int64_t c = first[2]; c < last[2]; ++c) {
          const int64_t d = start[0] + a * w_.dilation[0], h = start[1] + b * w_.dilation[1], v = start[2] + c * w_.dilation[2];
          const S value = N::get(x[(d * w_.in[1] + h) * w_.in[2] + v]);
          if (fn_ == PoolFn::MAX) {
            if (!any || value > best || (value != value && best == best)) {
              best = value;
              where = column_major_ ? (v * w_.in[1] + h) * w_.in[0] + d : (d * w_.in[1] + h) * w_.in[2] + v;
            }
            any = true;
          } else if (fn_ == PoolFn::AVERAGE) {
            sum = static_cast<S>(sum + value);
          } else {
            norm += std::pow(std::abs(static_cast<double>(value)), p_);
          }
        }
    if (fn_ == PoolFn::MAX) return N::put(best);
    if (fn_ == PoolFn::LP) return N::put(static_cast<S>(std::pow(norm, 1.0 / p_)));
    int64_t count = 1;
    for (int d = 0; d < 3; ++d) count *= count_pad_ ? padded(d, start[d]) : std::max<int64_t>(0, last[d] - first[d]);
    if constexpr (std::is_floating_point_v<S>) return N::put(sum / static_cast<S>(count));
    return N::put(count == 0 ? S{} : static_cast<S>(sum / static_cast<S>(count)));
  }

  // Positions of the window inside the padded extent.
  int64_t padded(int d, int64_t start) const {
    const int64_t end = w_.in[d] + w_.after[d];
    int64_t n = 0;
    for (int64_t k = 0; k < w_.kernel[d]; ++k) n += start + k * w_.dilation[d] < end ? 1 : 0;
    return n;
  }

  static S lowest() {
    if constexpr (std::numeric_limits<S>::has_infinity) return -std::numeric_limits<S>::infinity();
    return std::numeric_limits<S>::lowest();
  }

  Window w_;
  PoolFn fn_;
  bool count_pad_, indices_, column_major_;
  double p_;
};

std::unique_ptr<Kernel> make_pool(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.inputs[0].dtype != node.outputs[0].dtype) return decline(ctx, "dtypes differ");
  if (node.s("layout", "NCHW") != "NCHW") return decline(ctx, "only f32 pools have layout NHWC");
  Window window;
  if (!window_of(node, node.ints("kernel"), window)) return decline(ctx, "needs one to three spatial dims, and attributes and sizes that fit");
  if (node.outputs[0].shape[1] != window.channels) return decline(ctx, "the output has another size");
  if (node.outputs.size() > 1 && node.outputs[1].present &&
      (node.outputs[1].dtype != DType::I64 || node.outputs[1].count() != node.outputs[0].count()))
    return decline(ctx, "indices are i64, one per result");
  const std::string name = node.s("fn", "");
  if (name != "Max" && name != "Average" && name != "Lp") return decline(ctx, "unknown fn");
  const PoolFn fn = name == "Max" ? PoolFn::MAX : name == "Average" ? PoolFn::AVERAGE : PoolFn::LP;
  std::unique_ptr<Kernel> made;
  with_number(node.inputs[0].dtype, [&](auto t) { made = std::make_unique<PoolAny<decltype(t)>>(node, window, fn); });
  if (!made) return decline(ctx, "dtype is not numeric");
  return made;
}

}  // namespace

MNNPY_REGISTER("MatMul", make_matmul);
MNNPY_REGISTER("Convolution", make_convolution);
MNNPY_REGISTER("Pool", make_pool);

}  // namespace mnnpy::MNNPY_NS
