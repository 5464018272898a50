// 3x3 stride-1 convolution for f32, channels last, by Winograd's F(2x2,3x3) and F(4x4,3x3) (Lavin and Gray,
// "Fast algorithms for convolutional neural networks", 2016).
//
// A block of output tiles is transformed so that both the transformed input and the products of one panel of output
// channels stay in L2; the transformed weights stream past. Per transform point that is one small matrix product.
#include <cmath>

#include "conv.h"
#include "gemm_bf16.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <int O>
struct Transform;

template <>
struct Transform<2> {
  static constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  MNNPY_INLINE static void input(const VF* d, VF* v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  MNNPY_INLINE static void output(const VF* m, VF* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct Transform<4> {
  static constexpr double kG[6][3] = {{1.0 / 4, 0, 0},           {-1.0 / 6, -1.0 / 6, -1.0 / 6}, {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                      {1.0 / 24, 1.0 / 12, 1.0 / 6}, {1.0 / 24, -1.0 / 12, 1.0 / 6}, {0, 0, 1}};
  MNNPY_INLINE static void input(const VF* d, VF* v) {
    const VF a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
    const VF c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
  MNNPY_INLINE static void output(const VF* m, VF* y) {
    const VF a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * e;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * e + m[5];
  }
};

template <int O>
class ConvWinograd final : public Kernel {
  static constexpr int T = O + 2;      // tile size of the input
  static constexpr int kPoints = T * T;

 public:
  ConvWinograd(const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e) : s_(s), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    tiles_h_ = (s.out[1] + O - 1) / O;
    tiles_w_ = (s.out[2] + O - 1) / O;
    tiles_ = s.batch * tiles_h_ * tiles_w_;
    panels_ = Panels(s.m);
    pitch_ = (s.c + W - 1) / W * W + W;  // the extra vector keeps rows off the same cache set
    constexpr int64_t kBudget = 480 << 10;
    const int64_t width = std::min<int64_t>(panels_.width, int64_t{kMaxNV} * W);
    int64_t block = std::clamp<int64_t>(kBudget / (kPoints * 4 * (pitch_ + width)), 16, 48);
    int64_t count = (tiles_ + block - 1) / block;
    by_block_ = ctx.threads == 1 || count >= 2 * ctx.threads;
    block_ = count == 0 ? 1 : (tiles_ + count - 1) / count;
    blocks_ = (tiles_ + block_ - 1) / block_;
    const auto* w = static_cast<const float*>(node.inputs[1].constant);
    if (w == nullptr) return;  // only asked whether it fits
    packed_ = Floats(static_cast<size_t>(panels_.width * kPoints * s.c));
    pack(w);
    packed_.share();
  }

  static double cost(const ConvShape& s) {  // seconds on a core of about 100 GFLOP/s and 20 GB/s behind L2
    const auto tiles = static_cast<double>(s.batch * ((s.out[1] + O - 1) / O) * ((s.out[2] + O - 1) / O));
    const double c = static_cast<double>(s.c), m = static_cast<double>(s.m);
    const double product = 2 * kPoints * tiles * c * m / 100e9;
    const double transforms = kPoints * tiles * (c + m) * 4 / 40e9;
    const double weights = kPoints * c * m * 4;
    const double passes = std::ceil(tiles / 24);
    const double stream = weights <= (512 << 10) ? 0.0 : weights * passes / 20e9;
    return std::max(product, stream) + 0.3 * std::min(product, stream) + transforms;
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return input == 1; }
  bool in_place(int input) const override { return input == 3; }
  std::string algorithm() const override { return O == 4 ? "conv-winograd4" : "conv-winograd2"; }

  size_t scratch_bytes(int threads) const override {
    const auto slots = static_cast<size_t>(threads);
    return ((by_block_ ? slots : 1) * input_floats() + slots * product_floats()) * sizeof(float);
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const float*>(inputs[0]);
    auto* y = static_cast<float*>(outputs[0]);
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    e.residual = has_residual_ ? static_cast<const float*>(inputs[3]) : nullptr;
    auto* scratch = reinterpret_cast<float*>(ctx.scratch);
    if (by_block_) {
      ctx.pool->parallel_for(blocks_, [&](int64_t q, int slot) {
        float* v = scratch + static_cast<size_t>(slot) * (input_floats() + product_floats());
        const int64_t first = q * block_, count = std::min(block_, tiles_ - first);
        for (int64_t t = 0; t < count; ++t) transform_input(x, first + t, count, v + t * pitch_);
        for (size_t p = 0; p < panels_.list.size(); ++p) multiply(p, first, count, v, v + input_floats(), e, y);
      });
      return;
    }
    float* v = scratch + static_cast<size_t>(ctx.pool->threads()) * product_floats();
    for (int64_t q = 0; q < blocks_; ++q) {
      const int64_t first = q * block_, count = std::min(block_, tiles_ - first);
      ctx.pool->parallel_for((count + 3) / 4, [&](int64_t k, int) {
        for (int64_t t = k * 4; t < std::min(count, k * 4 + 4); ++t) transform_input(x, first + t, count, v + t * pitch_);
      });
      ctx.pool->parallel_for(static_cast<int64_t>(panels_.list.size()), [&](int64_t p, int slot) {
        multiply(static_cast<size_t>(p), first, count, v, scratch + static_cast<size_t>(slot) * product_floats(), e, y);
      });
    }
  }

 private:
  size_t input_floats() const { return round_up_64(static_cast<size_t>(kPoints * block_ * pitch_)); }
  size_t product_floats() const { return round_up_64(static_cast<size_t>(kPoints * (block_ * kMaxNV * W + W))); }

  void pack(const float* w) {
    // One point at a time, so that the transformed copy is no larger than a third of the weights.
    std::vector<float> u(static_cast<size_t>(s_.m * s_.c));
    std::vector<Panels::Panel> list = panels_.list;
    for (int point = 0; point < kPoints; ++point) {
      const double* gi = Transform<O>::kG[point / T];
      const double* gj = Transform<O>::kG[point % T];
      double weight[9];
      for (int k = 0; k < 9; ++k) weight[k] = gi[k / 3] * gj[k % 3];
      for (int64_t k = 0; k < s_.m * s_.c; ++k) {
        double sum = 0;
        for (int q = 0; q < 9; ++q) sum += weight[q] * static_cast<double>(w[k * 9 + q]);
        u[static_cast<size_t>(k)] = static_cast<float>(sum * static_cast<double>(epilogue_.scale));
      }
      for (const auto& panel : list) {
        const int64_t width = int64_t{panel.nv} * W;
        float* to = packed_.data() + panel.offset * kPoints * s_.c + point * s_.c * width;
        for (int64_t c = 0; c < s_.c; ++c)
          for (int64_t j = 0; j < width; ++j) to[c * width + j] = j < panel.cols ? u[static_cast<size_t>((panel.column + j) * s_.c + c)] : 0.0f;
      }
    }
  }

  // Bᵀ d B of one tile, all channels; v is [point][tile of the block][pitch].
  void transform_input(const float* x, int64_t tile, int64_t count, float* v) const {
    const int64_t tw = tile % tiles_w_, th = tile / tiles_w_ % tiles_h_, n = tile / (tiles_w_ * tiles_h_);
    const int64_t h0 = th * O - s_.before[1], w0 = tw * O - s_.before[2];
    const bool inside = h0 >= 0 && w0 >= 0 && h0 + T <= s_.in[1] && w0 + T <= s_.in[2];
    const float* base = x + ((n * s_.in[1] + h0) * s_.in[2] + w0) * s_.c;
    const int64_t line = s_.in[2] * s_.c, step = count * pitch_;
    for (int64_t c = 0; c < s_.c; c += W) {
      const int lanes = static_cast<int>(std::min<int64_t>(W, s_.c - c));
      VF half[T][T];
#pragma GCC unroll 6
      for (int j = 0; j < T; ++j) {
        VF d[T], out[T];
        if (inside && lanes == W) {
#pragma GCC unroll 6
          for (int i = 0; i < T; ++i) d[i] = load(base + i * line + j * s_.c + c);
        } else {
          for (int i = 0; i < T; ++i) {
            const bool valid = h0 + i >= 0 && h0 + i < s_.in[1] && w0 + j >= 0 && w0 + j < s_.in[2];
            d[i] = valid ? load_partial(base + i * line + j * s_.c + c, lanes) : VF{};
          }
        }
        Transform<O>::input(d, out);
#pragma GCC unroll 6
        for (int i = 0; i < T; ++i) half[i][j] = out[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < T; ++i) {
        VF out[T];
        Transform<O>::input(half[i], out);
#pragma GCC unroll 6
        for (int j = 0; j < T; ++j) store(v + (i * T + j) * step + c, out[j]);
      }
    }
  }

  void multiply(size_t p, int64_t first, int64_t count, const float* v, float* products, const Epilogue& e, float* y) const {
    const auto& panel = panels_.list[p];
    const int64_t width = int64_t{panel.nv} * W, step = count * width + W;
    const float* rows[64];
    const Epilogue raw;
    TileArgs t;
    t.tap_stride = 0, t.taps = 1, t.depth = s_.c, t.k_begin = 0, t.ldc = width;
    t.cols = static_cast<int>(width), t.epilogue = &raw, t.column = 0, t.offset = 0;
    const int most = kRows[panel.nv];
    const int64_t heights = (count + most - 1) / most, low = count / heights, extra = count % heights;
    for (int point = 0; point < kPoints; ++point) {
      const float* from = v + point * count * pitch_;
      for (int64_t r = 0; r < count; ++r) rows[r] = from + r * pitch_;
      t.b = packed_.data() + panel.offset * kPoints * s_.c + point * s_.c * width;
      int64_t r = 0;
      for (int64_t q = 0; q < heights; ++q) {
        const int64_t height = low + (q < extra ? 1 : 0);
        t.rows = rows + r;
        t.c = products + point * step + r * width;
        tile_fn(static_cast<int>(height), panel.nv)(t);
        r += height;
      }
    }
    for (int64_t r = 0; r < count; ++r) transform_output(panel, first + r, products + r * width, step, e, y);
  }

  // Aᵀ m A of one tile for the channels of a panel, then the epilogue.
  void transform_output(const Panels::Panel& panel, int64_t tile, const float* m, int64_t step, const Epilogue& e, float* y) const {
    const int64_t tw = tile % tiles_w_, th = tile / tiles_w_ % tiles_h_, n = tile / (tiles_w_ * tiles_h_);
    const int64_t h0 = th * O, w0 = tw * O;
    const int64_t hs = std::min<int64_t>(O, s_.out[1] - h0), ws = std::min<int64_t>(O, s_.out[2] - w0);
    const int64_t base = ((n * s_.out[1] + h0) * s_.out[2] + w0) * s_.m + panel.column;
    const VF low = splat(e.act == Act::RELU ? 0.0f : e.act_alpha), high = splat(e.act == Act::RELU ? __builtin_inff() : e.act_beta);
    const bool clip = e.act == Act::RELU || e.act == Act::CLIP;
    for (int64_t c = 0; c < panel.cols; c += W) {
      const int lanes = static_cast<int>(std::min<int64_t>(W, panel.cols - c));
      const VF bias = e.bias != nullptr ? load_partial(e.bias + panel.column + c, lanes) : VF{};
      VF half[O][T];
#pragma GCC unroll 6
      for (int j = 0; j < T; ++j) {
        VF d[T], out[O];
#pragma GCC unroll 6
        for (int i = 0; i < T; ++i) d[i] = load(m + (i * T + j) * step + c);
        Transform<O>::output(d, out);
#pragma GCC unroll 4
        for (int i = 0; i < O; ++i) half[i][j] = out[i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < O; ++i) {
        if (i >= hs) break;
        VF out[O];
        Transform<O>::output(half[i], out);
        const int64_t at = base + i * s_.out[2] * s_.m + c;
#pragma GCC unroll 4
        for (int j = 0; j < O; ++j) {
          out[j] += bias;
          if (e.residual != nullptr && j < ws) out[j] += load_partial(e.residual + at + j * s_.m, lanes);
          if (clip) out[j] = vclip(out[j], low, high);
        }
        if (!is_clip(e.act)) activate_block(e, out, O);
        for (int j = 0; j < ws; ++j) {
          if (lanes == W)
            store(y + at + j * s_.m, out[j]);
          else
            store_partial(y + at + j * s_.m, out[j], lanes);
        }
      }
    }
  }

  ConvShape s_;
  Epilogue epilogue_;
  Panels panels_;
  Floats packed_;
  int64_t tiles_h_, tiles_w_, tiles_, block_, blocks_, pitch_;
  bool by_block_, has_bias_, has_residual_;
};

std::unique_ptr<Kernel> make_winograd(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  const std::string algorithm = node.s("algorithm", "auto");
  const bool automatic = algorithm == "auto";
  if (!automatic && algorithm != "winograd2" && algorithm != "winograd4") return decline(ctx, "another algorithm was asked for");
  ConvShape s;
  Epilogue e;
  const char* why = "";
  if (!conv_shape(node, true, s, why) || !conv_operands(node, s, e, why)) return decline(ctx, why);
  bool fits = s.group == 1 && s.in[0] == 1 && s.kernel[0] == 1 && s.before[0] == 0 && s.after[0] == 0 && s.stride[0] == 1;
  for (int d = 1; d < 3; ++d) fits = fits && s.kernel[d] == 3 && s.stride[d] == 1 && s.dilation[d] == 1 && s.out[d] > 0;
  if (!fits || s.batch == 0) return decline(ctx, "Winograd takes 3x3 kernels of stride 1 without groups");
  if (!constant_weights(node)) return decline(ctx, "Winograd needs constant weights");
  if (!automatic) {
    if (algorithm == "winograd2") return std::make_unique<ConvWinograd<2>>(node, ctx, s, e);
    return std::make_unique<ConvWinograd<4>>(node, ctx, s, e);
  }
  const double direct = s.flops() / (wants_bf16(node, ctx) ? 225e9 : 105e9), four = ConvWinograd<4>::cost(s), two = ConvWinograd<2>::cost(s);
  if (s.c < 32 || s.m < 32 || std::min(two, four) > 0.95 * direct) return decline(ctx, "Winograd does not pay here");
  if (four <= two) return std::make_unique<ConvWinograd<4>>(node, ctx, s, e);
  return std::make_unique<ConvWinograd<2>>(node, ctx, s, e);
}

}  // namespace

MNNPY_REGISTER_AT("Convolution", make_winograd, 30);

}  // namespace mnnpy::MNNPY_NS
