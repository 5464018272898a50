// Channels-last convolution on bf16 pairs with f32 sums, for precision="low".
#include <cstring>

#include "conv.h"
#include "gemm_bf16.h"

#if MNNPY_ISA == 2

namespace mnnpy::MNNPY_NS {
namespace {

// One tap: rows are rounded block by block. Several taps use each pixel several times: the input is rounded as a whole.
class ConvBf16 final : public Kernel {
 public:
  ConvBf16(const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e) : s_(s), gemm_(s), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    plain_ = s.taps() == 1;
    for (int d = 0; d < 3; ++d) plain_ = plain_ && s.before[d] == 0 && s.after[d] == 0 && s.stride[d] == 1;
    // Few channels: a line of the kernel becomes one tap of kernel_w · C contiguous elements of a padded copy.
    merged_ = s.dilation[2] == 1 && s.kernel[2] > 1 && s.c < 12 && !conv_cropped(s);
    for (int d = 0; d < 3; ++d) padded_[d] = s.in[d];
    taps_ = s.taps();
    depth_ = s.c;
    if (merged_) {
      for (int d = 0; d < 3; ++d)
        padded_[d] = std::max(s.in[d] + s.before[d] + s.after[d], (s.out[d] - 1) * s.stride[d] + (s.kernel[d] - 1) * s.dilation[d] + 1);
      taps_ /= s.kernel[2];
      depth_ *= s.kernel[2];
      gemm_.kernel[2] = 1;
    }
    panels_ = Panels(s.m);
    blocks_ = plan_blocks(s.batch * s.out_pixels(), taps_, pairs_of(depth_), panels_, ctx.threads);
    zeros_ = Floats(static_cast<size_t>(depth_) + W);
    std::memset(zeros_.data(), 0, zeros_.bytes());
    const auto* w = static_cast<const float*>(node.inputs[1].constant);
    if (w == nullptr) return;  // only asked whether it fits
    packed_ = Floats(static_cast<size_t>(panels_.width * taps_ * pairs_of(depth_)));
    std::vector<float> turned(s.taps() > 1 ? static_cast<size_t>(node.inputs[1].count()) : 0);
    if (s.taps() > 1) {
      taps_outside(w, s, turned.data());
      w = turned.data();
    }
    pack_pairs(panels_, taps_, depth_, BView{w, depth_, 1, taps_ * depth_}, reinterpret_cast<uint32_t*>(packed_.data()), 0,
               panels_.list.size());
  }

  size_t packed_bytes() const override { return packed_.bytes() + zeros_.bytes(); }
  bool consumed(int input) const override { return input == 1; }
  bool in_place(int input) const override { return input == 3 && !blocks_.split(); }
  std::string algorithm() const override {
    return s_.taps() == 1 ? "conv-1x1-bf16" : merged_ ? "conv-lines-bf16" : "conv-direct-bf16";
  }
  size_t scratch_bytes(int threads) const override {
    if (staged()) return staged_bytes(blocks_) * static_cast<size_t>(threads);
    // The last pair of an odd row may reach one element further.
    return round_up_64(static_cast<size_t>(s_.batch * padded_[0] * padded_[1] * padded_[2] * s_.c + 2) * sizeof(uint16_t));
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const float*>(inputs[0]);
    const auto* packed = reinterpret_cast<const uint32_t*>(packed_.data());
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    e.residual = has_residual_ ? static_cast<const float*>(inputs[3]) : nullptr;
    auto* y = static_cast<float*>(outputs[0]);
    const int64_t rows = s_.batch * s_.out_pixels();
    if (plain_) {
      run_pair_blocks<float>(blocks_, panels_, packed, rows, 1, depth_, y, s_.m, e, ctx.pool, ctx.scratch, MatrixRows{x, s_.c});
    } else if (staged()) {
      const PixelRows<float> fill{&gemm_, x, zeros_.data(), {s_.in[0], s_.in[1], s_.in[2]}, s_.c, {s_.before[0], s_.before[1], s_.before[2]}};
      run_pair_blocks<float>(blocks_, panels_, packed, rows, 1, depth_, y, s_.m, e, ctx.pool, ctx.scratch, fill);
    } else {
      auto* copy = reinterpret_cast<uint16_t*>(ctx.scratch);
      round_input(ctx, x, copy);
      const auto edge = [&](int d) { return merged_ ? int64_t{0} : s_.before[d]; };
      const PixelRows<uint16_t> fill{&gemm_, copy, reinterpret_cast<const uint16_t*>(zeros_.data()),
                                     {padded_[0], padded_[1], padded_[2]}, s_.c, {edge(0), edge(1), edge(2)}};
      run_pair_blocks<uint16_t>(blocks_, panels_, packed, rows, taps_, depth_, y, s_.m, e, ctx.pool, nullptr, fill);
    }
  }

 private:
  bool staged() const { return s_.taps() == 1; }

  // The input as bf16, with the padding around it where lines are merged.
  void round_input(const RunContext& ctx, const float* x, uint16_t* to) const {
    const int64_t lines = s_.batch * padded_[0] * padded_[1], width = padded_[2] * s_.c, middle = s_.in[2] * s_.c;
    const int64_t left = merged_ ? s_.before[2] * s_.c : 0;
    const int64_t step = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, width));
    ctx.pool->parallel_for((lines + step - 1) / step, [&](int64_t chunk, int) {
      for (int64_t l = chunk * step; l < std::min(lines, (chunk + 1) * step); ++l) {
        const int64_t h = l % padded_[1] - (merged_ ? s_.before[1] : 0);
        const int64_t d = l / padded_[1] % padded_[0] - (merged_ ? s_.before[0] : 0), n = l / (padded_[1] * padded_[0]);
        uint16_t* line = to + l * width;
        const bool inside = h >= 0 && h < s_.in[1] && d >= 0 && d < s_.in[0];
        const int64_t from = inside ? left : width, end = inside ? left + middle : width;
        std::memset(line, 0, static_cast<size_t>(from) * sizeof(uint16_t));
        if (inside) to_bf16(x + ((n * s_.in[0] + d) * s_.in[1] + h) * middle, line + left, middle);
        std::memset(line + end, 0, static_cast<size_t>(width - end) * sizeof(uint16_t));
      }
    });
  }

  ConvShape s_, gemm_;
  Epilogue epilogue_;
  Panels panels_;
  Blocking blocks_;
  Floats packed_, zeros_;
  int64_t taps_, depth_, padded_[3];
  bool plain_, merged_, has_bias_, has_residual_;
};

std::unique_ptr<Kernel> make_conv_bf16(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  if (!wants_bf16(node, ctx)) return nullptr;
  ConvShape s;
  Epilogue e;
  const char* why = "";
  if (!conv_shape(node, true, s, why) || !conv_operands(node, s, e, why)) return decline(ctx, why);
  if (s.group != 1) return decline(ctx, "grouped convolution has no bf16 kernel");
  if (!constant_weights(node)) return decline(ctx, "bf16 convolution needs constant weights");
  if (s.m < 8 || s.c * s.taps() < 8) return decline(ctx, "too small to gain from bf16");
  return std::make_unique<ConvBf16>(node, ctx, s, e);
}

}  // namespace

// Below Winograd, which declines where bf16 is faster.
MNNPY_REGISTER_AT("Convolution", make_conv_bf16, 25);

}  // namespace mnnpy::MNNPY_NS

#endif
