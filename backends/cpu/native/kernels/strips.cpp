// ConvChain: 1×1 and depthwise convolutions in a row, f32, channels last.
//
// A strip is a few lines of the chain's output. For each strip every stage computes the lines that the next one is short
// of: the strips of one thread go downwards, and lines that the next strip needs again are still in the ring. Only where
// a thread's range begins are lines above it computed a second time. Each stage runs the same tiles in the same order as
// its convolution would alone, so results are the same to the bit.
#include "strips.h"

#include <algorithm>
#include <cstring>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace mnnpy::MNNPY_NS {

Ranges::Ranges(int64_t count, int64_t participants)
    : participants_(participants), ranges_(new Range[static_cast<size_t>(participants)]) {
  for (int64_t k = 0; k < participants; ++k) {
    const auto begin = static_cast<uint64_t>(count * k / participants), end = static_cast<uint64_t>(count * (k + 1) / participants);
    ranges_[static_cast<size_t>(k)].ends.store(begin << 32 | end, std::memory_order_relaxed);
  }
}

bool Ranges::next(int64_t participant, int64_t& number) {
  auto& own = ranges_[static_cast<size_t>(participant)].ends;
  do {
    uint64_t now = own.load(std::memory_order_acquire);
    while (now >> 32 < (now & 0xffffffffu)) {
      if (own.compare_exchange_weak(now, now + (uint64_t{1} << 32))) {
        number = static_cast<int64_t>(now >> 32);
        return true;
      }
    }
  } while (steal(participant));
  return false;
}

bool Ranges::steal(int64_t participant) {
  for (;;) {
    std::atomic<uint64_t>* longest = nullptr;
    uint64_t most = 0, seen = 0;
    for (int64_t k = 0; k < participants_; ++k) {
      auto& ends = ranges_[static_cast<size_t>(k)].ends;
      const uint64_t now = ends.load(std::memory_order_acquire), left = (now & 0xffffffffu) - (now >> 32);
      if (left > most) most = left, seen = now, longest = &ends;
    }
    if (longest == nullptr) return false;
    const uint64_t end = seen & 0xffffffffu, cut = end - (most + 1) / 2;
    if (!longest->compare_exchange_strong(seen, (seen >> 32 << 32) | cut)) continue;
    ranges_[static_cast<size_t>(participant)].ends.store(cut << 32 | end, std::memory_order_release);
    return true;
  }
}

namespace {

constexpr int kMaxStages = 8;
constexpr int64_t kPixels = 112;

int64_t l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return std::clamp<int64_t>(found, 256 << 10, 4 << 20);
#endif
  return 512 << 10;
}

// Lines [low, high) of the input that lines [low, high) of the output need.
void needed(const ConvShape& s, int64_t& low, int64_t& high) {
  low = std::clamp<int64_t>(low * s.stride[1] - s.before[1], 0, s.in[1]);
  high = std::clamp<int64_t>((high - 1) * s.stride[1] - s.before[1] + (s.kernel[1] - 1) * s.dilation[1] + 1, low, s.in[1]);
}

class Strips final : public Kernel {
 public:
  Strips(const NodeDesc& node, const BuildContext& ctx, std::vector<Stage> stages) : stages_(std::move(stages)) {
    plan(ctx.threads);
    const size_t n = stages_.size();
    residual_ = node.inputs.size() > 1 + 2 * n && node.inputs[1 + 2 * n].present ? static_cast<int>(1 + 2 * n) : -1;
    constant_ = true;
    for (size_t k = 1; k < 1 + 2 * n && k < node.inputs.size(); ++k)
      constant_ = constant_ && (!node.inputs[k].present || node.inputs[k].constant != nullptr);
    if (!constant_) return;
    packed_ = Floats(static_cast<size_t>(weights_));
    std::vector<const void*> operands;
    for (const auto& t : node.inputs) operands.push_back(t.present ? t.constant : nullptr);
    pack(operands.data(), packed_.data());
    packed_.share();
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return constant_ && input > 0 && input != residual_; }
  std::string algorithm() const override {
    std::string name = "strips";
    for (const auto& g : stages_) name += g.depthwise ? "-dw" : "-1x1";
    return name + "/" + std::to_string(height_);
  }
  size_t scratch_bytes(int threads) const override {
    return static_cast<size_t>(buffers_ * threads + (constant_ ? 0 : weights_)) * sizeof(float);
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    auto* scratch = reinterpret_cast<float*>(ctx.scratch);
    const int threads = ctx.pool->threads();
    Job job{static_cast<const float*>(inputs[0]), residual_ < 0 ? nullptr : static_cast<const float*>(inputs[residual_]),
            static_cast<float*>(outputs[0]), packed_.data()};
    if (!constant_) {
      job.packed = scratch + buffers_ * threads;
      pack(inputs, scratch + buffers_ * threads);
    }
    const ConvShape& last = stages_.back().s;
    const int64_t per_image = (last.out[1] + height_ - 1) / height_, count = last.batch * per_image;
    if (count == 0 || last.out[2] == 0) return;
    Ranges ranges(count, std::min<int64_t>(threads, count));
    ctx.pool->parallel_for(std::min<int64_t>(threads, count), [&](int64_t participant, int slot) {
      float* buffers = scratch + buffers_ * slot;
      bool clean = false;
      int64_t done[kMaxStages] = {}, before = -2;
      for (int64_t strip; ranges.next(participant, strip); before = strip) {
        if (!clean) clear_borders(buffers);
        clean = true;
        const int64_t image = strip / per_image, top = strip % per_image * height_;
        const bool fresh = strip != before + 1 || top == 0;
        one_strip(job, buffers, image, top, std::min(last.out[1], top + height_), fresh, done);
      }
    });
  }

 private:
  struct Job {
    const float* x;
    const float* residual;
    float* y;
    const float* packed;
  };

  // Sizes of rings and the height of a strip.
  void plan(int threads) {
    weights_ = 0;
    for (auto& g : stages_) {
      g.pitch = (g.s.m + W - 1) / W * W;
      g.panels = Panels(g.s.m);
      g.weights = weights_;
      weights_ += g.depthwise ? g.pitch * g.s.taps() : g.panels.width * g.s.c;
      if (g.bias >= 0) {
        g.bias = weights_;
        weights_ += std::max(g.pitch, g.panels.width);
      }
    }
    for (size_t k = 0; k + 1 < stages_.size(); ++k) {
      Stage& g = stages_[k];
      const ConvShape& next = stages_[k + 1].s;
      g.left = next.before[2];
      g.columns = std::max(g.left + g.s.out[2] + next.after[2], (next.out[2] - 1) * next.stride[2] + (next.kernel[2] - 1) * next.dilation[2] + 1);
    }
    const ConvShape& last = stages_.back().s;
    // Weights, lines of input and output take the rest of L2.
    const int64_t budget = std::max<int64_t>(l2_bytes() / 2, l2_bytes() * 7 / 8 - weights_ * 4);
    int64_t most = std::max<int64_t>(1, kTable / std::max<int64_t>(1, last.out[2]));
    // Enough strips to share, but each of them with pixels for a few tiles.
    const int64_t least = (kPixels + last.out[2] - 1) / std::max<int64_t>(1, last.out[2]);
    if (threads > 1) most = std::min(most, std::max(least, last.batch * last.out[1] / (4 * threads)));
    height_ = std::clamp<int64_t>(last.out[1], 1, most);
    while (height_ > 1 && rings(height_) * 4 > budget) --height_;
    // Strips of nearly equal height.
    const int64_t strips = std::max<int64_t>(1, (last.out[1] + height_ - 1) / height_);
    height_ = std::max<int64_t>(1, (last.out[1] + strips - 1) / strips);
    buffers_ = (rings(height_) + 63) / 64 * 64;
  }

  int64_t rings(int64_t height) {
    int64_t lines = height, total = 0;
    for (size_t k = stages_.size() - 1; k > 0; --k) {
      const ConvShape& s = stages_[k].s;
      lines = std::min(s.in[1], (lines - 1) * s.stride[1] + (s.kernel[1] - 1) * s.dilation[1] + 1);
      stages_[k - 1].ring = std::max<int64_t>(1, lines);
      stages_[k - 1].buffer = total;
      total += stages_[k - 1].ring * stages_[k - 1].line();
    }
    return total;
  }

  void pack(const void* const* inputs, float* to) const {
    for (size_t k = 0; k < stages_.size(); ++k) {
      const Stage& g = stages_[k];
      const auto* w = static_cast<const float*>(inputs[1 + 2 * k]);
      if (g.depthwise)
        pack_depthwise(w, g.s.c, g.s.taps(), g.pitch, g.epilogue.scale, to + g.weights);
      else
        pack_b(g.panels, 1, g.s.c, BView{w, 0, 1, g.s.c}, to + g.weights, 0, g.panels.list.size());
      if (g.bias < 0) continue;
      const int64_t width = std::max(g.pitch, g.panels.width);
      std::memset(to + g.bias, 0, static_cast<size_t>(width) * sizeof(float));
      std::memcpy(to + g.bias, inputs[2 + 2 * k], static_cast<size_t>(g.s.m) * sizeof(float));
    }
  }

  void clear_borders(float* buffers) const {
    for (size_t k = 0; k + 1 < stages_.size(); ++k) {
      const Stage& g = stages_[k];
      const auto left = static_cast<size_t>(g.left * g.pitch) * sizeof(float);
      const int64_t end = (g.left + g.s.out[2]) * g.pitch;
      for (int64_t l = 0; l < g.ring; ++l) {
        float* line = buffers + g.buffer + l * g.line();
        std::memset(line, 0, left);
        std::memset(line + end, 0, static_cast<size_t>(g.line() - end) * sizeof(float));
      }
    }
  }

  void one_strip(const Job& job, float* buffers, int64_t image, int64_t top, int64_t bottom, bool fresh, int64_t* done) const {
    int64_t low[kMaxStages], high[kMaxStages];
    for (size_t k = stages_.size(); k-- > 0;) {
      low[k] = top, high[k] = bottom;
      needed(stages_[k].s, top, bottom);
    }
    for (size_t k = 0; k < stages_.size(); ++k) {
      const int64_t begin = fresh ? low[k] : std::max(low[k], done[k]);
      done[k] = high[k];
      if (begin >= high[k]) continue;
      if (stages_[k].depthwise)
        depthwise(job, buffers, k, image, begin, high[k]);
      else
        pointwise(job, buffers, k, image, begin, high[k]);
    }
  }

  // First pixel of a line of what stage k reads.
  const float* source(const Job& job, const float* buffers, size_t k, int64_t image, int64_t line) const {
    const ConvShape& s = stages_[k].s;
    if (k == 0) return job.x + (image * s.in[1] + line) * s.in[2] * s.c;
    const Stage& from = stages_[k - 1];
    return buffers + from.buffer + line % from.ring * from.line() + from.left * from.pitch;
  }
  // First pixel of a line of what stage k writes.
  float* target(const Job& job, float* buffers, size_t k, int64_t image, int64_t line) const {
    const Stage& g = stages_[k];
    if (k + 1 == stages_.size()) return job.y + (image * g.s.out[1] + line) * g.s.out[2] * g.s.pitch;
    return buffers + g.buffer + line % g.ring * g.line() + g.left * g.pitch;
  }

  void pointwise(const Job& job, float* buffers, size_t k, int64_t image, int64_t begin, int64_t end) const {
    const Stage& g = stages_[k];
    const bool last = k + 1 == stages_.size();
    const int64_t width = g.s.out[2], pitch = k == 0 ? g.s.c : stages_[k - 1].pitch;
    const int64_t step = std::max<int64_t>(1, kTable / width);
    const float* table[kTable];
    Epilogue e = g.epilogue;
    e.bias = g.bias < 0 ? nullptr : job.packed + g.bias;
    e.residual = last ? job.residual : nullptr;
    TileArgs t;
    t.tap_stride = 0, t.taps = 1, t.depth = g.s.c, t.k_begin = 0, t.epilogue = &e;
    t.ldc = last ? g.s.pitch : g.pitch;
    for (int64_t l0 = begin; l0 < end; l0 += step) {
      const int64_t lines = std::min(step, end - l0);
      for (int64_t l = 0; l < lines; ++l) {
        const float* from = source(job, buffers, k, image, l0 + l);
        for (int64_t p = 0; p < width; ++p) table[l * width + p] = from + p * pitch;
      }
      // Lines of the output lie one behind the other, those of a ring apart.
      const int64_t runs = last ? 1 : lines, pixels = last ? lines * width : width;
      for (const auto& panel : g.panels.list) {
        t.b = job.packed + g.weights + panel.offset * g.s.c;
        t.column = panel.column;
        t.cols = last ? panel.cols : panel.nv * W;
        for (int64_t q = 0; q < runs; ++q) {
          float* to = target(job, buffers, k, image, l0 + q) + panel.column;
          const int64_t offset = last ? to - job.y : 0;
          run_tiles(t, table + q * width, pixels, panel.nv, to, offset);
        }
      }
    }
  }

  // Tiles of nearly equal height.
  static void run_tiles(TileArgs& t, const float* const* rows, int64_t count, int nv, float* to, int64_t offset) {
    const int most = kRows[nv];
    const int64_t tiles = (count + most - 1) / most, base = count / tiles, extra = count % tiles;
    const TileFn low = tile_fn(static_cast<int>(base), nv);
    const TileFn tall = extra > 0 ? tile_fn(static_cast<int>(base + 1), nv) : low;
    for (int64_t q = 0, r = 0; q < tiles; ++q) {
      t.rows = rows + r;
      t.c = to + r * t.ldc;
      t.offset = offset + r * t.ldc;
      (q < extra ? tall : low)(t);
      r += base + (q < extra ? 1 : 0);
    }
  }

  void depthwise(const Job& job, float* buffers, size_t k, int64_t image, int64_t begin, int64_t end) const {
    const Stage& g = stages_[k];
    const ConvShape& s = g.s;
    const bool first = k == 0, last = k + 1 == stages_.size();
    const float* rows[kDepthwiseLines];
    const float* weights[kDepthwiseLines];
    DepthwiseLine l;
    l.rows = rows, l.weights = weights;
    l.kernel_w = s.kernel[2], l.weight_pitch = g.pitch, l.step = s.stride[2], l.dilation = s.dilation[2];
    // Rings have their padding in memory.
    const int64_t left = first ? 0 : stages_[k - 1].left;
    l.before = s.before[2] - left;
    l.in_w = first ? s.in[2] : stages_[k - 1].columns;
    l.pixel = first ? s.c : stages_[k - 1].pitch;
    l.out_pixel = last ? s.pitch : g.pitch;
    const bool exact = first || last;  // channels beyond the last one are not ours
    for (int64_t c = 0; c < s.c;) {
      int64_t at = c, vectors = std::min<int64_t>(kDepthwiseVectors, (s.c - c + W - 1) / W);
      l.lanes = exact ? static_cast<int>(std::min<int64_t>(W, s.c - c - (vectors - 1) * W)) : W;
      if (l.lanes < W && vectors == 2) vectors = 1, l.lanes = W;  // whole vectors take the faster way
      if (l.lanes < W && s.c >= W) at = s.c - W, l.lanes = W;  // some channels twice
      l.bias = g.bias < 0 ? nullptr : job.packed + g.bias + at;
      const int64_t width = depthwise_width(static_cast<int>(vectors), s);
      for (int64_t ow = 0; ow < s.out[2]; ow += width) {
        for (int64_t oh = begin; oh < end; ++oh) {
          l.count = 0;
          for (int64_t kh = 0; kh < s.kernel[1]; ++kh) {
            const int64_t ih = oh * s.stride[1] + kh * s.dilation[1] - s.before[1];
            if (ih < 0 || ih >= s.in[1]) continue;
            rows[l.count] = source(job, buffers, k, image, ih) - left * l.pixel + at;
            weights[l.count++] = job.packed + g.weights + kh * s.kernel[2] * g.pitch + at;
          }
          l.out = target(job, buffers, k, image, oh) + at;
          l.residual = last && job.residual != nullptr ? job.residual + (l.out - job.y) : nullptr;
          depthwise_columns(static_cast<int>(vectors), l, g.epilogue, ow, std::min(s.out[2], ow + width));
        }
      }
      c += vectors * W;
    }
  }

  std::vector<Stage> stages_;
  Floats packed_;
  int64_t weights_ = 0, buffers_ = 0, height_ = 1;
  int residual_ = -1;
  bool constant_ = false;
};

// The stages of a node, or an empty list with a reason. Operands: x, then weights and bias by stage, then the residual.
std::vector<Stage> read_stages(const NodeDesc& node, const char*& why) {
  const auto acts = node.strings("acts");
  const auto low = node.floats("act_alphas"), high = node.floats("act_betas"), scales = node.floats("alphas");
  const auto groups = node.ints("groups"), strides = node.ints("strides"), pads = node.ints("pads"), dilations = node.ints("dilations");
  const size_t n = acts.size();
  if (n < 2 || n > kMaxStages || low.size() != n || high.size() != n || scales.size() != n || groups.size() != n ||
      strides.size() != 2 * n || dilations.size() != 2 * n || pads.size() != 4 * n)
    return why = "needs two to eight stages with all their attributes", std::vector<Stage>{};
  if (node.inputs.size() < 1 + 2 * n || node.inputs.size() > 2 + 2 * n || node.outputs.size() != 1)
    return why = "takes weights and bias by stage and one residual", std::vector<Stage>{};
  std::vector<Stage> stages(n);
  TensorDesc x = node.inputs[0];
  for (size_t k = 0; k < n; ++k) {
    NodeDesc one;
    one.op = "Convolution";
    one.attrs = {{"group", groups[k]}, {"act", acts[k]}, {"act_alpha", low[k]}, {"act_beta", high[k]}, {"alpha", scales[k]}};
    const TensorDesc& w = node.inputs[1 + 2 * k];
    if (x.shape.size() != 4 || w.shape.size() != 4) return why = "needs two spatial dims", std::vector<Stage>{};
    one.inputs = {x, w, node.inputs[2 + 2 * k]};
    const auto two = [&](const std::vector<int64_t>& v) { return std::vector<int64_t>{v[2 * k], v[2 * k + 1]}; };
    const std::vector<int64_t> pad(pads.begin() + static_cast<std::ptrdiff_t>(4 * k), pads.begin() + static_cast<std::ptrdiff_t>(4 * k + 4));
    one.attrs["strides"] = two(strides), one.attrs["dilations"] = two(dilations), one.attrs["pads"] = pad;
    TensorDesc y = x;
    for (size_t d = 0; d < 2; ++d) {
      const int64_t reach = x.shape[1 + d] + pad[d] + pad[2 + d] - ((w.shape[2 + d] - 1) * dilations[2 * k + d] + 1);
      if (strides[2 * k + d] < 1 || reach < 0) return why = "an intermediate is empty", std::vector<Stage>{};
      y.shape[1 + d] = reach / strides[2 * k + d] + 1;
    }
    y.shape[3] = w.shape[0];
    y.constant = nullptr;
    one.outputs = {y};
    if (k + 1 == n) {
      if (node.outputs[0].shape != y.shape) return why = "the output has another size", std::vector<Stage>{};
      if (node.inputs.size() > 1 + 2 * n) one.inputs.push_back(node.inputs[1 + 2 * n]);
      if (node.attrs.count("pitch") != 0) one.attrs["pitch"] = node.i("pitch", 0);
    }
    Stage& g = stages[k];
    if (!conv_shape(one, true, g.s, why, true) || !conv_operands(one, g.s, g.epilogue, why)) return {};
    if (conv_cropped(g.s)) return why = "padding is negative", std::vector<Stage>{};
    g.depthwise = g.s.group == g.s.c && g.s.m == g.s.c && g.s.c > 1;
    const bool unit = g.s.taps() == 1 && g.s.stride[1] == 1 && g.s.stride[2] == 1 && g.s.before[1] + g.s.after[1] + g.s.before[2] + g.s.after[2] == 0;
    if (!g.depthwise && (g.s.group != 1 || !unit)) return why = "a stage is neither depthwise nor plain 1x1", std::vector<Stage>{};
    if (g.depthwise && g.s.kernel[1] > kDepthwiseLines) return why = "a kernel is too tall", std::vector<Stage>{};
    if (g.s.out[2] > kTable) return why = "lines are too long", std::vector<Stage>{};
    g.bias = one.inputs[2].present ? 0 : -1;
    x = y;
  }
  return stages;
}

std::unique_ptr<Kernel> make_chain(const NodeDesc& node, const BuildContext& ctx) {
  const char* why = "";
  auto stages = read_stages(node, why);
  if (stages.empty()) return decline(ctx, why);
  return std::make_unique<Strips>(node, ctx, std::move(stages));
}

}  // namespace

MNNPY_REGISTER("ConvChain", make_chain);

}  // namespace mnnpy::MNNPY_NS
