// Reduce over any set of axes: neighbouring axes of one kind are merged; the innermost group decides whether rows are
// folded to one value or added up as columns. Few but large results are computed in parts.
#include <memory>
#include <string>

#include "kernels/elementwise.h"
#include "kernels/reduce.h"

namespace mnnpy::MNNPY_NS {
namespace {

class Reduce final : public Kernel {
 public:
  bool build(const NodeDesc& node, const BuildContext& ctx);
  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override;
  size_t scratch_bytes(int) const override { return parts_ > 1 ? static_cast<size_t>(parts_ * tasks_ * width_) * sizeof(Total) : 0; }
  std::string algorithm() const override { return by_columns_ ? "columns" : "rows"; }

 private:
  bool read_function(const NodeDesc& node, const BuildContext& ctx);
  void fold(const std::byte* in, int64_t task, int64_t part, int64_t n, Total* acc) const;
  void fold_line(const std::byte* x, int64_t from, int64_t to, int64_t n, Total* acc) const;
  void finish(const Total* acc, int64_t task, int64_t n, std::byte* out) const;
  int64_t task_width(int64_t task) const {
    return by_columns_ ? std::min(kColumns, inner_ - task % blocks_ * kColumns) : 1;
  }

  FoldOps ops_{};
  DType type_ = DType::F32;
  LoadFn load_ = nullptr;
  StoreFn store_ = nullptr;
  bool mean_ = false, root_ = false, extreme_ = false, by_columns_ = false;
  Shape8 kept_, kept_stride_, gone_, gone_stride_;  // groups outside the innermost loops
  int64_t inner_ = 1;                // columns, where the innermost group is kept
  int64_t line_ = 1, line_stride_ = 1;  // the reduced group that the innermost function walks
  int64_t combos_ = 1, reduced_ = 1, blocks_ = 1, tasks_ = 1, parts_ = 1, width_ = 1, count_ = 0, results_ = 0;
  size_t size_ = 4;
};

bool Reduce::read_function(const NodeDesc& node, const BuildContext& ctx) {
  const std::string fn = node.s("fn", "");
  Fold fold;
  if (fn == "Sum") fold = Fold::SUM;
  else if (fn == "Mean") fold = Fold::SUM, mean_ = true;
  else if (fn == "Max") fold = Fold::MAX, extreme_ = true;
  else if (fn == "Min") fold = Fold::MIN, extreme_ = true;
  else if (fn == "Prod") fold = Fold::PROD;
  else if (fn == "SumSquare") fold = Fold::SQUARES;
  else if (fn == "L1") fold = Fold::ABSOLUTES;
  else if (fn == "L2") fold = Fold::SQUARES, root_ = true;
  else return decline(ctx, "unknown fn"), false;
  type_ = node.inputs[0].dtype;
  ops_ = fold_ops(fold, compute_type(type_));
  if (ops_.row == nullptr) return decline(ctx, "no such reduction of this dtype"), false;
  load_ = load_op(type_);
  store_ = store_op(type_);
  size_ = dtype_size(type_);
  return true;
}

bool Reduce::build(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1 || node.inputs[0].dtype != node.outputs[0].dtype || is_complex(node.inputs[0].dtype))
    return decline(ctx, "takes one real operand"), false;
  const Dims& shape = node.inputs[0].shape;
  const int rank = static_cast<int>(shape.size());
  if (rank > kMaxRank) return decline(ctx, "more than 15 axes"), false;
  if (!read_function(node, ctx)) return false;
  bool gone[kMaxRank + 1] = {};
  for (int64_t a : node.ints("axes")) {
    const int axis = normal_axis(a, rank);
    if (axis < 0 || axis >= rank) return decline(ctx, "an axis is out of range"), false;
    gone[axis] = true;
  }
  count_ = node.inputs[0].count();
  results_ = node.outputs[0].count();
  // Groups from the inside out.
  Shape8 size, stride;
  bool kind[kMaxRank + 1] = {};
  int64_t step = 1;
  for (int k = rank - 1; k >= 0; --k) {
    if (gone[k]) reduced_ *= shape[k];
    if (shape[k] == 1) continue;
    if (size.rank > 0 && kind[size.rank - 1] == gone[k]) {
      size[size.rank - 1] *= shape[k];
    } else {
      kind[size.rank] = gone[k];
      size[size.rank] = shape[k];
      stride[size.rank++] = step;
    }
    step *= shape[k];
  }
  if (results_ * reduced_ != count_ && count_ != 0) return decline(ctx, "the output's shape does not fit"), false;
  int next = 0;
  by_columns_ = size.rank > 0 && !kind[0];
  if (by_columns_) inner_ = size[next++];
  if (next < size.rank && kind[next]) {
    line_ = size[next];
    line_stride_ = stride[next++];
  }
  for (int k = size.rank - 1; k >= next; --k) {
    Shape8& s = kind[k] ? gone_ : kept_;
    Shape8& t = kind[k] ? gone_stride_ : kept_stride_;
    s[s.rank++] = size[k];
    t[t.rank++] = stride[k];
    if (kind[k]) combos_ *= size[k];
  }
  width_ = by_columns_ ? std::min(kColumns, inner_) : 1;
  blocks_ = by_columns_ ? (inner_ + kColumns - 1) / kColumns : 1;
  tasks_ = blocks_;
  for (int k = 0; k < kept_.rank; ++k) tasks_ *= kept_[k];
  if (tasks_ > 0 && tasks_ < ctx.threads && count_ >= 131072 && ctx.threads > 1) {
    parts_ = (2 * ctx.threads + tasks_ - 1) / tasks_;
    parts_ = std::max<int64_t>(1, std::min(parts_, std::max(combos_, line_) / 16));
  }
  return true;
}

// Elements [from, to) of one line (a row, or rows of n columns).
void Reduce::fold_line(const std::byte* x, int64_t from, int64_t to, int64_t n, Total* acc) const {
  x += from * line_stride_ * static_cast<int64_t>(size_);
  if (load_ == nullptr) {
    if (by_columns_) ops_.columns(x, to - from, line_stride_, n, acc);
    else ops_.row(x, to - from, acc);
    return;
  }
  alignas(64) std::byte wide[4096 * 4];
  if (!by_columns_) {
    for (int64_t k = from; k < to; k += 4096) {
      const int64_t m = std::min<int64_t>(4096, to - k);
      load_(x + (k - from) * static_cast<int64_t>(size_), wide, m);
      ops_.row(wide, m, acc);
    }
    return;
  }
  const int64_t most = 4096 / n;
  const size_t element = dtype_size(compute_type(type_));
  for (int64_t k = from; k < to; k += most) {
    const int64_t rows = std::min(most, to - k);
    for (int64_t r = 0; r < rows; ++r)
      load_(x + (k - from + r) * line_stride_ * static_cast<int64_t>(size_), wide + static_cast<size_t>(r * n) * element, n);
    ops_.columns(wide, rows, n, n, acc);
  }
}

void Reduce::fold(const std::byte* in, int64_t task, int64_t part, int64_t n, Total* acc) const {
  ops_.start(acc, n);
  int64_t offset = task % blocks_ * kColumns, rest = task / blocks_;
  for (int k = kept_.rank - 1; k >= 0; --k) {
    offset += rest % kept_[k] * kept_stride_[k];
    rest /= kept_[k];
  }
  const bool split_combos = combos_ >= line_;
  const int64_t c0 = split_combos ? combos_ * part / parts_ : 0, c1 = split_combos ? combos_ * (part + 1) / parts_ : combos_;
  const int64_t l0 = split_combos ? 0 : line_ * part / parts_, l1 = split_combos ? line_ : line_ * (part + 1) / parts_;
  int64_t index[kMaxRank + 1] = {};
  rest = c0;
  for (int k = gone_.rank - 1; k >= 0; --k) {
    index[k] = rest % gone_[k];
    rest /= gone_[k];
    offset += index[k] * gone_stride_[k];
  }
  for (int64_t c = c0; c < c1; ++c) {
    fold_line(in + offset * static_cast<int64_t>(size_), l0, l1, n, acc);
    for (int k = gone_.rank - 1; k >= 0; --k) {
      offset += gone_stride_[k];
      if (++index[k] < gone_[k]) break;
      offset -= index[k] * gone_stride_[k];
      index[k] = 0;
    }
  }
}

void Reduce::finish(const Total* acc, int64_t task, int64_t n, std::byte* out) const {
  const int64_t at = task / blocks_ * inner_ + task % blocks_ * kColumns;
  std::byte* y = out + at * static_cast<int64_t>(size_);
  if (store_ == nullptr) {
    ops_.finish(acc, n, reduced_, mean_, root_, y);
    return;
  }
  alignas(64) std::byte wide[kColumns * 8];
  ops_.finish(acc, n, reduced_, mean_, root_, wide);
  if (extreme_ && reduced_ == 0 && is_sub_byte_int(type_)) {  // the ends of the narrow type, not those of its byte
    const int bits = type_ == DType::I2 || type_ == DType::U2 ? 2 : 4;
    const bool is_signed = type_ == DType::I2 || type_ == DType::I4;
    auto* v = reinterpret_cast<uint8_t*>(wide);
    for (int64_t k = 0; k < n; ++k) {
      const bool low = is_signed ? v[k] == 0x80 : v[k] == 0;
      v[k] = static_cast<uint8_t>(is_signed ? (low ? 1 << (bits - 1) : (1 << (bits - 1)) - 1) : low ? 0 : (1 << bits) - 1);
    }
  }
  store_(wide, y, n, {});
}

void Reduce::run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const {
  if (results_ == 0) return;
  const auto* in = static_cast<const std::byte*>(inputs[0]);
  auto* out = static_cast<std::byte*>(outputs[0]);
  const double cost = static_cast<double>(reduced_) * static_cast<double>(width_) * (load_ != nullptr ? 1.0 : 0.5) + 4;
  if (parts_ <= 1) {
    share(ctx, tasks_, cost, [&](int64_t begin, int64_t end, int) {
      Total acc[kColumns];
      for (int64_t t = begin; t < end; ++t) {
        const int64_t n = task_width(t);
        fold(in, t, 0, n, acc);
        finish(acc, t, n, out);
      }
    });
    return;
  }
  Total* partial = reinterpret_cast<Total*>(ctx.scratch);
  ctx.pool->parallel_for(tasks_ * parts_, [&](int64_t k, int) {
    const int64_t t = k / parts_;
    fold(in, t, k % parts_, task_width(t), partial + k * width_);
  });
  for (int64_t t = 0; t < tasks_; ++t) {
    Total* acc = partial + t * parts_ * width_;
    const int64_t n = task_width(t);
    for (int64_t p = 1; p < parts_; ++p) ops_.merge(acc + p * width_, n, acc);
    finish(acc, t, n, out);
  }
}

std::unique_ptr<Kernel> make_reduce(const NodeDesc& node, const BuildContext& ctx) {
  auto kernel = std::make_unique<Reduce>();
  if (!kernel->build(node, ctx)) return nullptr;
  return kernel;
}

}  // namespace

MNNPY_REGISTER("Reduce", make_reduce);

}  // namespace mnnpy::MNNPY_NS
