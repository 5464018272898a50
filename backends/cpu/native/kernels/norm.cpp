// Normalisation over trailing axes: LayerNormalization, RMSNormalization, AddLayerNormalization (y = LN(x + residual)),
// and over channels of NC…: InstanceNormalization and GroupNormalization. All in f32.
#include <memory>
#include <string>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

// Sums of a row: several accumulators, as long chains of additions would lose digits and wait for one another.
template <class F>
MNNPY_INLINE float sum_of(int64_t n, F f) {
  VF a{}, b{}, c{}, d{};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W) {
    a += f(k, W);
    b += f(k + W, W);
    c += f(k + 2 * W, W);
    d += f(k + 3 * W, W);
  }
  for (; k + W <= n; k += W) a += f(k, W);
  if (k < n) b += f(k, static_cast<int>(n - k));
  return sum_lanes((a + b) + (c + d));
}

MNNPY_INLINE VF load_some(const float* p, int n) { return n == W ? load(p) : load_partial(p, n); }
MNNPY_INLINE void store_some(float* p, VF v, int n) { n == W ? store(p, v) : store_partial(p, v, n); }
// The first n lanes of v, the others 0.
MNNPY_INLINE VF keep(VF v, int n) {
  if (n == W) return v;
  for (int k = n; k < W; ++k) v[k] = 0;
  return v;
}

struct Moments {
  float mean, inverse;  // 1 / sqrt(variance + epsilon)
};

template <bool kRms>
MNNPY_INLINE Moments moments(const float* x, int64_t n, float epsilon) {
  if constexpr (kRms) {
    const float squares = sum_of(n, [&](int64_t k, int m) __attribute__((always_inline)) {
      const VF v = load_some(x + k, m);
      return v * v;
    });
    return {0, 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon)};
  } else {
    const float mean = sum_of(n, [&](int64_t k, int m) __attribute__((always_inline)) { return load_some(x + k, m); }) / static_cast<float>(n);
    const float squares = sum_of(n, [&](int64_t k, int m) __attribute__((always_inline)) {
      const VF v = keep(load_some(x + k, m) - mean, m);
      return v * v;
    });
    return {mean, 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon)};
  }
}

// scale and bias per element of the row; bias may be absent.
template <bool kRms>
void normalise_row(const float* x, float* y, int64_t n, float epsilon, const float* scale, const float* bias) {
  const Moments t = moments<kRms>(x, n, epsilon);
  for (int64_t k = 0; k < n; k += W) {
    const int m = static_cast<int>(std::min<int64_t>(W, n - k));
    VF v = (load_some(x + k, m) - t.mean) * t.inverse;
    if (scale != nullptr) v = v * load_some(scale + k, m);
    if (bias != nullptr) v = v + load_some(bias + k, m);
    store_some(y + k, v, m);
  }
}

enum class Norm { LAYER, RMS, ADD_LAYER };

class RowNorm final : public Kernel {
 public:
  RowNorm(Norm kind, int64_t rows, int64_t n, float epsilon, bool sum_output)
      : kind_(kind), rows_(rows), n_(n), epsilon_(epsilon), sum_output_(sum_output) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const bool add = kind_ == Norm::ADD_LAYER;
    const float* x = static_cast<const float*>(inputs[0]);
    const float* residual = add ? static_cast<const float*>(inputs[1]) : nullptr;
    const float* scale = static_cast<const float*>(inputs[add ? 2 : 1]);
    const float* bias = bias_at() < count_ ? static_cast<const float*>(inputs[bias_at()]) : nullptr;
    float* y = static_cast<float*>(outputs[0]);
    float* sum = sum_output_ ? static_cast<float*>(outputs[1]) : nullptr;
    share(ctx, rows_, 3.0 * static_cast<double>(n_) + 20, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const float* row = x + r * n_;
        float* to = y + r * n_;
        if (add) {
          float* total = sum != nullptr ? sum + r * n_ : to;
          const float* other = residual + r * n_;
          MNNPY_IVDEP
          for (int64_t k = 0; k < n_; ++k) total[k] = row[k] + other[k];
          row = total;
        }
        if (kind_ == Norm::RMS) normalise_row<true>(row, to, n_, epsilon_, scale, bias);
        else normalise_row<false>(row, to, n_, epsilon_, scale, bias);
      }
    });
  }
  bool in_place(int input) const override { return input == 0 || (kind_ == Norm::ADD_LAYER && input == 1); }
  std::string algorithm() const override { return "rows"; }
  void inputs(size_t n) { count_ = n; }

 private:
  size_t bias_at() const { return kind_ == Norm::ADD_LAYER ? 3 : 2; }

  Norm kind_;
  int64_t rows_, n_;
  float epsilon_;
  bool sum_output_;
  size_t count_ = 0;
};

bool all_f32(const NodeDesc& node) {
  for (auto* list : {&node.inputs, &node.outputs})
    for (const TensorDesc& t : *list)
      if (t.present && t.dtype != DType::F32) return false;
  return true;
}

// One element for each of a row: shape[axis:], leading ones aside.
bool is_tail(const Dims& s, const Dims& shape, int axis) {
  size_t a = 0, b = static_cast<size_t>(axis);
  while (a < s.size() && s[a] == 1) ++a;
  while (b < shape.size() && shape[b] == 1) ++b;
  if (s.size() - a != shape.size() - b) return false;
  for (; a < s.size(); ++a, ++b)
    if (s[a] != shape[b]) return false;
  return true;
}

template <Norm K>
std::unique_ptr<Kernel> make_row_norm(const NodeDesc& node, const BuildContext& ctx) {
  const size_t first = K == Norm::ADD_LAYER ? 2 : 1;
  if (node.inputs.size() < first || node.inputs.size() > first + 2 || node.outputs.empty()) return decline(ctx, "wrong number of operands");
  if (!all_f32(node)) return decline(ctx, "only f32");
  for (size_t k = K == Norm::ADD_LAYER ? 2 : 1; k < node.outputs.size(); ++k)
    if (node.outputs[k].present) return decline(ctx, "mean and deviation have no kernel");
  const TensorDesc& x = node.inputs[0];
  if (K == Norm::ADD_LAYER && node.inputs[1].shape != x.shape) return decline(ctx, "x and residual differ in shape");
  const int axis = normal_axis(node.i("axis", -1), x.rank());
  if (axis < 0 || axis >= x.rank()) return decline(ctx, "the axis is out of range");
  int64_t rows = 1, n = 1;
  for (int k = 0; k < x.rank(); ++k) (k < axis ? rows : n) *= x.shape[k];
  for (size_t k = first; k < node.inputs.size(); ++k)
    if (node.inputs[k].present && !is_tail(node.inputs[k].shape, x.shape, axis)) return decline(ctx, "scale and bias must have the normalised shape");
  auto kernel = std::make_unique<RowNorm>(K, n == 0 ? 0 : rows, n, static_cast<float>(node.f("epsilon", 1e-5)),
                                          node.outputs.size() > 1 && node.outputs[1].present);
  kernel->inputs(node.inputs.size());
  return kernel;
}

// ---- channels of NC… -------------------------------------------------------------------------------------------------

// Each group of channels of one image is one row; scale and bias belong to channels, that is to runs of the row.
class ChannelNorm final : public Kernel {
 public:
  ChannelNorm(int64_t images, int64_t channels, int64_t spatial, int64_t groups, float epsilon)
      : images_(images), channels_(channels), spatial_(spatial), groups_(groups), epsilon_(epsilon) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const float* x = static_cast<const float*>(inputs[0]);
    const float* scale = static_cast<const float*>(inputs[1]);
    const float* bias = static_cast<const float*>(inputs[2]);
    float* y = static_cast<float*>(outputs[0]);
    const int64_t per = channels_ / groups_, n = per * spatial_;
    if (n == 0) return;
    share(ctx, images_ * groups_, 3.0 * static_cast<double>(n) + 20, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const Moments t = moments<false>(x + r * n, n, epsilon_);
        for (int64_t c = 0; c < per; ++c) {
          const int64_t channel = r % groups_ * per + c;
          const float a = t.inverse * scale[channel], b = bias[channel];
          const float* p = x + r * n + c * spatial_;
          float* q = y + r * n + c * spatial_;
          MNNPY_IVDEP
          for (int64_t k = 0; k < spatial_; ++k) q[k] = (p[k] - t.mean) * a + b;
        }
      }
    });
  }
  bool in_place(int input) const override { return input == 0; }
  std::string algorithm() const override { return "channels"; }

 private:
  int64_t images_, channels_, spatial_, groups_;
  float epsilon_;
};

template <bool kInstance>
std::unique_ptr<Kernel> make_channel_norm(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 3 || node.outputs.size() != 1 || node.inputs[0].rank() < 2) return decline(ctx, "takes x[N,C,…], scale and bias");
  if (!all_f32(node)) return decline(ctx, "only f32");
  const Dims& shape = node.inputs[0].shape;
  const int64_t channels = shape[1], groups = kInstance ? channels : node.i("num_groups", 1);
  if (groups <= 0 || channels % groups != 0 || node.inputs[1].count() != channels || node.inputs[2].count() != channels)
    return decline(ctx, "scale and bias hold one number per channel, and groups divide the channels");
  int64_t spatial = 1;
  for (size_t k = 2; k < shape.size(); ++k) spatial *= shape[k];
  return std::make_unique<ChannelNorm>(shape[0], channels, spatial, groups, static_cast<float>(node.f("epsilon", 1e-5)));
}

}  // namespace

MNNPY_REGISTER("LayerNormalization", make_row_norm<Norm::LAYER>);
MNNPY_REGISTER("RMSNormalization", make_row_norm<Norm::RMS>);
MNNPY_REGISTER("AddLayerNormalization", make_row_norm<Norm::ADD_LAYER>);
MNNPY_REGISTER("InstanceNormalization", make_channel_norm<true>);
MNNPY_REGISTER("GroupNormalization", make_channel_norm<false>);

}  // namespace mnnpy::MNNPY_NS
