// Softmax and LogSoftmax along one axis. Rows stay in L1 between the passes (largest element, exponentials and their
// sum, scaling); along an outer axis the same is done for a strip of neighbouring columns at once.
#include <memory>
#include <string>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

constexpr int64_t kStrip = 4 * W;  // columns

MNNPY_INLINE float largest(const float* x, int64_t n) {
  const VF low = splat(-std::numeric_limits<float>::infinity());
  VF a = low, b = low;
  int64_t k = 0;
  for (; k + 2 * W <= n; k += 2 * W) {
    a = vmax(a, load(x + k));
    b = vmax(b, load(x + k + W));
  }
  for (; k + W <= n; k += W) a = vmax(a, load(x + k));
  float m = max_lanes(vmax(a, b));
  for (; k < n; ++k) m = x[k] > m || x[k] != x[k] ? x[k] : m;
  return m;
}

template <bool kLog>
void row_f32(const float* x, float* y, int64_t n) {
  // A row of -inf only gives NaN, as the formula does.
  const VF m = splat(largest(x, n));
  VF a{}, b{};
  int64_t k = 0;
  for (; k + 2 * W <= n; k += 2 * W) {
    const VF u = load(x + k) - m, v = load(x + k + W) - m;
    const VF e = vexp(u), f = vexp(v);
    a += e;
    b += f;
    store(y + k, kLog ? u : e);
    store(y + k + W, kLog ? v : f);
  }
  float sum = sum_lanes(a + b);
  for (; k < n; k += W) {
    const int rest = static_cast<int>(std::min<int64_t>(W, n - k));
    const VF u = load_partial(x + k, rest) - m;
    const VF e = vexp(u);
    for (int j = 0; j < rest; ++j) sum += e[j];
    store_partial(y + k, kLog ? u : e, rest);
  }
  const float scale = kLog ? std::log(sum) : 1.0f / sum;
  for (k = 0; k + W <= n; k += W) store(y + k, kLog ? load(y + k) - scale : load(y + k) * scale);
  for (; k < n; ++k) y[k] = kLog ? y[k] - scale : y[k] * scale;
}

// rows of `width` columns (at most kStrip), `stride` apart.
template <bool kLog>
void strip_f32(const float* x, float* y, int64_t rows, int64_t stride, int64_t width) {
  for (int64_t j = 0; j < width; j += W) {
    const int n = static_cast<int>(std::min<int64_t>(W, width - j));
    const float* p = x + j;
    float* q = y + j;
    VF m = splat(-std::numeric_limits<float>::infinity()), sum{};
    for (int64_t r = 0; r < rows; ++r) m = vmax(m, load_partial(p + r * stride, n));
    for (int64_t r = 0; r < rows; ++r) {
      const VF u = load_partial(p + r * stride, n) - m;
      const VF e = vexp(u);
      sum += e;
      store_partial(q + r * stride, kLog ? u : e, n);
    }
    const VF scale = kLog ? vlog(sum) : 1.0f / sum;
    for (int64_t r = 0; r < rows; ++r) {
      const VF v = load_partial(q + r * stride, n);
      store_partial(q + r * stride, kLog ? v - scale : v * scale, n);
    }
  }
}

template <bool kLog>
void line_f64(const double* x, double* y, int64_t n, int64_t stride) {
  double m = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t k = 0; k < n; ++k) m = x[k * stride] > m || x[k * stride] != x[k * stride] ? x[k * stride] : m;
  for (int64_t k = 0; k < n; ++k) {
    const double u = x[k * stride] - m, e = std::exp(u);
    sum += e;
    y[k * stride] = kLog ? u : e;
  }
  const double scale = kLog ? std::log(sum) : 1.0 / sum;
  for (int64_t k = 0; k < n; ++k) y[k * stride] = kLog ? y[k * stride] - scale : y[k * stride] * scale;
}

template <bool kLog>
class Softmax final : public Kernel {
 public:
  Softmax(AxisSplit s, DType t) : split_(s), type_(t) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto [outer, n, inner] = split_;
    if (outer * n * inner == 0) return;
    if (type_ == DType::F32) {
      const float* x = static_cast<const float*>(inputs[0]);
      float* y = static_cast<float*>(outputs[0]);
      const int64_t strips = (inner + kStrip - 1) / kStrip;
      share(ctx, outer * strips, 6.0 * static_cast<double>(n * std::min(inner, kStrip)), [&](int64_t begin, int64_t end, int) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t j = k % strips * kStrip, at = k / strips * n * inner + j;
          if (inner == 1) row_f32<kLog>(x + at, y + at, n);
          else strip_f32<kLog>(x + at, y + at, n, inner, std::min(kStrip, inner - j));
        }
      });
      return;
    }
    if (type_ == DType::F64) {
      const double* x = static_cast<const double*>(inputs[0]);
      double* y = static_cast<double*>(outputs[0]);
      share(ctx, outer * inner, 30.0 * static_cast<double>(n), [&](int64_t begin, int64_t end, int) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t at = k / inner * n * inner + k % inner;
          line_f64<kLog>(x + at, y + at, n, inner);
        }
      });
      return;
    }
    run_narrow(ctx, inputs[0], outputs[0]);
  }
  size_t scratch_bytes(int threads) const override { return is_narrow_float(type_) ? slot_bytes() * static_cast<size_t>(threads) : 0; }
  bool in_place(int) const override { return true; }
  std::string algorithm() const override { return split_.inner == 1 ? "rows" : "strips"; }

 private:
  size_t slot_bytes() const { return align64(static_cast<size_t>(split_.n * std::min(split_.inner, kStrip)) * sizeof(float)); }

  // Half precision: a row or strip is widened, computed in f32 and rounded once.
  void run_narrow(const RunContext& ctx, const void* in, void* out) const {
    const auto [outer, n, inner] = split_;
    const LoadFn load_fn = load_op(type_);
    const StoreFn store_fn = store_op(type_);
    const auto size = static_cast<int64_t>(dtype_size(type_));
    const int64_t strips = (inner + kStrip - 1) / kStrip;
    share(ctx, outer * strips, 8.0 * static_cast<double>(n * std::min(inner, kStrip)), [&](int64_t begin, int64_t end, int slot) {
      float* wide = reinterpret_cast<float*>(ctx.scratch + slot_bytes() * static_cast<size_t>(slot));
      for (int64_t k = begin; k < end; ++k) {
        const int64_t j = k % strips * kStrip, m = std::min(kStrip, inner - j);
        const auto* x = static_cast<const std::byte*>(in) + (k / strips * n * inner + j) * size;
        auto* y = static_cast<std::byte*>(out) + (k / strips * n * inner + j) * size;
        if (inner == 1) {
          load_fn(x, wide, n);
          row_f32<kLog>(wide, wide, n);
          store_fn(wide, y, n, {});
          continue;
        }
        for (int64_t r = 0; r < n; ++r) load_fn(x + r * inner * size, wide + r * m, m);
        strip_f32<kLog>(wide, wide, n, m, m);
        for (int64_t r = 0; r < n; ++r) store_fn(wide + r * m, y + r * inner * size, m, {});
      }
    });
  }

  AxisSplit split_;
  DType type_;
};

template <bool kLog>
std::unique_ptr<Kernel> make_softmax(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1) return decline(ctx, "takes one operand");
  const TensorDesc& x = node.inputs[0];
  const int axis = normal_axis(node.i("axis", -1), x.rank());
  if (x.dtype != node.outputs[0].dtype || (x.dtype != DType::F32 && x.dtype != DType::F64 && !is_narrow_float(x.dtype)))
    return decline(ctx, "only real floating-point types");
  if (x.rank() == 0) return std::make_unique<Softmax<kLog>>(AxisSplit{}, x.dtype);
  if (axis < 0 || axis >= x.rank()) return decline(ctx, "the axis is out of range");
  return std::make_unique<Softmax<kLog>>(split_axis(x.shape, axis), x.dtype);
}

}  // namespace

MNNPY_REGISTER("Softmax", make_softmax<false>);
MNNPY_REGISTER("LogSoftmax", make_softmax<true>);

}  // namespace mnnpy::MNNPY_NS
