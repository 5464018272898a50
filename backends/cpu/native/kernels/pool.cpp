// Max, average and Lp pooling for f32, channels last: vectors over channels.
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/light.h"
#include "simd.h"

namespace mnnpy::MNNPY_NS {
namespace {

enum class Fn { MAX, AVERAGE, L1, L2 };

struct Shape {  // always three spatial dims
  int64_t batch, c, pitch, in[3], out[3], kernel[3], stride[3], dilation[3], before[3], after[3];
};

// A window clipped to the input: kernel positions [first, last) per dim.
struct Clip {
  int64_t first[3], last[3], start[3];
};

template <Fn F>
MNNPY_INLINE VF combine(VF acc, VF x) {
  if constexpr (F == Fn::MAX) return x != x ? x : max_second(x, acc);  // NaN stays
  if constexpr (F == Fn::AVERAGE) return acc + x;
  if constexpr (F == Fn::L1) return acc + vabs(x);
  return acc + x * x;
}

template <Fn F, int NV>
MNNPY_INLINE void window(const Shape& s, const Clip& w, const float* x, float scale, float* y, int lanes) {
  VF acc[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) acc[v] = F == Fn::MAX ? splat(-__builtin_inff()) : VF{};
  const bool whole = lanes == W;
  for (int64_t a = w.first[0]; a < w.last[0]; ++a)
    for (int64_t b = w.first[1]; b < w.last[1]; ++b) {
      const float* p = x + (((w.start[0] + a * s.dilation[0]) * s.in[1] + w.start[1] + b * s.dilation[1]) * s.in[2] + w.start[2] +
                            w.first[2] * s.dilation[2]) * s.c;
      for (int64_t c = w.first[2]; c < w.last[2]; ++c, p += s.dilation[2] * s.c) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
          acc[v] = combine<F>(acc[v], v == NV - 1 && !whole ? load_partial(p + v * W, lanes) : load(p + v * W));
      }
    }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    VF r = acc[v];
    if constexpr (F == Fn::AVERAGE) r *= scale;
    if constexpr (F == Fn::L2) r = vsqrt(r);
    if (v == NV - 1 && !whole)
      store_partial(y + v * W, r, lanes);
    else
      store(y + v * W, r);
  }
}

// y[i] = all taps x[tap[t] + i] combined, i < n: windows that lie wholly inside differ by a shift only.
template <Fn F, int NV>
MNNPY_INLINE void shifted(const float* x, const int64_t* tap, int taps, float scale, float* y, int lanes) {
  VF acc[NV];
  const bool whole = lanes == W;
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) acc[v] = F == Fn::MAX ? splat(-__builtin_inff()) : VF{};
  for (int t = 0; t < taps; ++t) {
    const float* p = x + tap[t];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[v] = combine<F>(acc[v], v == NV - 1 && !whole ? load_partial(p + v * W, lanes) : load(p + v * W));
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    VF r = acc[v];
    if constexpr (F == Fn::AVERAGE) r *= scale;
    if constexpr (F == Fn::L2) r = vsqrt(r);
    if (v == NV - 1 && !whole)
      store_partial(y + v * W, r, lanes);
    else
      store(y + v * W, r);
  }
}

template <Fn F>
MNNPY_INLINE void shifted_row(const float* x, const int64_t* tap, int taps, float scale, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) shifted<F, 4>(x + i, tap, taps, scale, y + i, W);
  for (; i < n; i += W) shifted<F, 1>(x + i, tap, taps, scale, y + i, static_cast<int>(std::min<int64_t>(W, n - i)));
}

constexpr int kMaxTaps = 64;

class PoolChannelsLast final : public Kernel {
 public:
  PoolChannelsLast(const Shape& s, Fn fn, bool count_pad) : s_(s), fn_(fn), count_pad_(count_pad) {}

  std::string algorithm() const override { return "pool-channels-last"; }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const float*>(inputs[0]);
    auto* y = static_cast<float*>(outputs[0]);
    const int64_t lines = s_.batch * s_.out[0] * s_.out[1];
    const int64_t taps = s_.kernel[0] * s_.kernel[1] * s_.kernel[2];
    share(ctx, lines, static_cast<double>(s_.out[2] * s_.c * taps) / 8, [&](int64_t begin, int64_t end, int) {
      switch (fn_) {
        case Fn::MAX: return stretch<Fn::MAX>(x, y, begin, end);
        case Fn::AVERAGE: return stretch<Fn::AVERAGE>(x, y, begin, end);
        case Fn::L1: return stretch<Fn::L1>(x, y, begin, end);
        case Fn::L2: return stretch<Fn::L2>(x, y, begin, end);
      }
    });
  }

 private:
  template <Fn F>
  void stretch(const float* x, float* y, int64_t begin, int64_t end) const {
    for (int64_t l = begin; l < end; ++l) {
      const int64_t o[2] = {l / s_.out[1] % s_.out[0], l % s_.out[1]};
      const float* image = x + l / (s_.out[1] * s_.out[0]) * s_.in[0] * s_.in[1] * s_.in[2] * s_.c;
      Clip w;
      set(w, 0, o[0]);
      set(w, 1, o[1]);
      float* line = y + l * s_.out[2] * s_.pitch;
      const auto [first, last] = inside();
      for (int64_t ow = 0; ow < s_.out[2]; ++ow) {
        if (ow == first && last > first) {
          interior<F>(image, w, line, first, last);
          ow = last;
          if (ow == s_.out[2]) break;
        }
        set(w, 2, ow);
        pixel<F>(image, w, line + ow * s_.pitch);
      }
    }
  }

  // Outputs along the last axis whose windows lie wholly inside the input.
  std::pair<int64_t, int64_t> inside() const {
    const int64_t step = s_.stride[2], reach = (s_.kernel[2] - 1) * s_.dilation[2];
    const int64_t first = (s_.before[2] + step - 1) / step, room = s_.in[2] - 1 - reach + s_.before[2];
    return {first, room < 0 ? first : std::min(s_.out[2], room / step + 1)};
  }

  template <Fn F>
  void interior(const float* image, Clip& w, float* line, int64_t first, int64_t last) const {
    set(w, 2, first);
    int64_t tap[kMaxTaps];
    int taps = 0;
    const int64_t count = (w.last[0] - w.first[0]) * (w.last[1] - w.first[1]) * s_.kernel[2];
    if (w.last[0] <= w.first[0] || w.last[1] <= w.first[1] || count > kMaxTaps) {
      for (int64_t ow = first; ow < last; ++ow) {
        set(w, 2, ow);
        pixel<F>(image, w, line + ow * s_.pitch);
      }
      return;
    }
    for (int64_t a = w.first[0]; a < w.last[0]; ++a)
      for (int64_t b = w.first[1]; b < w.last[1]; ++b)
        for (int64_t c = 0; c < s_.kernel[2]; ++c)
          tap[taps++] = (((w.start[0] + a * s_.dilation[0]) * s_.in[1] + w.start[1] + b * s_.dilation[1]) * s_.in[2] + w.start[2] +
                         c * s_.dilation[2]) * s_.c;
    const float scale = F == Fn::AVERAGE ? share_of(w) : 1.0f;
    if (s_.stride[2] == 1 && s_.pitch == s_.c) return shifted_row<F>(image, tap, taps, scale, line + first * s_.c, (last - first) * s_.c);
    for (int64_t ow = first; ow < last; ++ow)
      shifted_row<F>(image + (ow - first) * s_.stride[2] * s_.c, tap, taps, scale, line + ow * s_.pitch, s_.c);
  }

  MNNPY_INLINE void set(Clip& w, int d, int64_t o) const {
    const int64_t start = o * s_.stride[d] - s_.before[d], g = s_.dilation[d];
    w.start[d] = start;
    w.first[d] = start < 0 ? (-start + g - 1) / g : 0;
    w.last[d] = start >= s_.in[d] ? 0 : std::min(s_.kernel[d], g == 1 ? s_.in[d] - start : (s_.in[d] - 1 - start) / g + 1);
  }

  template <Fn F>
  MNNPY_INLINE void pixel(const float* image, const Clip& w, float* y) const {
    const float scale = F == Fn::AVERAGE ? share_of(w) : 1.0f;
    int64_t c = 0;
    for (; c + 4 * W <= s_.c; c += 4 * W) window<F, 4>(s_, w, image + c, scale, y + c, W);
    for (; c < s_.c; c += W) window<F, 1>(s_, w, image + c, scale, y + c, static_cast<int>(std::min<int64_t>(W, s_.c - c)));
  }

  // What one of the elements counts in an average.
  MNNPY_INLINE float share_of(const Clip& w) const {
    int64_t count = 1;
    for (int d = 0; d < 3; ++d) count *= count_pad_ ? padded(d, w.start[d]) : std::max<int64_t>(0, w.last[d] - w.first[d]);
    return 1.0f / static_cast<float>(count);
  }

  // Kernel positions inside the padded extent.
  int64_t padded(int d, int64_t start) const {
    const int64_t room = s_.in[d] + s_.after[d] - 1 - start;
    return room < 0 ? 0 : std::min(s_.kernel[d], room / s_.dilation[d] + 1);
  }

  Shape s_;
  Fn fn_;
  bool count_pad_;
};

std::unique_ptr<Kernel> make_pool(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  if (node.inputs.size() != 1 || node.outputs.size() != 1 || node.i("indices", 0) != 0)
    return decline(ctx, "channels-last pooling gives no indices");
  if (node.inputs[0].dtype != DType::F32 || node.outputs[0].dtype != DType::F32)
    return decline(ctx, "channels-last pooling is f32 only");
  const Dims &x = node.inputs[0].shape, &y = node.outputs[0].shape;
  const auto kernel = node.ints("kernel"), strides = node.ints("strides"), pads = node.ints("pads"), dilations = node.ints("dilations");
  const size_t n = kernel.size();
  if (n < 1 || n > 3 || x.size() != n + 2 || y.size() != n + 2 || strides.size() != n || pads.size() != 2 * n || dilations.size() != n)
    return decline(ctx, "needs one to three spatial dims");
  const std::string fn = node.s("fn", "");
  const int64_t p = node.i("p", 2);
  Fn kind;
  if (fn == "Max") kind = Fn::MAX;
  else if (fn == "Average") kind = Fn::AVERAGE;
  else if (fn == "Lp" && (p == 1 || p == 2)) kind = p == 1 ? Fn::L1 : Fn::L2;
  else return decline(ctx, "fn is not Max, Average, or Lp with p of 1 or 2");
  if (y[0] != x[0] || y[n + 1] != x[n + 1]) return decline(ctx, "the output has another size");
  Shape s;
  s.batch = x[0], s.c = x[n + 1], s.pitch = node.i("pitch", s.c);
  if (s.pitch < s.c) return decline(ctx, "the pitch is smaller than a pixel");
  for (size_t k = 0; k < 3; ++k) {
    const bool real = k + n >= 3;
    const size_t q = real ? k + n - 3 : 0;
    s.in[k] = real ? x[1 + q] : 1;
    s.out[k] = real ? y[1 + q] : 1;
    s.kernel[k] = real ? kernel[q] : 1;
    s.stride[k] = real ? strides[q] : 1;
    s.dilation[k] = real ? dilations[q] : 1;
    s.before[k] = real ? pads[q] : 0;
    s.after[k] = real ? pads[n + q] : 0;
    if (s.stride[k] < 1 || s.dilation[k] < 1) return decline(ctx, "strides and dilations are positive");
  }
  return std::make_unique<PoolChannelsLast>(s, kind, node.i("count_include_pad", 0) != 0);
}

}  // namespace

MNNPY_REGISTER_AT("Pool", make_pool, 10);

}  // namespace mnnpy::MNNPY_NS
