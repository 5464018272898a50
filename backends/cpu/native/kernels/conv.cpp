// Convolution for f32, channels last: products straight out of the activation, one row pointer per pixel and tap.
#include "conv.h"

#include <cstring>

#include "strassen.h"

namespace mnnpy::MNNPY_NS {

bool conv_shape(const NodeDesc& node, bool channels_last, ConvShape& s, const char*& why, bool pitched) {
  if (node.inputs.size() < 2 || node.outputs.size() != 1) return why = "takes two to four operands", false;
  const Dims &x = node.inputs[0].shape, &w = node.inputs[1].shape, &y = node.outputs[0].shape;
  if (x.size() < 3 || x.size() > 5 || w.size() != x.size() || y.size() != x.size())
    return why = "needs one to three spatial dims", false;
  const size_t n = x.size() - 2;
  const auto strides = node.ints("strides"), pads = node.ints("pads"), dilations = node.ints("dilations");
  if (strides.size() != n || pads.size() != 2 * n || dilations.size() != n) return why = "strides, pads or dilations do not fit", false;
  const size_t space = channels_last ? 1 : 2, channel = channels_last ? x.size() - 1 : 1;
  s.batch = x[0], s.c = x[channel], s.m = w[0], s.group = node.i("group", 1);
  if (s.c < 1 || s.group < 1 || s.c != w[1] * s.group || s.m % s.group != 0) return why = "channels do not fit the groups", false;
  for (size_t k = 0; k < 3; ++k) {
    const bool real = k + n >= 3;
    const size_t q = real ? k + n - 3 : 0;
    s.in[k] = real ? x[space + q] : 1;
    s.out[k] = real ? y[space + q] : 1;
    s.kernel[k] = real ? w[2 + q] : 1;
    s.stride[k] = real ? strides[q] : 1;
    s.dilation[k] = real ? dilations[q] : 1;
    s.before[k] = real ? pads[q] : 0;
    s.after[k] = real ? pads[n + q] : 0;
    if (s.stride[k] < 1 || s.dilation[k] < 1) return why = "strides and dilations are positive", false;
    const int64_t reach = s.in[k] + s.before[k] + s.after[k] - ((s.kernel[k] - 1) * s.dilation[k] + 1);
    if (s.out[k] != std::max<int64_t>(0, reach >= 0 ? reach / s.stride[k] + 1 : 0)) return why = "the output has another size", false;
  }
  if (y[0] != s.batch || y[channel] != s.m) return why = "the output has another size", false;
  s.pitch = node.i("pitch", s.m);
  const bool residual = node.inputs.size() > 3 && node.inputs[3].present;
  if (s.pitch != s.m && (!pitched || residual || s.pitch < s.m)) return why = "writes dense pixels only", false;
  return true;
}

bool conv_operands(const NodeDesc& node, const ConvShape& s, Epilogue& e, const char*& why) {
  for (const auto& t : node.inputs)
    if (t.present && t.dtype != DType::F32) return why = "channels-last convolution is f32 only", false;
  const auto epilogue = epilogue_from(node);
  if (!epilogue) return why = "unknown act", false;
  e = *epilogue;
  if (node.inputs.size() > 2 && node.inputs[2].present && node.inputs[2].count() != s.m)
    return why = "the bias is not a vector over output channels", false;
  if (node.inputs.size() > 3 && node.inputs[3].present && node.inputs[3].count() != node.outputs[0].count())
    return why = "the residual has another size", false;
  return true;
}

bool conv_cropped(const ConvShape& s) {
  for (int d = 0; d < 3; ++d)
    if (s.before[d] < 0 || s.after[d] < 0) return true;
  return false;
}

void taps_outside(const float* w, const ConvShape& s, float* out) {
  const int64_t taps = s.taps(), cg = s.cg();
  for (int64_t m = 0; m < s.m; ++m) transpose(w + m * cg * taps, taps, out + m * cg * taps, cg, cg, taps);
}

void activate_block(const Epilogue& e, VF* v, int count) {
  const VF a = splat(e.act_alpha), b = splat(e.act_beta);
  switch (e.act) {
#define MNNPY_ACT(A)                                                                        \
  case Act::A:                                                                              \
    for (int k = 0; k < count; ++k) v[k] = activate(Act::A, v[k], a, b);                    \
    return
    MNNPY_ACT(SIGMOID);
    MNNPY_ACT(TANH);
    MNNPY_ACT(GELU);
    MNNPY_ACT(GELU_TANH);
    MNNPY_ACT(SILU);
    MNNPY_ACT(HARD_SWISH);
    MNNPY_ACT(LEAKY_RELU);
    MNNPY_ACT(HARD_SIGMOID);
#undef MNNPY_ACT
    default: return;
  }
}

namespace {

class ConvDirect final : public Kernel {
 public:
  ConvDirect(const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e)
      : s_(s), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    bool unpadded = true, unit = true;
    for (int d = 0; d < 3; ++d) {
      unpadded = unpadded && s.before[d] == 0 && s.after[d] == 0;
      unit = unit && s.stride[d] == 1 && s.kernel[d] == 1;
    }
    plain_ = unit && unpadded;
    // Few channels: a line of the kernel becomes one tap of kernel_w · C contiguous floats of a padded copy.
    merged_ = s.group == 1 && s.dilation[2] == 1 && s.kernel[2] > 1 && s.c < 12 && !conv_cropped(s);
    gemm_ = s;
    for (int d = 0; d < 3; ++d) padded_[d] = s.in[d];
    taps_ = s.taps();
    depth_ = s.cg();
    if (merged_) {
      for (int d = 0; d < 3; ++d)
        padded_[d] = std::max(s.in[d] + s.before[d] + s.after[d], (s.out[d] - 1) * s.stride[d] + (s.kernel[d] - 1) * s.dilation[d] + 1);
      taps_ /= s.kernel[2];
      depth_ *= s.kernel[2];
      gemm_.kernel[2] = 1;
    }
    const int64_t rows = s.batch * s.out_pixels();
    if (plain_ && s.group == 1)
      strassen_ = Strassen::plan(rows, s.m, s.c, ctx.threads, node.s("algorithm", "auto"), node.i("levels", 0));
    panels_ = strassen() ? strassen_.panels() : Panels(s.mg());
    group_floats_ = static_cast<size_t>(panels_.width * taps_ * depth_);
    blocks_ = plan_blocks(rows, taps_, depth_, panels_, std::max<int>(1, ctx.threads / static_cast<int>(std::min<int64_t>(s.group, 1024))));
    zeros_ = Floats(static_cast<size_t>(depth_) + W);
    std::memset(zeros_.data(), 0, zeros_.bytes());
    if (const auto* w = static_cast<const float*>(node.inputs[1].constant)) {
      packed_ = Floats(group_floats_ * static_cast<size_t>(s.group));
      std::vector<float> turned(s.taps() > 1 ? static_cast<size_t>(node.inputs[1].count()) : 0);
      pack(w, turned.data(), packed_.data());
      packed_.share();
      constant_ = true;
    }
  }

  size_t packed_bytes() const override { return packed_.bytes() + zeros_.bytes(); }
  bool consumed(int input) const override { return input == 1 && constant_; }
  bool in_place(int input) const override { return input == 3 && !(strassen() ? strassen_.split() : blocks_.split()); }
  bool strassen() const { return strassen_.levels() > 0; }
  std::string algorithm() const override {
    if (strassen()) return strassen_.levels() == 1 ? "conv-1x1-strassen" : "conv-1x1-strassen-2";
    if (plain_) return s_.group == 1 ? "conv-1x1" : "conv-1x1-grouped";
    return merged_ ? "conv-lines" : s_.group == 1 ? "conv-direct" : "conv-direct-grouped";
  }

  size_t scratch_bytes(int threads) const override {
    return (weight_floats() + turned_floats() + copy_floats() + strassen_.scratch_floats(threads)) * sizeof(float);
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const float*>(inputs[0]);
    auto* scratch = reinterpret_cast<float*>(ctx.scratch);
    const float* packed = packed_.data();
    if (!constant_) {
      pack(static_cast<const float*>(inputs[1]), scratch + weight_floats(), scratch);
      packed = scratch;
    }
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    e.residual = has_residual_ ? static_cast<const float*>(inputs[3]) : nullptr;
    auto* y = static_cast<float*>(outputs[0]);
    const int64_t rows = s_.batch * s_.out_pixels();
    if (strassen()) {
      strassen_.run(x, s_.c, packed, y, s_.pitch, e, scratch + weight_floats(), ctx.pool);
      return;
    }
    if (plain_ && s_.group == 1) {
      run_blocks(blocks_, panels_, packed, rows, 1, depth_, y, s_.pitch, e, ctx.pool, MatrixRows{x, s_.c});
      return;
    }
    int64_t before[3] = {s_.before[0], s_.before[1], s_.before[2]};
    if (merged_) {
      float* copy = scratch + weight_floats() + turned_floats();
      pad(ctx, x, copy);
      x = copy;
      before[0] = before[1] = before[2] = 0;
    }
    if (rows == 0 || s_.mg() == 0) return;
    const int64_t chunks = blocks_.row_blocks * blocks_.panel_chunks;
    ctx.pool->parallel_for(chunks * s_.group, [&](int64_t q, int) {
      const int64_t g = q / chunks, chunk = q % chunks;
      const PixelRows<float> fill{&gemm_, x + g * s_.cg(), zeros_.data(), {padded_[0], padded_[1], padded_[2]}, s_.c, {before[0], before[1], before[2]}};
      Epilogue ge = e;
      if (ge.bias != nullptr) ge.bias += g * s_.mg();
      if (ge.residual != nullptr) ge.residual += g * s_.mg();
      run_chunk(blocks_, panels_, packed + static_cast<size_t>(g) * group_floats_, rows, taps_, depth_, y + g * s_.mg(), s_.pitch,
                ge, chunk / blocks_.panel_chunks, chunk % blocks_.panel_chunks, fill);
    });
  }

 private:
  size_t weight_floats() const { return constant_ ? 0 : round_up_64(group_floats_ * static_cast<size_t>(s_.group)); }
  size_t turned_floats() const {
    return constant_ || s_.taps() == 1 ? 0 : round_up_64(static_cast<size_t>(s_.m * s_.cg() * s_.taps()));
  }
  size_t copy_floats() const {
    return merged_ ? round_up_64(static_cast<size_t>(s_.batch * padded_[0] * padded_[1] * padded_[2] * s_.c)) : 0;
  }

  void pack(const float* w, float* turned, float* to) const {
    if (s_.taps() > 1) {
      taps_outside(w, s_, turned);
      w = turned;
    }
    const int64_t each = taps_ * depth_;
    for (int64_t g = 0; g < s_.group; ++g)
      pack_b(panels_, taps_, depth_, BView{w + g * s_.mg() * each, depth_, 1, each}, to + static_cast<size_t>(g) * group_floats_, 0,
             panels_.list.size());
  }

  void pad(const RunContext& ctx, const float* x, float* to) const {
    const int64_t lines = s_.batch * padded_[0] * padded_[1], width = padded_[2] * s_.c;
    const int64_t step = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
    ctx.pool->parallel_for((lines + step - 1) / step, [&](int64_t chunk, int) {
      for (int64_t l = chunk * step; l < std::min(lines, (chunk + 1) * step); ++l) {
        const int64_t h = l % padded_[1] - s_.before[1], d = l / padded_[1] % padded_[0] - s_.before[0], n = l / (padded_[1] * padded_[0]);
        float* line = to + l * width;
        if (h < 0 || h >= s_.in[1] || d < 0 || d >= s_.in[0]) {
          std::memset(line, 0, static_cast<size_t>(width) * sizeof(float));
          continue;
        }
        const int64_t left = s_.before[2] * s_.c, middle = s_.in[2] * s_.c;
        std::memset(line, 0, static_cast<size_t>(left) * sizeof(float));
        std::memcpy(line + left, x + ((n * s_.in[0] + d) * s_.in[1] + h) * middle, static_cast<size_t>(middle) * sizeof(float));
        std::memset(line + left + middle, 0, static_cast<size_t>(width - left - middle) * sizeof(float));
      }
    });
  }

  ConvShape s_, gemm_;
  Epilogue epilogue_;
  Strassen strassen_;
  Panels panels_;
  Blocking blocks_;
  Floats packed_, zeros_;
  size_t group_floats_ = 0;
  int64_t taps_, depth_, padded_[3];
  bool plain_, merged_, constant_ = false, has_bias_, has_residual_;
};

std::unique_ptr<Kernel> make_conv(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  const std::string algorithm = node.s("algorithm", "auto");
  if (algorithm != "auto" && algorithm != "direct" && algorithm != "strassen") return decline(ctx, "another algorithm was asked for");
  ConvShape s;
  Epilogue e;
  const char* why = "";
  if (!conv_shape(node, true, s, why, true) || !conv_operands(node, s, e, why)) return decline(ctx, why);
  auto kernel = std::make_unique<ConvDirect>(node, ctx, s, e);
  if (algorithm == "strassen" && !kernel->strassen())
    return decline(ctx, "Strassen's algorithm takes 1x1 kernels of stride 1 without groups and padding");
  return kernel;
}

}  // namespace

MNNPY_REGISTER_AT("Convolution", make_conv, 10);

}  // namespace mnnpy::MNNPY_NS
