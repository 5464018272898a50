// Channels-last convolution on bf16 with f32 sums: pairs of AVX512_BF16 (precision="low"), tiles of AMX (one plane, or two:
// bf16x3).
#include <cstring>

#include "conv.h"
#include "gemm_amx.h"
#include "gemm_bf16.h"

namespace mnnpy::MNNPY_NS {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// How each unit wants pixels that several taps share.
#if MNNPY_ISA == 2
struct PairPixels {
  using Product = PairProduct;
  static constexpr bool kBorder = false;  // padding points at zeros
  static bool merged(const ConvShape& s) { return s.c < 12; }
  static int64_t pitch(int64_t c) { return c; }
  Product product(int64_t rows, int64_t n, int64_t taps, int64_t depth, int threads, int64_t) const {
    return {rows, n, taps, depth, threads};
  }
  int planes() const { return 1; }
  void convert(const float* in, uint16_t* out, int64_t count, int64_t) const { to_bf16(in, out, count); }
  static Product::Layout layout(int64_t, bool) { return {}; }
};
#endif

struct AmxPixels {
  using Product = AmxProduct;
  static constexpr bool kBorder = true;  // rows of a tile are equally far from each other at the edges as well
  static constexpr int64_t kUnit = AmxProduct::kUnit;
  int count;  // of planes
  AmxUnit unit;
  static bool merged(const ConvShape& s) { return round_up(s.kernel[2] * s.c, kUnit) < s.kernel[2] * round_up(s.c, kUnit); }
  static int64_t pitch(int64_t c) {
    const int64_t whole = round_up(c, kUnit);
    return whole % 512 == 0 ? whole + kUnit : whole;  // pixels do not share cache sets
  }
  Product product(int64_t rows, int64_t n, int64_t taps, int64_t depth, int threads, int64_t line) const {
    return {rows, n, taps, depth, count, unit, threads, line};
  }
  int planes() const { return count; }
  void convert(const float* in, uint16_t* out, int64_t n, int64_t plane) const { split_bf16(in, out, n, count, plane); }
  static Product::Layout layout(int64_t plane, bool filled) { return {plane, filled}; }
};

// One tap: rows are rounded block by block. Several taps use each pixel several times: the input is rounded as a whole.
template <class Pixels>
class ConvBf16 final : public Kernel {
 public:
  ConvBf16(const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e, Pixels pixels)
      : s_(s), gemm_(s), pixels_(pixels), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    plain_ = s.taps() == 1;
    for (int d = 0; d < 3; ++d) plain_ = plain_ && s.before[d] == 0 && s.after[d] == 0 && s.stride[d] == 1;
    // Few channels: a line of the kernel becomes one tap of kernel_w · C contiguous elements of a padded copy.
    merged_ = s.dilation[2] == 1 && s.kernel[2] > 1 && Pixels::merged(s) && !conv_cropped(s);
    border_ = merged_ || (Pixels::kBorder && s.taps() > 1);
    pitch_ = merged_ ? s.c : Pixels::pitch(s.c);
    for (int d = 0; d < 3; ++d) {
      const int64_t reach = (s.out[d] - 1) * s.stride[d] + (s.kernel[d] - 1) * s.dilation[d] + 1;
      padded_[d] = border_ ? std::max(s.in[d] + s.before[d] + s.after[d], reach) : s.in[d];
      before_[d] = border_ ? s.before[d] : 0;
    }
    int64_t taps = s.taps(), depth = s.c;
    if (merged_) {
      taps /= s.kernel[2];
      depth *= s.kernel[2];
      gemm_.kernel[2] = 1;
    }
    plane_ = s.batch * padded_[0] * padded_[1] * padded_[2] * pitch_;
    const bool as_they_lie = s.taps() > 1 && (!merged_ || depth % AmxProduct::kUnit == 0);
    product_ = pixels.product(s.batch * s.out_pixels(), s.m, taps, depth, ctx.threads, as_they_lie ? s.out[2] : 0);
    zeros_ = Floats(static_cast<size_t>(depth) + W);
    std::memset(zeros_.data(), 0, zeros_.bytes());
    const auto* w = static_cast<const float*>(node.inputs[1].constant);
    if (w == nullptr) return;  // only asked whether it fits
    packed_ = Floats(product_.packed_words());
    std::vector<float> turned(s.taps() > 1 ? static_cast<size_t>(node.inputs[1].count()) : 0);
    if (s.taps() > 1) {
      taps_outside(w, s, turned.data());
      w = turned.data();
    }
    product_.pack(BView{w, depth, 1, taps * depth}, reinterpret_cast<uint32_t*>(packed_.data()), 0, product_.panels());
    packed_.share();
  }

  size_t packed_bytes() const override { return packed_.bytes() + zeros_.bytes(); }
  bool consumed(int input) const override { return input == 1; }
  bool in_place(int input) const override { return input == 3 && !product_.split(); }
  std::string algorithm() const override {
    return (s_.taps() == 1 ? "conv-1x1-" : merged_ ? "conv-lines-" : "conv-direct-") + product_.name();
  }
  size_t scratch_bytes(int threads) const override {
    const size_t staged = product_.scratch_bytes() * static_cast<size_t>(threads);
    return s_.taps() == 1 ? staged : staged + copy_bytes();
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const float*>(inputs[0]);
    const auto* packed = reinterpret_cast<const uint32_t*>(packed_.data());
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    e.residual = has_residual_ ? static_cast<const float*>(inputs[3]) : nullptr;
    auto* y = static_cast<float*>(outputs[0]);
    if (plain_) {
      product_.template run<float>(packed, y, s_.pitch, e, ctx.pool, ctx.scratch, {}, MatrixRows{x, s_.c});
    } else if (s_.taps() == 1) {
      const PixelRows<float> fill{&gemm_, x, zeros_.data(), {s_.in[0], s_.in[1], s_.in[2]}, s_.c, {s_.before[0], s_.before[1], s_.before[2]}};
      product_.template run<float>(packed, y, s_.pitch, e, ctx.pool, ctx.scratch, {}, fill);
    } else {
      auto* copy = reinterpret_cast<uint16_t*>(ctx.scratch);
      convert_input(ctx, x, copy);
      const auto edge = [&](int d) { return border_ ? int64_t{0} : s_.before[d]; };
      const PixelRows<uint16_t> fill{&gemm_, copy, reinterpret_cast<const uint16_t*>(zeros_.data()),
                                     {padded_[0], padded_[1], padded_[2]}, pitch_, {edge(0), edge(1), edge(2)}};
      product_.template run<uint16_t>(packed, y, s_.pitch, e, ctx.pool, ctx.scratch + copy_bytes(), Pixels::layout(plane_, !merged_), fill);
    }
  }

 private:
  // The last pair of an odd row may reach one element further.
  size_t copy_bytes() const { return round_up_64(static_cast<size_t>(plane_ * pixels_.planes() + 2) * sizeof(uint16_t)); }

  // The input as bf16, with the padding around it where a border is wanted (negative padding cuts).
  void convert_input(const RunContext& ctx, const float* x, uint16_t* to) const {
    const int64_t lines = s_.batch * padded_[0] * padded_[1], width = padded_[2] * pitch_;
    const int64_t step = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, width));
    const int64_t left = std::max<int64_t>(0, before_[2]), first = left - before_[2];  // in the copy, in the input
    const int64_t middle = std::max<int64_t>(0, std::min(s_.in[2] - first, padded_[2] - left));
    ctx.pool->parallel_for((lines + step - 1) / step, [&](int64_t chunk, int) {
      for (int64_t l = chunk * step; l < std::min(lines, (chunk + 1) * step); ++l) {
        const int64_t h = l % padded_[1] - before_[1], d = l / padded_[1] % padded_[0] - before_[0];
        const int64_t n = l / (padded_[1] * padded_[0]);
        uint16_t* line = to + l * width;
        const bool inside = h >= 0 && h < s_.in[1] && d >= 0 && d < s_.in[0] && middle > 0;
        const int64_t from = inside ? left * pitch_ : width, end = inside ? from + middle * pitch_ : width;
        fill_zeros(line, 0, from);
        if (inside) convert_pixels(x + (((n * s_.in[0] + d) * s_.in[1] + h) * s_.in[2] + first) * s_.c, line + from, middle);
        fill_zeros(line, end, width);
      }
    });
  }

  void convert_pixels(const float* x, uint16_t* to, int64_t count) const {
    if (pitch_ == s_.c) return pixels_.convert(x, to, count * s_.c, plane_);
    for (int64_t k = 0; k < count; ++k, x += s_.c, to += pitch_) {
      pixels_.convert(x, to, s_.c, plane_);
      fill_zeros(to, s_.c, pitch_);
    }
  }

  void fill_zeros(uint16_t* line, int64_t from, int64_t end) const {
    for (int p = 0; p < pixels_.planes(); ++p)
      std::memset(line + p * plane_ + from, 0, static_cast<size_t>(end - from) * sizeof(uint16_t));
  }

  ConvShape s_, gemm_;
  Pixels pixels_;
  Epilogue epilogue_;
  typename Pixels::Product product_;
  Floats packed_, zeros_;
  int64_t padded_[3], before_[3], pitch_, plane_;
  bool plain_, merged_, border_, has_bias_, has_residual_;
};

bool common_shape(const NodeDesc& node, const BuildContext& ctx, ConvShape& s, Epilogue& e) {
  const auto no = [&](const char* why) { return decline(ctx, why), false; };
  const char* why = "";
  if (!conv_shape(node, true, s, why, true) || !conv_operands(node, s, e, why)) return no(why);
  if (s.group != 1) return no("grouped convolution has no bf16 kernel");
  if (!constant_weights(node)) return no("bf16 convolution needs constant weights");
  if (s.m < 8 || s.c * s.taps() < 8) return no("too small to gain from bf16");
  return true;
}

std::unique_ptr<Kernel> make_conv_amx(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  ConvShape s;
  Epilogue e;
  if (amx_planes(node, ctx, true) == 0 || !common_shape(node, ctx, s, e)) return nullptr;
  const int64_t merged = AmxPixels::merged(s) ? s.kernel[2] : 1;
  const int planes = amx_planes(node, ctx, amx_pays(s.batch * s.out_pixels(), s.m, s.taps() / merged, s.c * merged));
  if (planes == 0) return nullptr;
  return std::make_unique<ConvBf16<AmxPixels>>(node, ctx, s, e, AmxPixels{planes, amx_unit()});
}

#if MNNPY_ISA == 2
std::unique_ptr<Kernel> make_conv_pairs(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  ConvShape s;
  Epilogue e;
  if (!wants_bf16(node, ctx) || !common_shape(node, ctx, s, e)) return nullptr;
  return std::make_unique<ConvBf16<PairPixels>>(node, ctx, s, e, PairPixels{});
}
#endif

}  // namespace

// Above Winograd: where tiles pay they are faster.
MNNPY_REGISTER_AT("Convolution", make_conv_amx, 35);
#if MNNPY_ISA == 2
// Below Winograd, which declines where bf16 is faster.
MNNPY_REGISTER_AT("Convolution", make_conv_pairs, 25);
#endif

}  // namespace mnnpy::MNNPY_NS
