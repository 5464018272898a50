// Depthwise convolution for f32, channels last: vectors over channels, a few neighbouring pixels at a time.
#include "depthwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

using Line = DepthwiseLine;

// Keeps a loaded vector in a register: folded into every multiplication that uses it, it would be loaded each time.
#if defined(__x86_64__)
#define MNNPY_KEEP(vector) asm("" : "+v"(vector))
#elif defined(__aarch64__)
#define MNNPY_KEEP(vector) asm("" : "+w"(vector))
#else
#define MNNPY_KEEP(vector) static_cast<void>(vector)
#endif

constexpr int kPixels = 4;
// Neighbouring output columns of one call: accumulators, a kernel line and an input vector fill the registers.
constexpr int kColumns = MNNPY_ISA == 2 ? 7 : 4;

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

// P pixels of a kernel whose width and stride are known: every input vector is loaded once per kernel line. EDGE: some
// input columns lie outside; they are skipped.
template <int KW, int S, int P, int NV, bool EDGE>
[[gnu::noinline]] void group(const Line& l, const Epilogue& e, int64_t ow, int64_t iw) {
  VF acc[P][NV];
  start<P, NV>(l, acc);
  const int64_t pixel = l.pixel, low = -iw, high = l.in_w - iw;
  for (int q = 0; q < l.count; ++q) {
    const float* x = l.rows[q];
    int64_t at = iw * pixel;
    VF w[KW][NV];
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) w[k][v] = load(l.weights[q] + k * l.weight_pitch + v * W);
#pragma GCC unroll 32
    for (int i = 0; i < (P - 1) * S + KW; ++i, at += pixel) {
      if (EDGE && (i < low || i >= high)) continue;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        VF in = load(x + at + v * W);
        MNNPY_KEEP(in);
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

// Output columns [begin, end) in groups of nearly equal width.
template <int KW, int S, int NV>
void columns_of(const Line& l, const Epilogue& e, int64_t begin, int64_t end) {
  for (int64_t ow = begin; ow < end;) {
    const int64_t left = end - ow, groups = (left + kColumns - 1) / kColumns, p = (left + groups - 1) / groups;
    const int64_t iw = ow * S - l.before;
    const bool edge = iw < 0 || iw + (p - 1) * S + KW > l.in_w;
    switch (p) {
#define MNNPY_GROUP(P)                                                                             \
  case P:                                                                                          \
    if constexpr (P <= kColumns)                                                                   \
      edge ? group<KW, S, P, NV, true>(l, e, ow, iw) : group<KW, S, P, NV, false>(l, e, ow, iw);   \
    break
      MNNPY_GROUP(1);
      MNNPY_GROUP(2);
      MNNPY_GROUP(3);
      MNNPY_GROUP(4);
      MNNPY_GROUP(5);
      MNNPY_GROUP(6);
      MNNPY_GROUP(7);
#undef MNNPY_GROUP
      default: break;
    }
    ow += p;
  }
}

template <int NV>
void edge(const Line& l, const Epilogue& e, int64_t ow) {
  const int64_t iw = ow * l.step - l.before, d = l.dilation;
  const int64_t k0 = iw < 0 ? std::min(l.kernel_w, (-iw + d - 1) / d) : 0;
  const int64_t k1 = iw >= l.in_w ? k0 : std::max(k0, std::min(l.kernel_w, (l.in_w - 1 - iw) / d + 1));
  pixels<1, NV>(l, e, ow, iw, k0, k1);
}

template <int NV>
void any_columns(const Line& l, const Epilogue& e, int64_t begin, int64_t end) {
  if (l.lanes == W && l.dilation == 1 && l.step <= 2) {
    if (l.kernel_w == 3) return (l.step == 1 ? columns_of<3, 1, NV> : columns_of<3, 2, NV>)(l, e, begin, end);
    if (l.kernel_w == 5) return (l.step == 1 ? columns_of<5, 1, NV> : columns_of<5, 2, NV>)(l, e, begin, end);
  }
  // Columns whose whole kernel line is inside the input go several at a time.
  const int64_t reach = (l.kernel_w - 1) * l.dilation, room = l.in_w - 1 - reach + l.before;
  const int64_t inner0 = std::clamp<int64_t>((l.before + l.step - 1) / l.step, begin, end);
  const int64_t inner1 = room < 0 ? inner0 : std::clamp(room / l.step + 1, inner0, end);
  int64_t ow = begin;
  for (; ow < inner0; ++ow) edge<NV>(l, e, ow);
  for (; ow + kPixels <= inner1; ow += kPixels) pixels<kPixels, NV>(l, e, ow, ow * l.step - l.before, 0, l.kernel_w);
  for (; ow < inner1; ++ow) pixels<1, NV>(l, e, ow, ow * l.step - l.before, 0, l.kernel_w);
  for (; ow < end; ++ow) edge<NV>(l, e, ow);
}

}  // namespace

void depthwise_columns(int vectors, const DepthwiseLine& l, const Epilogue& e, int64_t begin, int64_t end) {
  vectors == 2 ? any_columns<2>(l, e, begin, end) : any_columns<1>(l, e, begin, end);
}

int64_t depthwise_width(int vectors, const ConvShape& s) {
  constexpr int64_t kBytes = 20 << 10;  // of L1; weights and the output take the rest
  const int64_t column = s.kernel[0] * s.kernel[1] * vectors * W * 4 * s.stride[2];
  const int64_t most = std::max<int64_t>(kBytes / column, 2 * kColumns);
  const int64_t parts = std::max<int64_t>(1, (s.out[2] + most - 1) / most);
  return std::max<int64_t>(1, (s.out[2] + parts - 1) / parts);
}

void pack_depthwise(const float* w, int64_t c, int64_t taps, int64_t pitch, float scale, float* to) {
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t k = 0; k < pitch; ++k) to[t * pitch + k] = k < c ? w[k * taps + t] * scale : 0.0f;
}

namespace {

class ConvDepthwise final : public Kernel {
 public:
  ConvDepthwise(const NodeDesc& node, const ConvShape& s, const Epilogue& e) : s_(s), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    pitch_ = (s.c + W - 1) / W * W;
    if (const auto* w = static_cast<const float*>(node.inputs[1].constant)) {
      packed_ = Floats(static_cast<size_t>(pitch_ * s.taps()));
      pack(w, packed_.data());
      packed_.share();
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
    // Chunks are blocks of channels by stretches of lines; columns are cut such that what the next line reads again
    // is still in L1.
    const int64_t block = kDepthwiseVectors * W, blocks = (s_.c + block - 1) / block, lines = s_.batch * s_.out[0] * s_.out[1];
    int64_t stretches = 1;
    if (ctx.pool->threads() > 1) {
      const auto wanted = std::min<int64_t>(ctx.pool->threads() * 4, static_cast<int64_t>(s_.flops() / 2e5));
      stretches = std::clamp<int64_t>((wanted + blocks - 1) / blocks, 1, std::max<int64_t>(1, lines));
    }
    // All work of a small problem in one chunk.
    const bool single = ctx.pool->threads() == 1 || s_.flops() < 4e5;
    const auto one = [&](int64_t chunk) {
      const int64_t part = chunk / blocks, c = chunk % blocks * block;
      const int64_t first = lines * part / stretches, last = lines * (part + 1) / stretches;
      const int64_t vectors = std::min<int64_t>(kDepthwiseVectors, (s_.c - c + W - 1) / W);
      const int lanes = static_cast<int>(std::min<int64_t>(W, s_.c - c - (vectors - 1) * W));
      const int64_t width = depthwise_width(static_cast<int>(vectors), s_);
      for (int64_t begin = 0; begin < s_.out[2]; begin += width)
        for (int64_t l = first; l < last; ++l)
          line(inputs, static_cast<float*>(outputs[0]), w, l, c, static_cast<int>(vectors), lanes, begin, std::min(s_.out[2], begin + width));
    };
    if (single) {
      stretches = 1;
      for (int64_t k = 0; k < blocks; ++k) one(k);
    } else {
      ctx.pool->parallel_for(blocks * stretches, [&](int64_t chunk, int) { one(chunk); });
    }
  }

 private:
  void pack(const float* w, float* to) const { pack_depthwise(w, s_.c, s_.taps(), pitch_, epilogue_.scale, to); }

  void line(const void* const* inputs, float* y, const float* w, int64_t index, int64_t c, int vectors, int lanes,
            int64_t begin, int64_t end) const {
    const auto* x = static_cast<const float*>(inputs[0]);
    const int64_t oh = index % s_.out[1], od = index / s_.out[1] % s_.out[0], n = index / (s_.out[1] * s_.out[0]);
    const float* rows[kDepthwiseLines];
    const float* weights[kDepthwiseLines];
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
    l.kernel_w = s_.kernel[2], l.weight_pitch = pitch_, l.step = s_.stride[2], l.dilation = s_.dilation[2];
    l.before = s_.before[2], l.in_w = s_.in[2];
    l.pixel = l.out_pixel = s_.c;
    l.bias = has_bias_ ? static_cast<const float*>(inputs[2]) + c : nullptr;
    l.out = y + index * s_.out[2] * s_.c + c;
    l.residual = has_residual_ ? static_cast<const float*>(inputs[3]) + index * s_.out[2] * s_.c + c : nullptr;
    l.lanes = lanes;
    depthwise_columns(vectors, l, epilogue_, begin, end);
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
  if (s.group != s.c || s.m != s.c || s.kernel[0] * s.kernel[1] > kDepthwiseLines) return decline(ctx, "not depthwise");
  return std::make_unique<ConvDepthwise>(node, s, e);
}

}  // namespace

MNNPY_REGISTER_AT("Convolution", make_depthwise, 20);

}  // namespace mnnpy::MNNPY_NS
