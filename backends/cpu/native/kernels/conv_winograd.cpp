// 3x3 stride-1 convolution for f32, channels last, by Winograd's F(m x n, 3x3).
//
// A block of output tiles is transformed so that both the transformed input and the products of one panel of output
// channels stay in L2; the transformed weights stream past. Per transform point that is one small matrix product. For
// precision="low" F(2x2,3x3) also comes with products of bf16 pairs: its transforms add and halve only, so that the error is
// 1.6 times that of direct bf16 products (F(4x4,3x3) would have 20 times).
#include <cmath>
#include <cstring>

#include "conv.h"
#include "gemm_bf16.h"
#include "winograd.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <int OH, int OW, bool PAIRS = false>
class ConvWinograd final : public Kernel {
  static constexpr int TH = OH + 2, TW = OW + 2;  // tile of the input
  static constexpr int kPoints = TH * TW;
  static constexpr int64_t kChain = 128;  // longer sums are cut: rounding errors of a sum grow with it, and the output transform amplifies them
  static constexpr int64_t kResident = 512 << 10;  // bytes of weights that stay in L2
  static constexpr int64_t kSlice = 64;   // channels transformed by one chunk where a block is shared

 public:
  ConvWinograd(const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e) : s_(s), epilogue_(e) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    tiles_h_ = (s.out[1] + OH - 1) / OH;
    tiles_w_ = (s.out[2] + OW - 1) / OW;
    tiles_ = s.batch * tiles_h_ * tiles_w_;
    pitch_ = (s.c + W - 1) / W * W + W;  // the extra vector keeps rows off the same cache set
    if (PAIRS) pitch_ = (s.c + 2 * W - 1) / (2 * W) * 2 * W + 2 * W;  // elements of bf16
    const int64_t parts = PAIRS ? 1 : (s.c + kChain - 1) / kChain;
    depth_ = (s.c + parts - 1) / parts;
    panels_ = Panels(s.m);
    plan(std::max(1, ctx.threads));
    const auto* w = static_cast<const float*>(node.inputs[1].constant);
    if (w == nullptr) return;  // only asked whether it fits
    packed_ = Floats(static_cast<size_t>(panels_.width * kPoints * units()));
    pack(w);
    packed_.share();
    zeros_ = Floats(static_cast<size_t>(s.c));
    std::memset(zeros_.data(), 0, zeros_.bytes());
  }

  static double cost(const ConvShape& s) {  // seconds on a core of about 105 GFLOP/s and 28 GB/s behind L2
    const auto tiles = static_cast<double>(s.batch * ((s.out[1] + OH - 1) / OH) * ((s.out[2] + OW - 1) / OW));
    const auto c = static_cast<double>(s.c), m = static_cast<double>((s.m + W - 1) / W * W);
    const double product = 2 * kPoints * tiles * (c + 6) * m / 105e9;  // sums are written and read again: some steps more
    const double transforms = kPoints * tiles * (c + m) * 4 / 25e9;
    const double weights = kPoints * c * m * 4;
    const double stream = weights <= kResident ? 0.0 : weights * std::ceil(tiles / 24) / 28e9;
    return std::max(product, stream) + 0.1 * std::min(product, stream) + transforms;
  }

  size_t packed_bytes() const override { return packed_.bytes() + zeros_.bytes(); }
  bool consumed(int input) const override { return input == 1; }
  bool in_place(int input) const override { return input == 3; }
  std::string algorithm() const override {
    if (PAIRS) return "conv-winograd2bf16";
    return std::string("conv-winograd") + static_cast<char>('0' + OH) + (OH == OW ? "" : std::string("x") + static_cast<char>('0' + OW));
  }

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
        for (int64_t t = 0; t < count; ++t) transform(x, first, t, 0, s_.c, count, v);
        for (size_t p = 0; p < panels_.list.size(); ++p) multiply(p, first, count, v, v + input_floats(), e, y);
      });
      return;
    }
    float* v = scratch + static_cast<size_t>(ctx.pool->threads()) * product_floats();
    for (int64_t q = 0; q < blocks_; ++q) {
      const int64_t first = q * block_, count = std::min(block_, tiles_ - first);
      const int64_t slices = (s_.c + kSlice - 1) / kSlice;
      ctx.pool->parallel_for(count * slices, [&](int64_t k, int) {
        const int64_t t = k / slices, c = k % slices * kSlice;
        transform(x, first, t, c, std::min(s_.c, c + kSlice), count, v);
      });
      ctx.pool->parallel_for(static_cast<int64_t>(panels_.list.size()), [&](int64_t p, int slot) {
        multiply(static_cast<size_t>(p), first, count, v, scratch + static_cast<size_t>(slot) * product_floats(), e, y);
      });
    }
  }

 private:
  // Blocks of tiles: whole ones per thread where there are enough tiles, so that a region is joined once. A few tiles are one
  // block, transformed together, then multiplied by panel: the weights are read once.
  void plan(int64_t threads) {
    constexpr int64_t kBudget = 480 << 10, kLeast = 12, kMost = 48;
    const int64_t width = std::min<int64_t>(panels_.width, int64_t{kMaxNV} * W);
    const int64_t most = std::clamp<int64_t>(kBudget / (kPoints * 4 * (pitch_ + width)), kLeast, kMost);
    int64_t count = (tiles_ + most - 1) / most;
    if (threads > 1) {
      count = std::max(count, std::min(3 * threads, tiles_ / kLeast));
      if (count > threads) count = std::min((count + threads - 1) / threads * threads, tiles_);  // as many for each thread
    }
    by_block_ = count >= threads;
    if (!by_block_) count = (tiles_ + kMost - 1) / kMost;
    block_ = count == 0 ? 1 : (tiles_ + count - 1) / count;
    blocks_ = (tiles_ + block_ - 1) / block_;
    if (!by_block_ && static_cast<int64_t>(panels_.list.size()) < 2 * threads) narrow();
  }

  // Panels of two vectors, where full ones are too few to share.
  void narrow() {
    panels_ = Panels();
    panels_.n = s_.m;
    for (int64_t column = 0; column < s_.m;) {
      const int64_t cols = std::min<int64_t>(s_.m - column, int64_t{2} * W);
      const int nv = static_cast<int>((cols + W - 1) / W);
      panels_.list.push_back({column, nv, static_cast<int>(cols), panels_.width});
      panels_.width += int64_t{nv} * W;
      column += cols;
    }
  }

  int64_t units() const { return PAIRS ? (s_.c + 1) / 2 : s_.c; }  // of 32 bits, along the channels
  size_t input_floats() const { return round_up_64(static_cast<size_t>(kPoints * block_ * pitch_ / (PAIRS ? 2 : 1))); }
  size_t product_floats() const { return round_up_64(static_cast<size_t>(kPoints * (block_ * kMaxNV * W + W))); }

  // G w Gᵀ for W output channels at once, in double precision: this is done once, and its rounding would stay.
  void pack(const float* w) {
    if constexpr (PAIRS) {
      pack_bf16(w);
      return;
    }
    const auto& gh = Transform<OH>::kG;
    const auto& gw = Transform<OW>::kG;
    const auto scale = static_cast<double>(epilogue_.scale);
    for (const auto& panel : panels_.list) {
      const int64_t width = int64_t{panel.nv} * W;
      float* base = packed_.data() + panel.offset * kPoints * s_.c;
      for (int64_t v = 0; v < panel.nv; ++v) {
        const int64_t lanes = std::clamp<int64_t>(panel.cols - v * W, 0, W);
        const float* from = w + (panel.column + v * W) * s_.c * 9;
        for (int64_t c = 0; c < s_.c; ++c) {
          double in[9][W] = {}, rows[TH][3][W];
          for (int64_t lane = 0; lane < lanes; ++lane)
            for (int q = 0; q < 9; ++q) in[q][lane] = static_cast<double>(from[(lane * s_.c + c) * 9 + q]);
          for (int i = 0; i < TH; ++i)
            for (int b = 0; b < 3; ++b)
              for (int lane = 0; lane < W; ++lane)
                rows[i][b][lane] = gh[i][0] * in[b][lane] + gh[i][1] * in[3 + b][lane] + gh[i][2] * in[6 + b][lane];
          for (int i = 0; i < TH; ++i)
            for (int j = 0; j < TW; ++j) {
              float* to = base + ((i * TW + j) * s_.c + c) * width + v * W;
              for (int lane = 0; lane < W; ++lane) {
                const double sum = gw[j][0] * rows[i][0][lane] + gw[j][1] * rows[i][1][lane] + gw[j][2] * rows[i][2][lane];
                to[lane] = static_cast<float>(sum * scale);
              }
            }
        }
      }
    }
  }

  // Tile first + t, channels [c0, c1), to its place in v: [point][tile of the block][pitch].
  void transform(const float* x, int64_t first, int64_t t, int64_t c0, int64_t c1, int64_t count, float* v) const {
#if MNNPY_ISA == 2
    if constexpr (PAIRS) {
      alignas(64) float slice[kPoints * kSlice];
      auto* to = reinterpret_cast<uint16_t*>(v) + t * pitch_;
      for (int64_t c = c0; c < c1; c += kSlice) {
        const int64_t channels = std::min(kSlice, c1 - c);
        transform_input(x, first + t, c, c + channels, kSlice, slice);
        for (int point = 0; point < kPoints; ++point) to_bf16(slice + point * kSlice, to + point * count * pitch_ + c, channels);
      }
      return;
    }
#endif
    transform_input(x, first + t, c0, c1, count * pitch_, v + t * pitch_ + c0);
  }

  void pack_bf16([[maybe_unused]] const float* w) {
#if MNNPY_ISA == 2
    // One point at a time, so that the transformed copy is no larger than a third of the weights.
    std::vector<float> u(static_cast<size_t>(s_.m * s_.c));
    for (int point = 0; point < kPoints; ++point) {
      const double* gi = Transform<OH>::kG[point / TW];
      const double* gj = Transform<OW>::kG[point % TW];
      double weight[9];
      for (int k = 0; k < 9; ++k) weight[k] = gi[k / 3] * gj[k % 3];
      for (int64_t k = 0; k < s_.m * s_.c; ++k) {
        double sum = 0;
        for (int q = 0; q < 9; ++q) sum += weight[q] * static_cast<double>(w[k * 9 + q]);
        u[static_cast<size_t>(k)] = static_cast<float>(sum * static_cast<double>(epilogue_.scale));
      }
      for (const auto& panel : panels_.list) {
        const int64_t width = int64_t{panel.nv} * W;
        float* to = packed_.data() + panel.offset * kPoints * units() + point * units() * width;
        Panels one;
        one.list = {{panel.column, panel.nv, panel.cols, 0}};
        pack_pairs(one, 1, s_.c, BView{u.data(), 0, 1, s_.c}, reinterpret_cast<uint32_t*>(to), 0, 1);
      }
    }
#endif
  }

  // Bᵀ d B of one tile, channels [c0, c1), points `step` apart. The outer loops stay loops: unrolled, their code would not fit the
  // instruction cache.
  void transform_input(const float* x, int64_t tile, int64_t c0, int64_t c1, int64_t step, float* v) const {
    const int64_t tw = tile % tiles_w_, th = tile / tiles_w_ % tiles_h_, n = tile / (tiles_w_ * tiles_h_);
    const int64_t h0 = th * OH - s_.before[1], w0 = tw * OW - s_.before[2];
    const float* pixels[kPoints];  // padding reads zeros
    for (int i = 0; i < TH; ++i)
      for (int j = 0; j < TW; ++j) {
        const int64_t h = h0 + i, w = w0 + j;
        const bool valid = h >= 0 && h < s_.in[1] && w >= 0 && w < s_.in[2];
        pixels[j * TH + i] = valid ? x + ((n * s_.in[1] + h) * s_.in[2] + w) * s_.c : zeros_.data();
      }
    for (int64_t c = c0; c < c1; c += W) {
      const int lanes = static_cast<int>(std::min<int64_t>(W, s_.c - c));
      VF half[TH][TW];
#pragma GCC unroll 1
      for (int j = 0; j < TW; ++j) {
        VF d[TH], out[TH];
        if (lanes == W) {
#pragma GCC unroll 8
          for (int i = 0; i < TH; ++i) d[i] = load(pixels[j * TH + i] + c);
        } else {
          for (int i = 0; i < TH; ++i) d[i] = load_partial(pixels[j * TH + i] + c, lanes);
        }
        Transform<OH>::input(d, out);
#pragma GCC unroll 8
        for (int i = 0; i < TH; ++i) half[i][j] = out[i];
      }
#pragma GCC unroll 1
      for (int i = 0; i < TH; ++i) {
        VF out[TW];
        Transform<OW>::input(half[i], out);
        float* to = v + i * TW * step + (c - c0);
#pragma GCC unroll 8
        for (int j = 0; j < TW; ++j) store(to + j * step, out[j]);
      }
    }
  }

  void multiply(size_t p, int64_t first, int64_t count, const float* v, float* products, const Epilogue& e, float* y) const {
    const auto& panel = panels_.list[p];
    const int64_t width = int64_t{panel.nv} * W, step = count * width + W;
#if MNNPY_ISA == 2
    if constexpr (PAIRS) {
      multiply_pairs(panel, count, v, products, step);
      for (int64_t r = 0; r < count; ++r) transform_output(panel, first + r, products + r * width, step, e, y);
      return;
    }
#endif
    const int most = kRows[panel.nv];
    const int64_t heights = (count + most - 1) / most, low = count / heights, extra = count % heights;
    const bool ahead = static_cast<int64_t>(packed_.bytes()) > kResident;
    const WinogradProduct tall_fn = winograd_product(static_cast<int>(extra > 0 ? low + 1 : low), panel.nv, ahead);
    const WinogradProduct low_fn = winograd_product(static_cast<int>(low), panel.nv, ahead);
    WinogradTile t;
    t.pitch = pitch_;
    for (int point = 0; point < kPoints; ++point) {
      const float* b = packed_.data() + panel.offset * kPoints * s_.c + point * s_.c * width;
      for (int64_t k = 0; k < s_.c; k += depth_) {
        t.depth = std::min(depth_, s_.c - k);
        t.accumulate = k > 0;
        t.a = v + point * count * pitch_ + k;
        t.b = b + k * width;
        t.c = products + point * step;
        t.ahead = t.b + t.depth * width;  // what the next k or the next point needs
        t.ahead_bytes = t.depth * width * 4 / heights;
        for (int64_t q = 0; q < heights; ++q) {
          const int64_t height = low + (q < extra ? 1 : 0);
          (q < extra ? tall_fn : low_fn)(t);
          t.a += height * pitch_;
          t.c += height * width;
          t.ahead += t.ahead_bytes / 4;
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) transform_output(panel, first + r, products + r * width, step, e, y);
  }

#if MNNPY_ISA == 2
  void multiply_pairs(const Panels::Panel& panel, int64_t count, const float* v, float* products, int64_t step) const {
    const int64_t width = int64_t{panel.nv} * W;
    const auto* words = reinterpret_cast<const uint32_t*>(packed_.data()) + panel.offset * kPoints * units();
    const uint16_t* rows[64];
    const Epilogue raw;
    PairTile t;
    t.tap_stride = 0, t.taps = 1, t.depth = s_.c, t.k_begin = 0, t.ldc = width;
    t.cols = static_cast<int>(width), t.epilogue = &raw, t.column = 0;
    for (int point = 0; point < kPoints; ++point) {
      const auto* from = reinterpret_cast<const uint16_t*>(v) + point * count * pitch_;
      for (int64_t r = 0; r < count; ++r) rows[r] = from + r * pitch_;
      t.b = words + point * units() * width;
      run_pair_panel(t, panel.nv, rows, 0, count, products + point * step);
    }
  }
#endif

  // Aᵀ m A of one tile for the channels of a panel, then the epilogue.
  void transform_output(const Panels::Panel& panel, int64_t tile, const float* m, int64_t step, const Epilogue& e, float* y) const {
    const int64_t tw = tile % tiles_w_, th = tile / tiles_w_ % tiles_h_, n = tile / (tiles_w_ * tiles_h_);
    const int64_t h0 = th * OH, w0 = tw * OW;
    const int64_t hs = std::min<int64_t>(OH, s_.out[1] - h0), ws = std::min<int64_t>(OW, s_.out[2] - w0);
    const int64_t base = ((n * s_.out[1] + h0) * s_.out[2] + w0) * s_.pitch + panel.column;
    const VF low = splat(e.act == Act::RELU ? 0.0f : e.act_alpha), high = splat(e.act == Act::RELU ? __builtin_inff() : e.act_beta);
    const bool clip = e.act == Act::RELU || e.act == Act::CLIP, other = !is_clip(e.act);
    for (int64_t c = 0; c < panel.cols; c += W) {
      const int lanes = static_cast<int>(std::min<int64_t>(W, panel.cols - c));
      const VF bias = e.bias != nullptr ? load_partial(e.bias + panel.column + c, lanes) : VF{};
      VF half[OH][TW];
#pragma GCC unroll 1
      for (int j = 0; j < TW; ++j) {
        VF d[TH], out[OH];
        const float* from = m + j * step + c;
#pragma GCC unroll 8
        for (int i = 0; i < TH; ++i) d[i] = load(from + i * TW * step);
        if (j == 1) d[1] += bias;  // the point (1, 1) adds to every output once
        Transform<OH>::output(d, out);
#pragma GCC unroll 8
        for (int i = 0; i < OH; ++i) half[i][j] = out[i];
      }
#pragma GCC unroll 1
      for (int64_t i = 0; i < hs; ++i) {
        VF out[OW];
        Transform<OW>::output(half[i], out);
        const int64_t at = base + i * s_.out[2] * s_.pitch + c;
        if (ws == OW && lanes == W && !other) {
          if (e.residual != nullptr) {
#pragma GCC unroll 8
            for (int j = 0; j < OW; ++j) out[j] += load(e.residual + at + j * s_.pitch);
          }
          if (clip) {
#pragma GCC unroll 8
            for (int j = 0; j < OW; ++j) out[j] = vclip(out[j], low, high);
          }
#pragma GCC unroll 8
          for (int j = 0; j < OW; ++j) store(y + at + j * s_.pitch, out[j]);
          continue;
        }
        finish_edge(out, static_cast<int>(ws), lanes, e, at, y);
      }
    }
  }

  // The epilogue of a row of outputs that is not whole, or has another activation than a clip.
  [[gnu::noinline]] void finish_edge(const VF* row, int count, int lanes, const Epilogue& e, int64_t at, float* y) const {
    VF out[OW];
    for (int j = 0; j < count; ++j) {
      out[j] = row[j];
      if (e.residual != nullptr) out[j] += load_partial(e.residual + at + j * s_.pitch, lanes);
    }
    if (is_clip(e.act)) {
      const VF low = splat(e.act == Act::RELU ? 0.0f : e.act_alpha), high = splat(e.act == Act::RELU ? __builtin_inff() : e.act_beta);
      if (e.act != Act::NONE)
        for (int j = 0; j < count; ++j) out[j] = vclip(out[j], low, high);
    } else {
      activate_block(e, out, count);
    }
    for (int j = 0; j < count; ++j) store_partial(y + at + j * s_.pitch, out[j], lanes);
  }

  ConvShape s_;
  Epilogue epilogue_;
  Panels panels_;
  Floats packed_, zeros_;
  int64_t tiles_h_, tiles_w_, tiles_, block_, blocks_, pitch_, depth_;
  bool by_block_, has_bias_, has_residual_;
};

// An algorithm of the attribute, its estimated time, its kernel.
struct Choice {
  const char* name;
  double (*cost)(const ConvShape& s);
  std::unique_ptr<Kernel> (*make)(const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e);
};

template <int OH, int OW>
constexpr Choice choice(const char* name) {
  return {name, &ConvWinograd<OH, OW>::cost, [](const NodeDesc& node, const BuildContext& ctx, const ConvShape& s, const Epilogue& e) {
            return std::unique_ptr<Kernel>(std::make_unique<ConvWinograd<OH, OW>>(node, ctx, s, e));
          }};
}

constexpr Choice kChoices[] = {choice<2, 2>("winograd2"), choice<4, 2>("winograd4x2"), choice<4, 4>("winograd4"),
                               choice<5, 5>("winograd5"), choice<6, 6>("winograd6")};

std::unique_ptr<Kernel> make_winograd(const NodeDesc& node, const BuildContext& ctx) {
  if (node.s("layout", "NCHW") != "NHWC") return decline(ctx, "layout is not NHWC");
  const std::string algorithm = node.s("algorithm", "auto");
  const bool pairs = algorithm == "winograd2bf16";
  const Choice* best = std::find_if(std::begin(kChoices), std::end(kChoices), [&](const Choice& c) { return algorithm == c.name; });
  if (algorithm != "auto" && !pairs && best == std::end(kChoices)) return decline(ctx, "another algorithm was asked for");
  ConvShape s;
  Epilogue e;
  const char* why = "";
  if (!conv_shape(node, true, s, why, true) || !conv_operands(node, s, e, why)) return decline(ctx, why);
  bool fits = s.group == 1 && s.in[0] == 1 && s.kernel[0] == 1 && s.before[0] == 0 && s.after[0] == 0 && s.stride[0] == 1;
  for (int d = 1; d < 3; ++d) fits = fits && s.kernel[d] == 3 && s.stride[d] == 1 && s.dilation[d] == 1 && s.out[d] > 0;
  if (!fits || s.batch == 0) return decline(ctx, "Winograd takes 3x3 kernels of stride 1 without groups");
  if (!constant_weights(node)) return decline(ctx, "Winograd needs constant weights");
  if (pairs) {
    NodeDesc low = node;
    low.attrs["algorithm"] = std::string("bf16");
    if (MNNPY_ISA != 2 || !wants_bf16(low, ctx)) return nullptr;
#if MNNPY_ISA == 2
    return std::make_unique<ConvWinograd<2, 2, true>>(node, ctx, s, e);
#endif
  }
  if (algorithm == "auto") {
    best = std::min_element(std::begin(kChoices), std::end(kChoices), [&](const Choice& a, const Choice& b) { return a.cost(s) < b.cost(s); });
    const double direct = s.flops() / (wants_bf16(node, ctx) ? 225e9 : 105e9);
    if (s.c < 8 || s.m < 8 || best->cost(s) > 0.95 * direct) return decline(ctx, "Winograd does not pay here");
  }
  return best->make(node, ctx, s, e);
}

}  // namespace

MNNPY_REGISTER_AT("Convolution", make_winograd, 30);

}  // namespace mnnpy::MNNPY_NS
