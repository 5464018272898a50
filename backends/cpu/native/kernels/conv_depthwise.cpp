// Depthwise convolution for f32, channels last: vectors over channels, a few neighbouring pixels at a time.
#include <cstring>

#include "conv.h"

namespace mnnpy::MNNPY_NS {
namespace {

constexpr int kPixels = 4;

struct Line {  // one output line of one block of channels
  const float* const* rows;    // input line per valid (kd, kh), at the block's first channel and column 0
  const float* const* weights;  // [kw][padded channels] per valid (kd, kh)
  int count;                   // valid (kd, kh)
  int64_t kernel_w, weight_pitch, pixel, step, dilation;  // floats per pixel, stride and dilation in pixels
  const float* bias;
  const float* residual;
  float* out;
  int64_t out_pixel;
  int lanes;                   // of the last vector
};

template <int P, int NV>
MNNPY_INLINE void start(const Line& l, VF (&acc)[P][NV]) {
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    VF b{};
    if (l.bias != nullptr) b = v == NV - 1 ? load_partial(l.bias + v * W, l.lanes) : load(l.bias + v * W);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[p][v] = b;
  }
}

// Residual, activation and store of P pixels from output column `ow`.
template <int P, int NV>
MNNPY_INLINE void finish(const Line& l, const Epilogue& e, int64_t ow, VF (&acc)[P][NV]) {
  const bool whole = l.lanes == W;
  if (l.residual != nullptr) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const float* r = l.residual + (ow + p) * l.out_pixel + v * W;
        acc[p][v] += v == NV - 1 ? load_partial(r, l.lanes) : load(r);
      }
  }
  if (is_clip(e.act)) {
    if (e.act != Act::NONE) {
      const VF low = splat(e.act == Act::RELU ? 0.0f : e.act_alpha);
      const VF high = splat(e.act == Act::RELU ? __builtin_inff() : e.act_beta);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[p][v] = vclip(acc[p][v], low, high);
    }
  } else {
    VF copy[P * NV];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) copy[p * NV + v] = acc[p][v];
    activate_block(e, copy, P * NV);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[p][v] = copy[p * NV + v];
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = l.out + (ow + p) * l.out_pixel + v * W;
      if (v == NV - 1 && !whole)
        store_partial(to, acc[p][v], l.lanes);
      else
        store(to, acc[p][v]);
    }
}

// P pixels of a kernel whose width and stride are known: every input vector is loaded once per kernel line.
// Vectors may be read beyond the last channel only where the caller says that `lanes` is W.
template <int KW, int S, int P, int NV>
[[gnu::noinline]] void group(const Line& l, const Epilogue& e, int64_t ow, int64_t iw) {
  VF acc[P][NV];
  start<P, NV>(l, acc);
  for (int q = 0; q < l.count; ++q) {
    const float* x = l.rows[q] + iw * l.pixel;
    VF w[KW][NV];
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) w[k][v] = load(l.weights[q] + k * l.weight_pitch + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < (P - 1) * S + KW; ++i, x += l.pixel) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const VF in = load(x + v * W);
#pragma GCC unroll 8
        for (int k = 0; k < KW; ++k)
          if ((i - k) % S == 0 && i >= k && (i - k) / S < P) acc[(i - k) / S][v] += w[k][v] * in;
      }
    }
  }
  finish<P, NV>(l, e, ow, acc);
}

// P pixels from output column `ow`, kernel columns [k0, k1) (all inside the input).
template <int P, int NV>
[[gnu::noinline]] void pixels(const Line& l, const Epilogue& e, int64_t ow, int64_t iw, int64_t k0, int64_t k1) {
  VF acc[P][NV];
  start<P, NV>(l, acc);
  const auto body = [&](auto read) {
    for (int q = 0; q < l.count; ++q) {
      const float* x = l.rows[q] + (iw + k0 * l.dilation) * l.pixel;
      const float* w = l.weights[q] + k0 * l.weight_pitch;
      for (int64_t k = k0; k < k1; ++k, x += l.dilation * l.pixel, w += l.weight_pitch) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const VF wv = load(w + v * W);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) acc[p][v] += wv * read(x + p * l.step * l.pixel + v * W, v);
        }
      }
    }
  };
  if (l.lanes == W)
    body([](const float* p, int) { return load(p); });
  else
    body([&](const float* p, int v) { return v == NV - 1 ? load_partial(p, l.lanes) : load(p); });
  finish<P, NV>(l, e, ow, acc);
}

// Columns [begin, end), all of whose kernel positions lie inside the input, in groups of nearly equal width.
template <int KW, int S, int NV>
void inner(const Line& l, const Epilogue& e, int64_t begin, int64_t end, int64_t before) {
  constexpr int64_t kMost = S == 1 ? 6 : 4;
  int64_t left = end - begin;
  for (int64_t ow = begin; left > 0;) {
    const int64_t groups = (left + kMost - 1) / kMost, p = (left + groups - 1) / groups, iw = ow * S - before;
    switch (p) {
      case 1: group<KW, S, 1, NV>(l, e, ow, iw); break;
      case 2: group<KW, S, 2, NV>(l, e, ow, iw); break;
      case 3: group<KW, S, 3, NV>(l, e, ow, iw); break;
      case 4: group<KW, S, 4, NV>(l, e, ow, iw); break;
      case 5: group<KW, S, S == 1 ? 5 : 1, NV>(l, e, ow, iw); break;
      default: group<KW, S, S == 1 ? 6 : 1, NV>(l, e, ow, iw); break;
    }
    ow += p;
    left -= p;
  }
}

class ConvDepthwise final : public Kernel {
 public:
  ConvDepthwise(const NodeDesc& node, const ConvShape& s, const Epilogue& e) : s_(s), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    pitch_ = (s.c + W - 1) / W * W;
    if (const auto* w = static_cast<const float*>(node.inputs[1].constant)) {
      packed_ = Floats(static_cast<size_t>(pitch_ * s.taps()));
      pack(w, packed_.data());
      constant_ = true;
    }
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return input == 1 && constant_; }
  bool in_place(int input) const override { return input == 3; }
  std::string algorithm() const override { return "conv-depthwise"; }
  size_t scratch_bytes(int) const override { return constant_ ? 0 : static_cast<size_t>(pitch_ * s_.taps()) * sizeof(float); }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const float* w = packed_.data();
    if (!constant_) {
      pack(static_cast<const float*>(inputs[1]), reinterpret_cast<float*>(ctx.scratch));
      w = reinterpret_cast<float*>(ctx.scratch);
    }
    // Chunks are blocks of channels by stretches of lines: lines of one block stay in L1 while the next line reuses them.
    const int64_t blocks = (pitch_ / W + kVectors - 1) / kVectors, lines = s_.batch * s_.out[0] * s_.out[1];
    int64_t stretches = 1;
    if (ctx.pool->threads() > 1) {
      const auto wanted = std::min<int64_t>(ctx.pool->threads() * 4, static_cast<int64_t>(s_.flops() / 2e5));
      stretches = std::clamp<int64_t>((wanted + blocks - 1) / blocks, 1, std::max<int64_t>(1, lines));
    }
    // All work of a small problem in one chunk.
    const bool single = ctx.pool->threads() == 1 || s_.flops() < 4e5;
    const auto one = [&](int64_t chunk) {
      const int64_t block = chunk % blocks, part = chunk / blocks;
      const int64_t first = lines * part / stretches, last = lines * (part + 1) / stretches;
      const int64_t c = block * kVectors * W;
      const auto vectors = static_cast<int>(std::min<int64_t>(kVectors, pitch_ / W - block * kVectors));
      const int lanes = static_cast<int>(std::min<int64_t>(W, s_.c - c - (vectors - 1) * W));
      for (int64_t l = first; l < last; ++l) {
        if (vectors == 2)
          line<2>(inputs, static_cast<float*>(outputs[0]), w, l, c, lanes);
        else
          line<1>(inputs, static_cast<float*>(outputs[0]), w, l, c, lanes);
      }
    };
    if (single) {
      stretches = 1;
      for (int64_t k = 0; k < blocks; ++k) one(k);
    } else {
      ctx.pool->parallel_for(blocks * stretches, [&](int64_t chunk, int) { one(chunk); });
    }
  }

 private:
  static constexpr int kVectors = 2;
  static constexpr int kMaxLines = 128;

  void pack(const float* w, float* to) const {
    const int64_t taps = s_.taps();
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t c = 0; c < pitch_; ++c) to[t * pitch_ + c] = c < s_.c ? w[c * taps + t] * epilogue_.scale : 0.0f;
  }

  template <int NV>
  void line(const void* const* inputs, float* y, const float* w, int64_t index, int64_t c, int lanes) const {
    const auto* x = static_cast<const float*>(inputs[0]);
    const int64_t oh = index % s_.out[1], od = index / s_.out[1] % s_.out[0], n = index / (s_.out[1] * s_.out[0]);
    const float* rows[kMaxLines];
    const float* weights[kMaxLines];
    Line l;
    l.count = 0;
    for (int64_t kd = 0; kd < s_.kernel[0]; ++kd)
      for (int64_t kh = 0; kh < s_.kernel[1]; ++kh) {
        const int64_t id = od * s_.stride[0] + kd * s_.dilation[0] - s_.before[0];
        const int64_t ih = oh * s_.stride[1] + kh * s_.dilation[1] - s_.before[1];
        if (id < 0 || id >= s_.in[0] || ih < 0 || ih >= s_.in[1]) continue;
        rows[l.count] = x + ((n * s_.in[0] + id) * s_.in[1] + ih) * s_.in[2] * s_.c + c;
        weights[l.count++] = w + (kd * s_.kernel[1] + kh) * s_.kernel[2] * pitch_ + c;
      }
    l.rows = rows, l.weights = weights;
    l.kernel_w = s_.kernel[2], l.weight_pitch = pitch_, l.pixel = s_.c, l.step = s_.stride[2], l.dilation = s_.dilation[2];
    l.bias = has_bias_ ? static_cast<const float*>(inputs[2]) + c : nullptr;
    l.out = y + index * s_.out[2] * s_.c + c;
    l.residual = has_residual_ ? static_cast<const float*>(inputs[3]) + index * s_.out[2] * s_.c + c : nullptr;
    l.out_pixel = s_.c;
    l.lanes = lanes;

    // Columns whose whole kernel line is inside the input go several at a time.
    const int64_t reach = (s_.kernel[2] - 1) * s_.dilation[2], step = s_.stride[2];
    const int64_t inner0 = std::clamp<int64_t>((s_.before[2] + step - 1) / step, 0, s_.out[2]);
    const int64_t room = s_.in[2] - 1 - reach + s_.before[2];
    const int64_t inner1 = room < 0 ? inner0 : std::clamp(room / step + 1, inner0, s_.out[2]);
    for (int64_t ow = 0; ow < inner0; ++ow) edge<NV>(l, ow);
    if (lanes == W && s_.dilation[2] == 1 && s_.kernel[2] == 3 && step <= 2) {
      (step == 1 ? inner<3, 1, NV> : inner<3, 2, NV>)(l, epilogue_, inner0, inner1, s_.before[2]);
    } else if (lanes == W && s_.dilation[2] == 1 && s_.kernel[2] == 5 && step <= 2) {
      (step == 1 ? inner<5, 1, NV> : inner<5, 2, NV>)(l, epilogue_, inner0, inner1, s_.before[2]);
    } else {
      int64_t ow = inner0;
      for (; ow + kPixels <= inner1; ow += kPixels) pixels<kPixels, NV>(l, epilogue_, ow, ow * step - s_.before[2], 0, s_.kernel[2]);
      for (; ow < inner1; ++ow) pixels<1, NV>(l, epilogue_, ow, ow * step - s_.before[2], 0, s_.kernel[2]);
    }
    for (int64_t ow = inner1; ow < s_.out[2]; ++ow) edge<NV>(l, ow);
  }

  template <int NV>
  void edge(const Line& l, int64_t ow) const {
    const int64_t iw = ow * s_.stride[2] - s_.before[2], d = s_.dilation[2];
    const int64_t k0 = iw < 0 ? std::min(s_.kernel[2], (-iw + d - 1) / d) : 0;
    const int64_t k1 = iw >= s_.in[2] ? k0 : std::max(k0, std::min(s_.kernel[2], (s_.in[2] - 1 - iw) / d + 1));
    pixels<1, NV>(l, epilogue_, ow, iw, k0, k1);
  }

  ConvShape s_;
  Epilogue epilogue_;
  Floats packed_;
  int64_t pitch_;
  bool constant_ = false, has_bias_, has_residual_;
};

std::unique_ptr<Kernel> make_depthwise(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  const std::string algorithm = node.s("algorithm", "auto");
  if (algorithm != "auto" && algorithm != "direct") return decline(ctx, "another algorithm was asked for");
  ConvShape s;
  Epilogue e;
  const char* why = "";
  if (!conv_shape(node, true, s, why) || !conv_operands(node, s, e, why)) return decline(ctx, why);
  if (s.group != s.c || s.m != s.c || s.kernel[0] * s.kernel[1] > 128) return decline(ctx, "not depthwise");
  return std::make_unique<ConvDepthwise>(node, s, e);
}

}  // namespace

MNNPY_REGISTER_AT("Convolution", make_depthwise, 20);

}  // namespace mnnpy::MNNPY_NS
