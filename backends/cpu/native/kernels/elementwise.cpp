// The element-wise machine: a straight-line program over registers, run block by block out of L1.
//
// Inputs broadcast to the output's shape by NumPy's rules. The axes that all inputs walk alike are merged first; then
// either the whole tensor is one run of elements (inputs of the output's shape are read in place, short broadcast
// patterns are laid out once per thread), or it is walked row by row, where each input is a run or one value.
#include <cstring>
#include <memory>
#include <string>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

constexpr int64_t kShortRow = 32, kMaxPeriod = 512;

enum class Feed { UNUSED, DIRECT, FIXED, PATTERN, ROW, ROW_VALUE };

struct Source {
  Feed feed = Feed::UNUSED;
  size_t size = 4;       // bytes of a stored element
  size_t width = 4;      // bytes of a computed element
  LoadFn load = nullptr;
  int slot = -1;         // scratch slot; -1: read in place
  int64_t period = 0;    // FIXED: elements of the pattern (1: a scalar)
  Shape8 stride;         // by merged axis, in elements
};

// Its slot is filled once for many blocks.
bool keeps(const Source& s) { return s.feed == Feed::FIXED || s.feed == Feed::ROW_VALUE; }

struct Instruction {
  int load = -1;  // input to bring into its slot, or
  BlockFn fn = nullptr;
  int a = -1, b = -1, c = -1, y = -1;  // registers
  double alpha = 0, beta = 0;
  StoreFn round_store = nullptr;  // round the result to its narrow type
  LoadFn round_load = nullptr;
  StoreFn out_store = nullptr;
  int output = -1;     // the result goes (also) to this output
  bool direct = false;  // … by being computed there
};

struct Register {
  DType type = DType::F32;
  int slot = -1;
  int last = -1;  // last instruction that reads it
};

struct Late {  // results that are copied or stored at the end of a block
  int reg, output;
  StoreFn store;
  size_t width;
};

void fill_block(void* to, const void* value, size_t width, int64_t n) {
  switch (width) {
    case 1: std::memset(to, *static_cast<const uint8_t*>(value), static_cast<size_t>(n)); return;
    case 2: std::fill_n(static_cast<uint16_t*>(to), n, *static_cast<const uint16_t*>(value)); return;
    case 4: std::fill_n(static_cast<uint32_t*>(to), n, *static_cast<const uint32_t*>(value)); return;
    default: std::fill_n(static_cast<uint64_t*>(to), n, *static_cast<const uint64_t*>(value));
  }
}

void cube_f32(const BlockArgs& q) {
  const float* x = static_cast<const float*>(q.a);
  float* y = static_cast<float*>(q.y);
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) y[k] = x[k] * x[k] * x[k];
}

class Elementwise final : public Kernel {
 public:
  bool build(const NodeDesc& node, const BuildContext& ctx);
  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override;
  size_t scratch_bytes(int threads) const override { return slot_bytes_ * slots_ * static_cast<size_t>(threads); }
  bool in_place(int input) const override { return can_share_[input]; }
  std::string algorithm() const override { return std::string(by_rows_ ? "rows" : "flat") + "/" + std::to_string(code_.size()); }

 private:
  struct Walk;
  bool broadcast(const NodeDesc& node, const BuildContext& ctx);
  void choose_feeds(const NodeDesc& node);
  bool translate(const NodeDesc& node, const BuildContext& ctx);
  void shortcut_power(const NodeDesc& node, int a, int b, Instruction& step, double& cost) const;
  void place_results(const NodeDesc& node);
  void allocate();
  void prepare(const void* const* inputs, std::byte* scratch, int64_t n) const;
  void row_values(const void* const* inputs, const int64_t* base, std::byte* scratch, int64_t n) const;
  void materialise(const Source& s, const std::byte* in, std::byte* to, int64_t at, int64_t n) const;
  void block(const void** reg, const void* const* inputs, void* const* outputs, std::byte* scratch, const int64_t* at,
             int64_t out_at, int64_t n) const;

  std::vector<Source> sources_;
  std::vector<Register> registers_;
  std::vector<Instruction> code_;
  std::vector<int64_t> results_;
  std::vector<size_t> out_size_;
  std::vector<Late> late_;
  std::vector<char> can_share_;
  Shape8 dims_;  // merged axes of the output
  int64_t count_ = 0, block_ = kBlock;
  bool by_rows_ = false;
  size_t slots_ = 0, slot_bytes_ = 0;
  double cost_ = 0;
  StoreMode mode_;
};

bool Elementwise::broadcast(const NodeDesc& node, const BuildContext& ctx) {
  const Dims& out = node.outputs[0].shape;
  const int rank = static_cast<int>(out.size());
  if (rank > kMaxRank) return decline(ctx, "more than 15 axes"), false;
  sources_.resize(node.inputs.size());
  std::vector<Shape8> strides(node.inputs.size());
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    const Dims& shape = node.inputs[k].shape;
    const int offset = rank - static_cast<int>(shape.size());
    if (offset < 0) return decline(ctx, "an input has more axes than the output"), false;
    int64_t step = 1;
    for (int j = static_cast<int>(shape.size()) - 1; j >= 0; --j) {
      if (shape[j] != 1 && shape[j] != out[offset + j]) return decline(ctx, "the inputs do not broadcast to the output"), false;
      strides[k][offset + j] = shape[j] == 1 ? 0 : step;
      step *= shape[j];
    }
  }
  // Merge axis j into the one before where every input continues.
  dims_.rank = 0;
  for (int j = 0; j < rank; ++j) {
    if (out[j] == 1) continue;
    bool merge = dims_.rank > 0;
    for (size_t k = 0; merge && k < strides.size(); ++k) merge = sources_[k].stride[dims_.rank - 1] == strides[k][j] * out[j];
    if (!merge) ++dims_.rank;
    dims_[dims_.rank - 1] = merge ? dims_[dims_.rank - 1] * out[j] : out[j];
    for (size_t k = 0; k < strides.size(); ++k) sources_[k].stride[dims_.rank - 1] = strides[k][j];
  }
  if (dims_.rank == 0) {
    dims_.rank = 1;
    dims_[0] = 1;
    for (auto& s : sources_) s.stride[0] = 1;  // one element: as good as dense
  }
  return true;
}

void Elementwise::choose_feeds(const NodeDesc& node) {
  const int last = dims_.rank - 1;
  bool all_fixed = true;
  for (size_t k = 0; k < sources_.size(); ++k) {
    Source& s = sources_[k];
    const DType t = node.inputs[k].dtype;
    s.size = dtype_size(t);
    s.width = dtype_size(compute_type(t));
    s.load = load_op(t);
    // Zero strides outside, dense inside: a pattern that repeats.
    int64_t period = 1;
    int j = last;
    for (; j >= 0 && s.stride[j] == period; --j) period *= dims_[j];
    bool fixed = j < 0 || period <= kMaxPeriod;
    if (j >= 0)
      for (int i = j; i >= 0; --i) fixed = fixed && s.stride[i] == 0;
    s.feed = j < 0 ? Feed::DIRECT : fixed ? Feed::FIXED : Feed::PATTERN;
    s.period = period;
    all_fixed = all_fixed && s.feed != Feed::PATTERN;
  }
  const int64_t row = dims_[last];
  by_rows_ = dims_.rank > 1 && row >= kShortRow && !all_fixed;
  if (by_rows_) {
    for (Source& s : sources_) {
      bool scalar = true;
      for (int j = 0; j <= last; ++j) scalar = scalar && s.stride[j] == 0;
      s.feed = scalar ? Feed::FIXED : s.stride[last] == 0 ? Feed::ROW_VALUE : Feed::ROW;
      s.period = 1;
    }
    return;
  }
  // Whole periods per block, so that a block always starts at the beginning of every pattern.
  int64_t common = 1;
  for (Source& s : sources_)
    if (s.feed == Feed::FIXED) {
      if (common % s.period == 0) continue;
      if (s.period % common == 0) common = s.period;
      else s.feed = Feed::PATTERN;
    }
  block_ = kBlock / common * common;
}

void Elementwise::shortcut_power(const NodeDesc& node, int a, int b, Instruction& step, double& cost) const {
  if (b >= static_cast<int>(node.inputs.size())) return;
  const TensorDesc& e = node.inputs[b];
  const DType t = registers_[a].type;
  if (e.constant == nullptr || e.count() != 1 || compute_type(t) == DType::I64 || (compute_type(t) != DType::F32 && t != DType::F64)) return;
  double v;
  if (LoadFn load = load_op(e.dtype)) {
    float f;
    load(e.constant, &f, 1);
    v = f;
  } else {
    v = t == DType::F64 ? *static_cast<const double*>(e.constant) : *static_cast<const float*>(e.constant);
  }
  BlockOp op;
  if (v == 2) op = unary_op("Square", compute_type(t), 0, 0);
  else if (v == 0.5) op = unary_op("Sqrt", compute_type(t), 0, 0);
  else if (v == -1) op = unary_op("Reciprocal", compute_type(t), 0, 0);
  else if (v == 3 && compute_type(t) == DType::F32) op = {cube_f32, 1, false};
  if (op.fn == nullptr) return;
  step.fn = op.fn;
  step.b = -1;
  cost = op.cost;
}

bool Elementwise::translate(const NodeDesc& node, const BuildContext& ctx) {
  const auto ops = node.strings("ops"), types = node.strings("dtypes");
  const auto args = node.ints("args");
  const auto params = node.floats("params");
  const size_t n_in = node.inputs.size(), n = ops.size();
  if (args.size() != 3 * n || types.size() != n || params.size() != 2 * n) return decline(ctx, "ops, args, dtypes and params differ in length"), false;
  registers_.resize(n_in + n);
  for (size_t k = 0; k < n_in; ++k) registers_[k].type = node.inputs[k].dtype;
  std::vector<char> loaded(n_in, 0);
  for (size_t k = 0; k < n; ++k) {
    Instruction step;
    step.y = static_cast<int>(n_in + k);
    step.alpha = params[2 * k];
    step.beta = params[2 * k + 1];
    int* operand[3] = {&step.a, &step.b, &step.c};
    for (int j = 0; j < 3; ++j) {
      const int64_t r = args[3 * k + j];
      if (r < -1 || r >= step.y) return decline(ctx, "an argument is no earlier register"), false;
      *operand[j] = static_cast<int>(r);
    }
    const DType type = registers_[step.y].type = dtype_from_name(types[k]);
    if (step.a < 0) return decline(ctx, "an operation has no argument"), false;
    const DType in = registers_[step.a].type;
    const char* name = ops[k].c_str();
    BlockOp op;
    if (ops[k] == "Select") {
      if (step.c < 0 || step.b < 0 || registers_[step.b].type != type || registers_[step.c].type != type || dtype_size(in) != 1)
        return decline(ctx, "Select takes a bool and two operands of the result's type"), false;
      op = {select_op(compute_type(type)), 1, true};
    } else if (ops[k] == "Convert") {
      op = convert_op(in, type);
    } else if (step.b >= 0) {
      if (registers_[step.b].type != in) return decline(ctx, "operands of one operation differ in dtype"), false;
      op = binary_op(name, compute_type(in));
    } else {
      op = unary_op(name, compute_type(in), step.alpha, step.beta);
    }
    if (op.fn == nullptr) {
      if (ctx.why != nullptr) *ctx.why = ops[k] + " is not defined for " + dtype_name(in);
      return false;
    }
    step.fn = op.fn;
    double cost = op.cost;
    if (ops[k] == "Pow") shortcut_power(node, step.a, step.b, step, cost);
    // ShiftRight and Div of sub-byte types and all inexact results are rounded (wrapped) to the narrow type.
    if (!op.exact && compute_type(type) != type) {
      step.round_store = store_op(type);
      step.round_load = load_op(type);
      cost += 2;
    }
    for (int j = 0; j < 3; ++j) {
      const int r = *operand[j];
      if (r >= 0 && r < static_cast<int>(n_in) && !loaded[r]) {
        loaded[r] = 1;
        Instruction bring;
        bring.load = r;
        code_.push_back(bring);
      }
    }
    cost_ += cost;
    code_.push_back(step);
  }
  for (size_t k = 0; k < n_in; ++k)
    if (!loaded[k]) sources_[k].feed = Feed::UNUSED;
  return true;
}

void Elementwise::place_results(const NodeDesc& node) {
  const int n_in = static_cast<int>(sources_.size());
  for (size_t i = 0; i < code_.size(); ++i)
    for (int r : {code_[i].a, code_[i].b, code_[i].c})
      if (r >= 0) registers_[r].last = static_cast<int>(i);
  // The last instruction that looks at an input: results written after it may overwrite inputs.
  int inputs_until = -1;
  for (int k = 0; k < n_in; ++k) inputs_until = std::max(inputs_until, registers_[k].last);
  std::vector<char> taken(registers_.size(), 0);
  for (size_t o = 0; o < results_.size(); ++o) {
    const int r = static_cast<int>(results_[o]);
    const DType t = node.outputs[o].dtype;
    StoreFn store = store_op(t);
    Instruction* maker = nullptr;
    int at = 0;
    for (size_t i = 0; i < code_.size(); ++i)
      if (code_[i].y == r) maker = &code_[i], at = static_cast<int>(i);
    if (maker != nullptr && !taken[r] && store == nullptr && at >= inputs_until) {
      maker->output = static_cast<int>(o);
      maker->direct = true;
      taken[r] = 1;
    } else {
      if (maker != nullptr && registers_[r].last < 0 && store != nullptr) maker->round_store = nullptr;  // stored only: rounded then
      registers_[r].last = static_cast<int>(code_.size());
      late_.push_back({r, static_cast<int>(o), store, dtype_size(compute_type(t))});
    }
  }
}

// Linear scan over the straight line. A result may take the slot of an operand that dies with it.
void Elementwise::allocate() {
  std::vector<int> free;
  auto take = [&] {
    if (free.empty()) return static_cast<int>(slots_++);
    const int s = free.back();
    free.pop_back();
    return s;
  };
  size_t width = 1;
  for (Source& s : sources_) {
    if (keeps(s)) s.slot = static_cast<int>(slots_++);
    if (s.feed != Feed::UNUSED && s.feed != Feed::DIRECT) width = std::max({width, s.width, s.size});
    if (s.load != nullptr) width = std::max(width, s.width);
  }
  const int n_in = static_cast<int>(sources_.size());
  auto width_of = [&](int r) { return dtype_size(compute_type(registers_[r].type)); };
  auto release = [&](int r, int i) {
    if (r < 0 || registers_[r].last != i || registers_[r].slot < 0) return;
    if (r < n_in && keeps(sources_[r])) return;
    free.push_back(registers_[r].slot);
    registers_[r].slot = -1 - registers_[r].slot - 1;  // released: -2 - slot
  };
  for (size_t i = 0; i < code_.size(); ++i) {
    Instruction& step = code_[i];
    const int at = static_cast<int>(i);
    if (step.load >= 0) {
      Source& s = sources_[step.load];
      if (!keeps(s) && (s.load != nullptr || s.feed == Feed::PATTERN)) s.slot = take();
      registers_[step.load].slot = s.slot;
      continue;
    }
    const bool same = width_of(step.a) == width_of(step.y) && (step.b < 0 || width_of(step.b) == width_of(step.y)) && step.c < 0;
    if (same)
      for (int r : {step.a, step.b}) release(r, at);
    width = std::max(width, width_of(step.y));
    if (!step.direct) registers_[step.y].slot = take();
    for (int r : {step.a, step.b, step.c}) release(r, at);
  }
  for (Register& r : registers_)
    if (r.slot <= -2) r.slot = -2 - r.slot;
  if (slots_ > 6 && !by_rows_ && block_ > 512 && block_ % 2 == 0 && block_ == kBlock) {
    bool scalars = true;  // patterns need whole periods
    for (const Source& s : sources_) scalars = scalars && (s.feed != Feed::FIXED || s.period == 1);
    if (scalars) block_ = 512;
  }
  // Not a multiple of 4 KiB: equal low address bits of loads and stores would look like dependences.
  slot_bytes_ = align64(static_cast<size_t>(kBlock) * width) + 192;
}

bool Elementwise::build(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.empty() || node.outputs.empty()) return decline(ctx, "no operands"), false;
  for (auto* list : {&node.inputs, &node.outputs})
    for (const TensorDesc& t : *list)
      if (!t.present || is_complex(t.dtype)) return decline(ctx, "absent or complex operands"), false;
  for (const TensorDesc& t : node.outputs)
    if (t.shape != node.outputs[0].shape) return decline(ctx, "the outputs differ in shape"), false;
  count_ = node.outputs[0].count();
  results_ = node.ints("results");
  if (results_.size() != node.outputs.size()) return decline(ctx, "results and outputs differ in number"), false;
  mode_ = store_mode(node);
  if (!broadcast(node, ctx)) return false;
  choose_feeds(node);
  if (!translate(node, ctx)) return false;
  for (size_t o = 0; o < results_.size(); ++o) {
    if (results_[o] < 0 || results_[o] >= static_cast<int64_t>(registers_.size())) return decline(ctx, "a result is no register"), false;
    if (registers_[results_[o]].type != node.outputs[o].dtype) return decline(ctx, "a result's dtype is not the output's"), false;
    if (results_[o] < static_cast<int64_t>(sources_.size())) return decline(ctx, "a result is an input"), false;
    out_size_.push_back(dtype_size(node.outputs[o].dtype));
  }
  place_results(node);
  allocate();
  for (size_t k = 0; k < sources_.size(); ++k)
    can_share_.push_back(node.inputs[k].shape == node.outputs[0].shape && sources_[k].size == out_size_[0] &&
                         node.outputs.size() == 1);
  return true;
}

// Fills the slots that keep their content for all blocks.
void Elementwise::prepare(const void* const* inputs, std::byte* scratch, int64_t n) const {
  for (size_t k = 0; k < sources_.size(); ++k) {
    const Source& s = sources_[k];
    if (s.feed != Feed::FIXED) continue;
    std::byte* to = scratch + slot_bytes_ * static_cast<size_t>(s.slot);
    if (s.load != nullptr) s.load(inputs[k], to, s.period);
    else std::memcpy(to, inputs[k], static_cast<size_t>(s.period) * s.width);
    if (s.period == 1) {
      uint64_t value = 0;
      std::memcpy(&value, to, s.width);
      fill_block(to, &value, s.width, n);
      continue;
    }
    for (int64_t have = s.period; have < n; have *= 2)
      std::memcpy(to + have * s.width, to, static_cast<size_t>(std::min(have, n - have)) * s.width);
  }
}

// Inputs with one value per row: that of the row at hand.
void Elementwise::row_values(const void* const* inputs, const int64_t* base, std::byte* scratch, int64_t n) const {
  for (size_t k = 0; k < sources_.size(); ++k) {
    const Source& s = sources_[k];
    if (s.feed != Feed::ROW_VALUE) continue;
    const auto* from = static_cast<const std::byte*>(inputs[k]) + base[k] * static_cast<int64_t>(s.size);
    uint64_t value = 0;
    if (s.load != nullptr) s.load(from, &value, 1);
    else std::memcpy(&value, from, s.width);
    fill_block(scratch + slot_bytes_ * static_cast<size_t>(s.slot), &value, s.width, n);
  }
}

// Elements [at, at + n) of a broadcast input, run by run.
void Elementwise::materialise(const Source& s, const std::byte* in, std::byte* to, int64_t at, int64_t n) const {
  const int last = dims_.rank - 1;
  int64_t index[kMaxRank + 1], offset = 0, rest = at;
  for (int j = last; j >= 0; --j) {
    index[j] = rest % dims_[j];
    rest /= dims_[j];
    offset += index[j] * s.stride[j];
  }
  while (n > 0) {
    const int64_t run = std::min(n, dims_[last] - index[last]);
    if (s.stride[last] == 0) {
      uint64_t value = 0;
      std::memcpy(&value, in + offset * s.size, s.size);
      fill_block(to, &value, s.size, run);
    } else {
      std::memcpy(to, in + offset * s.size, static_cast<size_t>(run) * s.size);
    }
    to += run * s.size;
    n -= run;
    offset -= index[last] * s.stride[last];
    index[last] = 0;
    for (int j = last - 1; j >= 0; --j) {
      offset += s.stride[j];
      if (++index[j] < dims_[j]) break;
      offset -= index[j] * s.stride[j];
      index[j] = 0;
    }
  }
}

void Elementwise::block(const void** reg, const void* const* inputs, void* const* outputs, std::byte* scratch, const int64_t* at,
                        int64_t out_at, int64_t n) const {
  alignas(64) std::byte narrow[kBlock * 8];
  auto slot = [&](int k) { return scratch + slot_bytes_ * static_cast<size_t>(k); };
  for (const Instruction& step : code_) {
    if (step.load >= 0) {
      const Source& s = sources_[step.load];
      if (keeps(s)) {
        reg[step.load] = slot(s.slot);
        continue;
      }
      const auto* in = static_cast<const std::byte*>(inputs[step.load]);
      const std::byte* from = in + at[step.load] * s.size;
      if (s.feed == Feed::PATTERN) {
        std::byte* to = s.load != nullptr ? narrow : slot(s.slot);
        materialise(s, in, to, out_at, n);
        if (s.load != nullptr) s.load(to, slot(s.slot), n);
      } else if (s.load != nullptr) {
        s.load(from, slot(s.slot), n);
      } else {
        reg[step.load] = from;
        continue;
      }
      reg[step.load] = slot(s.slot);
      continue;
    }
    void* y = step.direct ? static_cast<std::byte*>(outputs[step.output]) + out_at * static_cast<int64_t>(out_size_[step.output])
                          : slot(registers_[step.y].slot);
    step.fn({reg[step.a], step.b < 0 ? nullptr : reg[step.b], step.c < 0 ? nullptr : reg[step.c], y, n, step.alpha, step.beta});
    if (step.round_store != nullptr) {
      step.round_store(y, narrow, n, mode_);
      step.round_load(narrow, y, n);
    }
    reg[step.y] = y;
  }
  for (const Late& l : late_) {
    void* y = static_cast<std::byte*>(outputs[l.output]) + out_at * static_cast<int64_t>(out_size_[l.output]);
    if (l.store != nullptr) l.store(reg[l.reg], y, n, mode_);
    else std::memcpy(y, reg[l.reg], static_cast<size_t>(n) * l.width);
  }
}

void Elementwise::run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const {
  if (count_ == 0) return;
  const int n_in = static_cast<int>(sources_.size());
  const int last = dims_.rank - 1;
  const int64_t row = by_rows_ ? dims_[last] : count_;
  int64_t step = std::min(block_, row);
  const int64_t segments = (row + step - 1) / step, rows = count_ / row;
  if (by_rows_) step = ((row + segments - 1) / segments + 63) / 64 * 64;  // rows fall into equal parts
  share(ctx, rows * segments, static_cast<double>(step) * cost_, [&](int64_t begin, int64_t end, int slot) {
    std::byte* scratch = ctx.scratch + slot_bytes_ * slots_ * static_cast<size_t>(slot);
    prepare(inputs, scratch, step);
    const void* small[64];
    std::vector<const void*> large;
    const void** reg = small;
    if (registers_.size() > 64) {
      large.resize(registers_.size());
      reg = large.data();
    }
    int64_t near[32] = {}, index[kMaxRank + 1] = {};
    std::vector<int64_t> far;
    int64_t* at = near;
    if (n_in > 32) {
      far.resize(static_cast<size_t>(n_in));
      at = far.data();
    }
    if (!by_rows_) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t from = k * step, n = std::min(step, count_ - from);
        for (int i = 0; i < n_in; ++i) at[i] = from;
        block(reg, inputs, outputs, scratch, at, from, n);
      }
      return;
    }
    int64_t r = begin / segments, segment = begin % segments;
    int64_t rest = r;
    for (int j = last - 1; j >= 0; --j) {
      index[j] = rest % dims_[j];
      rest /= dims_[j];
    }
    std::vector<int64_t> base(static_cast<size_t>(n_in), 0);
    for (int i = 0; i < n_in; ++i)
      for (int j = 0; j < last; ++j) base[i] += index[j] * sources_[i].stride[j];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t from = segment * step, n = std::min(step, row - from);
      if (k == begin || segment == 0) row_values(inputs, base.data(), scratch, step);
      for (int i = 0; i < n_in; ++i) at[i] = base[i] + from * sources_[i].stride[last];
      block(reg, inputs, outputs, scratch, at, r * row + from, n);
      if (++segment < segments) continue;
      segment = 0;
      ++r;
      for (int j = last - 1; j >= 0; --j) {
        ++index[j];
        for (int i = 0; i < n_in; ++i) base[i] += sources_[i].stride[j];
        if (index[j] < dims_[j]) break;
        for (int i = 0; i < n_in; ++i) base[i] -= index[j] * sources_[i].stride[j];
        index[j] = 0;
      }
    }
  });
}

std::unique_ptr<Kernel> make_elementwise(const NodeDesc& node, const BuildContext& ctx) {
  auto kernel = std::make_unique<Elementwise>();
  if (!kernel->build(node, ctx)) return nullptr;
  return kernel;
}

// The plain ops are programs of one instruction.
std::unique_ptr<Kernel> make_single(const NodeDesc& node, const BuildContext& ctx, const std::string& op, size_t operands) {
  if (node.inputs.size() != operands || node.outputs.size() != 1) return decline(ctx, "wrong number of operands");
  NodeDesc program = node;
  const auto n = static_cast<int64_t>(operands);
  program.attrs["ops"] = std::vector<std::string>{op};
  program.attrs["args"] = std::vector<int64_t>{0, n > 1 ? 1 : -1, n > 2 ? 2 : -1};
  program.attrs["dtypes"] = std::vector<std::string>{dtype_name(node.outputs[0].dtype)};
  program.attrs["params"] = std::vector<double>{node.f("alpha", 0), node.f("beta", 0)};
  program.attrs["results"] = std::vector<int64_t>{n};
  return make_elementwise(program, ctx);
}

std::unique_ptr<Kernel> make_unary(const NodeDesc& node, const BuildContext& ctx) { return make_single(node, ctx, node.s("fn", ""), 1); }
std::unique_ptr<Kernel> make_binary(const NodeDesc& node, const BuildContext& ctx) { return make_single(node, ctx, node.s("fn", ""), 2); }
std::unique_ptr<Kernel> make_select(const NodeDesc& node, const BuildContext& ctx) { return make_single(node, ctx, "Select", 3); }

}  // namespace

MNNPY_REGISTER("Elementwise", make_elementwise);
MNNPY_REGISTER("Unary", make_unary);
MNNPY_REGISTER("Binary", make_binary);
MNNPY_REGISTER("Select", make_select);

}  // namespace mnnpy::MNNPY_NS
