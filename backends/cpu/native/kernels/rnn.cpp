// LSTM, GRU and RNN for f32 with the default activations: the input's share of all steps is one product per block of
// steps, then one product per step with the packed recurrent weights (ONNX operator specification). With precision="low"
// the products multiply bf16 pairs where the CPU has them; states, gates and sums stay f32.
#include <cctype>
#include <cstring>

#include "gemm_bf16.h"

namespace mnnpy::MNNPY_NS {
namespace {

enum class Cell { LSTM, GRU, RNN };

struct Config {
  Cell cell;
  int64_t gates, steps, batch, input, hidden, directions;
  bool reverse, batch_first, input_forget, linear_before_reset;
  bool bias, lengths, initial_h, initial_c, peephole;
  int outputs;
};

// Rows times packed weights, in f32 or in bf16 pairs.
struct Product {
  Panels panels;
  int64_t depth = 0;
  bool pairs = false;

  Product() = default;
  Product(int64_t n, int64_t k, bool low) : panels(n), depth(k), pairs(low) {}
  int64_t units() const { return pairs ? (depth + 1) / 2 : depth; }
  size_t floats() const { return static_cast<size_t>(panels.width * units()); }
  Blocking plan(int64_t rows, int threads) const { return plan_blocks(rows, 1, units(), panels, threads); }
#if MNNPY_ISA == 2
  size_t scratch_bytes(const Blocking& blk) const { return pairs ? staged_bytes(blk) : 0; }  // per slot
#else
  static size_t scratch_bytes(const Blocking&) { return 0; }
#endif

  void pack(const BView& b, float* to) const {
#if MNNPY_ISA == 2
    if (pairs) return pack_pairs(panels, 1, depth, b, reinterpret_cast<uint32_t*>(to), 0, panels.list.size());
#endif
    pack_b(panels, 1, depth, b, to, 0, panels.list.size());
  }

  template <class Fill>
  void run(const Blocking& blk, const float* packed, int64_t rows, float* c, int64_t ldc, const Epilogue& e, Pool* pool,
           std::byte* scratch, const Fill& fill) const {
#if MNNPY_ISA == 2
    if (pairs) {
      const auto* words = reinterpret_cast<const uint32_t*>(packed);
      return run_pair_blocks<float>(blk, panels, words, rows, 1, depth, c, ldc, e, pool, scratch, fill);
    }
#else
    static_cast<void>(scratch);
#endif
    run_blocks(blk, panels, packed, rows, 1, depth, c, ldc, e, pool, fill);
  }
};

// Input positions: X, W, R, B, sequence_lens, initial_h, initial_c, P.
class Recurrent final : public Kernel {
 public:
  Recurrent(const NodeDesc& node, const BuildContext& ctx, const Config& c, bool low) : c_(c), low_(low) {
    const int64_t gh = c.gates * c.hidden;
    input_ = Product(gh, c.input, low);
    split_ = c.cell == Cell::GRU && !c.linear_before_reset;  // the candidate needs the reset state first
    first_ = Product(split_ ? 2 * c.hidden : gh, c.hidden, low);
    if (split_) second_ = Product(c.hidden, c.hidden, low);
    block_ = std::clamp<int64_t>((192 + c.batch - 1) / std::max<int64_t>(1, c.batch), 1, std::max<int64_t>(1, c.steps));
    parallel_steps_ = c.batch * gh * c.hidden >= int64_t{1} << 19;
    const int inner = c.directions == 1 ? ctx.threads : 1;
    input_blocks_ = input_.plan(block_ * c.batch, inner);
    tail_blocks_ = input_.plan(c.steps % block_ * c.batch, inner);
    first_blocks_ = first_.plan(c.batch, parallel_steps_ ? inner : 1);
    if (split_) second_blocks_ = second_.plan(c.batch, parallel_steps_ ? inner : 1);
    for (auto [product, blk] : {std::pair{&input_, &input_blocks_}, {&input_, &tail_blocks_}, {&first_, &first_blocks_}, {&second_, &second_blocks_}})
      staged_bytes_ = std::max(staged_bytes_, product->scratch_bytes(*blk));
    const auto* w = static_cast<const float*>(node.inputs[1].constant);
    const auto* r = static_cast<const float*>(node.inputs[2].constant);
    if (w != nullptr && r != nullptr) {
      packed_ = Floats(weight_floats());
      pack(w, r, packed_.data());
      packed_.share();
      constant_ = true;
    }
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return constant_ && (input == 1 || input == 2); }
  std::string algorithm() const override { return low_ ? "recurrent-bf16" : "recurrent"; }
  size_t scratch_bytes(int threads) const override {
    const size_t floats = state_floats() * static_cast<size_t>(c_.directions) + (constant_ ? 0 : weight_floats());
    return floats * sizeof(float) + staged_bytes_ * static_cast<size_t>(std::max<int64_t>(threads, c_.directions));
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    auto* scratch = reinterpret_cast<float*>(ctx.scratch);
    const float* packed = packed_.data();
    float* to = scratch + state_floats() * static_cast<size_t>(c_.directions);
    auto* staged = reinterpret_cast<std::byte*>(constant_ ? to : to + weight_floats());
    if (!constant_) {
      pack(static_cast<const float*>(inputs[1]), static_cast<const float*>(inputs[2]), to);
      packed = to;
    }
    const auto one = [&](int64_t d, Pool* pool) {
      direction(d, pool, inputs, outputs, packed + static_cast<size_t>(d) * (weight_floats() / static_cast<size_t>(c_.directions)),
                scratch + static_cast<size_t>(d) * state_floats(), staged + static_cast<size_t>(d) * staged_bytes_);
    };
    if (c_.directions == 2) {
      ctx.pool->parallel_for(2, [&](int64_t d, int) { one(d, nullptr); });
    } else {
      one(0, ctx.pool->threads() > 1 ? ctx.pool : nullptr);
    }
  }

 private:
  size_t weight_floats() const {
    return (round_up_64(input_.floats()) + round_up_64(first_.floats()) + round_up_64(second_.floats())) * static_cast<size_t>(c_.directions);
  }
  // Per direction: input share of a block of steps, gates, h, c, reset·h, two biases.
  size_t state_floats() const {
    const auto gh = static_cast<size_t>(c_.gates * c_.hidden), b = static_cast<size_t>(c_.batch), h = static_cast<size_t>(c_.hidden);
    return round_up_64(static_cast<size_t>(block_) * b * gh) + round_up_64(b * gh) + 3 * round_up_64(b * h) + 2 * round_up_64(gh);
  }

  void pack(const float* w, const float* r, float* to) const {
    const int64_t h = c_.hidden, gh = c_.gates * h;
    for (int64_t d = 0; d < c_.directions; ++d) {
      input_.pack({w + d * gh * c_.input, 0, 1, c_.input}, to);
      to += round_up_64(input_.floats());
      first_.pack({r + d * gh * h, 0, 1, h}, to);
      to += round_up_64(first_.floats());
      if (split_) second_.pack({r + (d * gh + 2 * h) * h, 0, 1, h}, to);
      to += round_up_64(second_.floats());
    }
  }

  // X[t, b] in time order, whichever way it is stored.
  struct StepRows {
    const float* x;
    int64_t batch, steps, input, first;
    bool batch_first;
    void operator()(int64_t row, int64_t count, int64_t, int64_t, const float** table, int64_t) const {
      for (int64_t r = 0; r < count; ++r) {
        const int64_t t = first + (row + r) / batch, b = (row + r) % batch;
        table[r] = x + (batch_first ? b * steps + t : t * batch + b) * input;
      }
    }
  };

  struct Buffers {
    float *share, *gates, *h, *c, *reset, *bias, *bias_r;
    std::byte* staged;
  };

  int64_t state_at(int64_t d, int64_t b) const {
    return (c_.batch_first ? b * c_.directions + d : d * c_.batch + b) * c_.hidden;
  }
  int64_t y_at(int64_t t, int64_t d, int64_t b) const {
    return (c_.batch_first ? (b * c_.steps + t) * c_.directions + d : (t * c_.directions + d) * c_.batch + b) * c_.hidden;
  }

  void direction(int64_t d, Pool* pool, const void* const* inputs, void* const* outputs, const float* packed, float* scratch,
                 std::byte* staged) const {
    const int64_t h = c_.hidden, gh = c_.gates * h;
    const auto row = static_cast<size_t>(h) * sizeof(float);
    Buffers s;
    s.share = scratch;
    s.gates = s.share + round_up_64(static_cast<size_t>(block_ * c_.batch * gh));
    s.h = s.gates + round_up_64(static_cast<size_t>(c_.batch * gh));
    s.c = s.h + round_up_64(static_cast<size_t>(c_.batch * h));
    s.reset = s.c + round_up_64(static_cast<size_t>(c_.batch * h));
    s.bias = s.reset + round_up_64(static_cast<size_t>(c_.batch * h));
    s.bias_r = s.bias + round_up_64(static_cast<size_t>(gh));
    s.staged = staged;

    const auto* b = c_.bias ? static_cast<const float*>(inputs[3]) + d * 2 * gh : nullptr;
    const int64_t joined = c_.cell == Cell::GRU && c_.linear_before_reset ? 2 * h : gh;  // gates whose biases just add
    for (int64_t j = 0; j < gh; ++j) {
      s.bias[j] = b == nullptr ? 0.0f : b[j] + (j < joined ? b[gh + j] : 0.0f);
      s.bias_r[j] = b == nullptr || j < joined ? 0.0f : b[gh + j];
    }
    for (int64_t k = 0; k < c_.batch; ++k) {
      if (c_.initial_h) std::memcpy(s.h + k * h, static_cast<const float*>(inputs[5]) + state_at(d, k), row);
      else std::memset(s.h + k * h, 0, row);
      if (c_.initial_c) std::memcpy(s.c + k * h, static_cast<const float*>(inputs[6]) + state_at(d, k), row);
      else std::memset(s.c + k * h, 0, row);
    }

    const bool backwards = c_.reverse || d == 1;
    const int64_t blocks = (c_.steps + block_ - 1) / block_;
    auto* y = static_cast<float*>(outputs[0]);
    for (int64_t k = 0; k < blocks; ++k) {
      const int64_t begin = (backwards ? blocks - 1 - k : k) * block_, count = std::min(block_, c_.steps - begin);
      Epilogue e;
      e.bias = s.bias;
      input_.run(count == block_ ? input_blocks_ : tail_blocks_, packed, count * c_.batch, s.share, gh, e, pool, staged,
                 StepRows{static_cast<const float*>(inputs[0]), c_.batch, c_.steps, c_.input, begin, c_.batch_first});
      for (int64_t q = 0; q < count; ++q) {
        const int64_t at = backwards ? count - 1 - q : q;
        step(d, begin + at, s.share + at * c_.batch * gh, s, packed + round_up_64(input_.floats()), parallel_steps_ ? pool : nullptr, inputs, y);
      }
    }
    for (int o = 1; o < c_.outputs; ++o) {
      auto* final = static_cast<float*>(outputs[o]);
      if (final == nullptr) continue;
      for (int64_t k = 0; k < c_.batch; ++k) std::memcpy(final + state_at(d, k), (o == 1 ? s.h : s.c) + k * h, row);
    }
  }

  void step(int64_t d, int64_t t, const float* share, const Buffers& s, const float* weights, Pool* pool, const void* const* inputs,
            float* y) const {
    const int64_t h = c_.hidden, gh = c_.gates * h;
    const bool apart = c_.cell == Cell::GRU && c_.linear_before_reset;
    Epilogue e;
    if (apart) e.bias = s.bias_r;
    else e.residual = share;
    if (c_.cell == Cell::RNN) e.act = Act::TANH;
    first_.run(first_blocks_, weights, c_.batch, s.gates, gh, e, pool, s.staged, MatrixRows{s.h, h});
    const auto* lengths = c_.lengths ? static_cast<const int32_t*>(inputs[4]) : nullptr;
    if (split_) {
      for (int64_t b = 0; b < c_.batch; ++b)
        each([&](int64_t j, auto get, auto put) {
          const VF r = vsigmoid(get(s.gates + b * gh + h + j));
          put(s.reset + b * h + j, r * get(s.h + b * h + j));
        });
      Epilogue e2;
      e2.residual = share + 2 * h;
      second_.run(second_blocks_, weights + round_up_64(first_.floats()), c_.batch, s.gates + 2 * h, gh, e2, pool, s.staged,
                  MatrixRows{s.reset, h});
    }
    for (int64_t b = 0; b < c_.batch; ++b) {
      float* out = y != nullptr ? y + y_at(t, d, b) : nullptr;
      if (lengths != nullptr && t >= lengths[b]) {
        if (out != nullptr) std::memset(out, 0, static_cast<size_t>(h) * sizeof(float));
        continue;
      }
      const float* g = s.gates + b * gh;
      if (c_.cell == Cell::LSTM) lstm(g, c_.peephole ? static_cast<const float*>(inputs[7]) + d * 3 * h : nullptr, s.h + b * h, s.c + b * h);
      else if (c_.cell == Cell::GRU) gru(g, share + b * gh, s.h + b * h);
      else std::memcpy(s.h + b * h, g, static_cast<size_t>(h) * sizeof(float));
      if (out != nullptr) std::memcpy(out, s.h + b * h, static_cast<size_t>(h) * sizeof(float));
    }
  }

  // body(offset, get, put) over the hidden size, the last vector partial.
  template <class Body>
  MNNPY_INLINE void each(Body&& body) const {
    int64_t j = 0;
    for (; j + W <= c_.hidden; j += W)
      body(j, [](const float* p) { return load(p); }, [](float* p, VF v) { store(p, v); });
    if (j < c_.hidden) {
      const int lanes = static_cast<int>(c_.hidden - j);
      body(j, [lanes](const float* p) { return load_partial(p, lanes); }, [lanes](float* p, VF v) { store_partial(p, v, lanes); });
    }
  }

  // Gates i, o, f, c; peepholes i, o, f.
  void lstm(const float* g, const float* p, float* hs, float* cs) const {
    const int64_t h = c_.hidden;
    each([&](int64_t j, auto get, auto put) {
      const VF c = get(cs + j);
      VF gi = get(g + j), go = get(g + h + j), gf = get(g + 2 * h + j);
      if (p != nullptr) {
        gi += get(p + j) * c;
        gf += get(p + 2 * h + j) * c;
      }
      const VF i = vsigmoid(gi);
      const VF f = c_.input_forget ? 1.0f - i : vsigmoid(gf);
      const VF fresh = f * c + i * vtanh(get(g + 3 * h + j));
      if (p != nullptr) go += get(p + h + j) * fresh;
      put(cs + j, fresh);
      put(hs + j, vsigmoid(go) * vtanh(fresh));
    });
  }

  // Gates z, r, h; with linear_before_reset `g` holds only the recurrent share.
  void gru(const float* g, const float* share, float* hs) const {
    const int64_t h = c_.hidden;
    each([&](int64_t j, auto get, auto put) {
      VF z, candidate;
      if (c_.linear_before_reset) {
        z = vsigmoid(get(g + j) + get(share + j));
        const VF r = vsigmoid(get(g + h + j) + get(share + h + j));
        candidate = vtanh(get(share + 2 * h + j) + r * get(g + 2 * h + j));
      } else {
        z = vsigmoid(get(g + j));
        candidate = vtanh(get(g + 2 * h + j));
      }
      const VF before = get(hs + j);
      put(hs + j, candidate + z * (before - candidate));
    });
  }

  Config c_;
  Product input_, first_, second_;
  Blocking input_blocks_, tail_blocks_, first_blocks_, second_blocks_;
  size_t staged_bytes_ = 0;  // per thread
  Floats packed_;
  int64_t block_;
  bool split_, parallel_steps_, constant_ = false, low_;
};

bool default_activations(const NodeDesc& node, Cell cell, int64_t directions) {
  const auto names = node.strings("activations");
  if (names.empty()) return true;
  const std::vector<std::string> wanted = cell == Cell::LSTM  ? std::vector<std::string>{"sigmoid", "tanh", "tanh"}
                                          : cell == Cell::GRU ? std::vector<std::string>{"sigmoid", "tanh"}
                                                              : std::vector<std::string>{"tanh"};
  if (cell != Cell::RNN && names.size() != wanted.size() * static_cast<size_t>(directions)) return false;
  for (size_t k = 0; k < names.size() && k < wanted.size() * static_cast<size_t>(directions); ++k) {
    std::string lower = names[k];
    for (char& ch : lower) ch = static_cast<char>(std::tolower(static_cast<unsigned char>(ch)));
    if (lower != wanted[k % wanted.size()]) return false;
  }
  return true;
}

template <Cell C>
std::unique_ptr<Kernel> make_recurrent(const NodeDesc& node, const BuildContext& ctx) {
  constexpr size_t kMost = C == Cell::LSTM ? 8 : 6;
  if (node.inputs.size() < 3 || node.inputs.size() > kMost || node.outputs.empty()) return decline(ctx, "takes X, W, R and options");
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    const TensorDesc& t = node.inputs[k];
    if (t.present && t.dtype != (k == 4 ? DType::I32 : DType::F32)) return decline(ctx, "f32 only, with i32 lengths");
  }
  const TensorDesc &x = node.inputs[0], &w = node.inputs[1], &r = node.inputs[2];
  if (x.rank() != 3 || w.rank() != 3 || r.rank() != 3) return decline(ctx, "X, W and R have rank 3");
  const auto has = [&](size_t k) { return node.inputs.size() > k && node.inputs[k].present; };
  Config c;
  c.cell = C;
  c.gates = C == Cell::LSTM ? 4 : C == Cell::GRU ? 3 : 1;
  c.batch_first = node.i("layout", 0) != 0;
  c.steps = x.shape[c.batch_first ? 1 : 0], c.batch = x.shape[c.batch_first ? 0 : 1], c.input = x.shape[2];
  c.directions = w.shape[0], c.hidden = r.shape[2];
  const std::string direction = node.s("direction", "forward");
  c.reverse = direction == "reverse";
  c.input_forget = node.i("input_forget", 0) != 0;
  c.linear_before_reset = node.i("linear_before_reset", 0) != 0;
  c.bias = has(3), c.lengths = has(4), c.initial_h = has(5), c.initial_c = has(6), c.peephole = has(7);
  c.outputs = static_cast<int>(node.outputs.size());
  const int64_t gh = c.gates * c.hidden;
  if (c.directions != (direction == "bidirectional" ? 2 : 1)) return decline(ctx, "W does not fit the direction");
  if (w.shape != Dims{c.directions, gh, c.input} || r.shape != Dims{c.directions, gh, c.hidden}) return decline(ctx, "W or R does not fit X");
  const int64_t state = c.directions * c.batch * c.hidden;
  if ((c.bias && node.inputs[3].count() != c.directions * 2 * gh) || (c.lengths && node.inputs[4].count() != c.batch) ||
      (c.initial_h && node.inputs[5].count() != state) || (c.initial_c && node.inputs[6].count() != state) ||
      (c.peephole && node.inputs[7].count() != c.directions * 3 * c.hidden))
    return decline(ctx, "B, lengths, states or P do not fit");
  if (node.outputs.size() > (C == Cell::LSTM ? 3u : 2u)) return decline(ctx, "too many outputs");
  if (node.outputs[0].present && node.outputs[0].count() != c.steps * state) return decline(ctx, "Y has another size");
  for (size_t k = 1; k < node.outputs.size(); ++k)
    if (node.outputs[k].present && node.outputs[k].count() != state) return decline(ctx, "a final state has another size");
  if (node.f("clip", 0.0) != 0.0) return decline(ctx, "clip is not built in");
  if (!node.floats("activation_alpha").empty() || !node.floats("activation_beta").empty()) return decline(ctx, "default activations only");
  if (!default_activations(node, C, c.directions)) return decline(ctx, "default activations only");
  const bool low = MNNPY_ISA == 2 && c.hidden >= 8 && wants_bf16(node, ctx);
  return std::make_unique<Recurrent>(node, ctx, c, low);
}

}  // namespace

MNNPY_REGISTER("LSTM", make_recurrent<Cell::LSTM>);
MNNPY_REGISTER("GRU", make_recurrent<Cell::GRU>);
MNNPY_REGISTER("RNN", make_recurrent<Cell::RNN>);

}  // namespace mnnpy::MNNPY_NS
