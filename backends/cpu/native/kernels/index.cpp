// Gather along an axis, and Scatter of rows.
#include <cstring>
#include <memory>
#include <string>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

// Throws for the first index outside [-size, size).
template <class I>
void check_indices(const I* index, int64_t n, int64_t size, const char* op, const std::string& name) {
  int bad = 0;
  for (int64_t k = 0; k < n; ++k) bad |= (static_cast<int64_t>(index[k]) < -size) | (static_cast<int64_t>(index[k]) >= size);
  if (!bad) return;
  for (int64_t k = 0; k < n; ++k)
    if (index[k] < -size || index[k] >= size)
      throw std::runtime_error(std::string(op) + " '" + name + "': index " + std::to_string(index[k]) + " is out of range for size " +
                               std::to_string(size));
}

struct Bytes16 {
  uint64_t a, b;
};

class Gather final : public Kernel {
 public:
  Gather(const NodeDesc& node, AxisSplit s)
      : name_(node.name), split_(s), picks_(node.inputs[1].count()), wide_(node.inputs[1].dtype == DType::I64),
        row_(static_cast<size_t>(s.inner) * dtype_size(node.inputs[0].dtype)) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* x = static_cast<const std::byte*>(inputs[0]);
    auto* y = static_cast<std::byte*>(outputs[0]);
    if (wide_) run_index(ctx, x, static_cast<const int64_t*>(inputs[1]), y);
    else run_index(ctx, x, static_cast<const int32_t*>(inputs[1]), y);
  }
  std::string algorithm() const override { return row_ <= 16 ? "elements" : "rows"; }

 private:
  template <class I>
  void run_index(const RunContext& ctx, const std::byte* x, const I* index, std::byte* y) const {
    check_indices(index, picks_, split_.n, "Gather", name_);
    if (row_ == 0) return;
    share(ctx, split_.outer * picks_, 2 + static_cast<double>(row_) / 8, [&](int64_t begin, int64_t end, int) {
      switch (row_) {
        case 1: return rows<uint8_t>(x, index, y, begin, end);
        case 2: return rows<uint16_t>(x, index, y, begin, end);
        case 4: return rows<uint32_t>(x, index, y, begin, end);
        case 8: return rows<uint64_t>(x, index, y, begin, end);
        case 16: return rows<Bytes16>(x, index, y, begin, end);
        default: break;
      }
      int64_t o = begin / picks_, k = begin % picks_;
      for (int64_t at = begin; at < end; ++at) {
        std::memcpy(y + static_cast<size_t>(at) * row_, x + static_cast<size_t>(o * split_.n + positive(index[k])) * row_, row_);
        if (++k == picks_) k = 0, ++o;
      }
    });
  }
  template <class T, class I>
  void rows(const std::byte* from, const I* index, std::byte* to, int64_t begin, int64_t end) const {
    const T* x = reinterpret_cast<const T*>(from);
    T* y = reinterpret_cast<T*>(to);
    int64_t at = begin;
    while (at < end) {
      const int64_t o = at / picks_, k0 = at % picks_, n = std::min(picks_ - k0, end - at);
      const T* row = x + o * split_.n;
      for (int64_t k = 0; k < n; ++k) y[at + k] = row[positive(index[k0 + k])];
      at += n;
    }
  }
  int64_t positive(int64_t k) const { return k < 0 ? k + split_.n : k; }

  std::string name_;
  AxisSplit split_;
  int64_t picks_;
  bool wide_;
  size_t row_;  // bytes
};

std::unique_ptr<Kernel> make_gather(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 2 || node.outputs.size() != 1) return decline(ctx, "takes data and indices");
  const DType t = node.inputs[1].dtype;
  if (t != DType::I32 && t != DType::I64) return decline(ctx, "indices are i32 or i64");
  const int axis = normal_axis(node.i("axis", 0), node.inputs[0].rank());
  if (axis < 0 || axis >= node.inputs[0].rank()) return decline(ctx, "the axis is out of range");
  return std::make_unique<Gather>(node, split_axis(node.inputs[0].shape, axis));
}

// ---- Scatter ---------------------------------------------------------------------------------------------------------

enum class Combine { NONE, ADD, MUL, MAX, MIN };

template <Combine C, class T>
MNNPY_INLINE T combined(T a, T b) {
  if constexpr (std::is_same_v<T, bool>) {
    return C == Combine::ADD || C == Combine::MAX ? a || b : a && b;
  } else if constexpr (C == Combine::MAX) {
    return a > b || a != a ? a : b;
  } else if constexpr (C == Combine::MIN) {
    return a < b || a != a ? a : b;
  } else if constexpr (std::is_floating_point_v<T>) {
    return C == Combine::ADD ? a + b : a * b;
  } else {  // wraps
    const auto u = static_cast<uint64_t>(a), v = static_cast<uint64_t>(b);
    return static_cast<T>(C == Combine::ADD ? u + v : u * v);
  }
}

class Scatter final : public Kernel {
 public:
  Scatter(const NodeDesc& node, Combine c)
      : name_(node.name), combine_(c), type_(node.inputs[0].dtype), rows_(node.inputs[0].shape[0]), width_(node.inputs[0].shape[1]),
        updates_(node.inputs[1].count()) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* index = static_cast<const int64_t*>(inputs[1]);
    check_indices(index, updates_, rows_, "Scatter", name_);
    const auto size = static_cast<int64_t>(dtype_size(type_)), count = rows_ * width_;
    const auto* x = static_cast<const std::byte*>(inputs[0]);
    const auto* u = static_cast<const std::byte*>(inputs[2]);
    auto* y = static_cast<std::byte*>(outputs[0]);
    if (combine_ != Combine::NONE && load_op(type_) != nullptr) return run_narrow(ctx, x, index, u, y);
    if (x != y)
      share(ctx, count, 0.5, [&](int64_t b, int64_t e, int) { std::memcpy(y + b * size, x + b * size, static_cast<size_t>((e - b) * size)); });
    if (combine_ == Combine::NONE) {
      by_columns(ctx, [&](int64_t begin, int64_t end) {
        for (int64_t k = 0; k < updates_; ++k)
          std::memcpy(y + (row(index[k]) * width_ + begin) * size, u + (k * width_ + begin) * size, static_cast<size_t>((end - begin) * size));
      });
      return;
    }
    with_type(type_, [&](auto v) {
      using T = decltype(v);
      combine_as<T>(ctx, index, reinterpret_cast<const T*>(u), reinterpret_cast<T*>(y));
    });
  }
  size_t scratch_bytes(int) const override {
    if (combine_ == Combine::NONE || load_op(type_) == nullptr) return 0;
    return align64(static_cast<size_t>(rows_ * width_) * 4) + align64(static_cast<size_t>(updates_ * width_) * 4);
  }
  bool in_place(int input) const override { return input == 0; }
  std::string algorithm() const override { return "rows"; }

 private:
  int64_t row(int64_t k) const { return k < 0 ? k + rows_ : k; }

  // Threads own columns, so that repeated indices combine in their order.
  template <class F>
  void by_columns(const RunContext& ctx, F&& f) const {
    constexpr int64_t grain = 32;
    const int64_t blocks = (width_ + grain - 1) / grain;
    share(ctx, blocks, static_cast<double>(updates_) * grain, [&](int64_t b, int64_t e, int) { f(b * grain, std::min(width_, e * grain)); });
  }

  template <class T>
  void combine_as(const RunContext& ctx, const int64_t* index, const T* u, T* y) const {
    switch (combine_) {
      case Combine::ADD: return combine_by<Combine::ADD>(ctx, index, u, y);
      case Combine::MUL: return combine_by<Combine::MUL>(ctx, index, u, y);
      case Combine::MAX: return combine_by<Combine::MAX>(ctx, index, u, y);
      default: return combine_by<Combine::MIN>(ctx, index, u, y);
    }
  }
  template <Combine C, class T>
  void combine_by(const RunContext& ctx, const int64_t* index, const T* u, T* y) const {
    by_columns(ctx, [&](int64_t begin, int64_t end) {
      for (int64_t k = 0; k < updates_; ++k) {
        T* to = y + row(index[k]) * width_;
        const T* from = u + k * width_;
        for (int64_t j = begin; j < end; ++j) to[j] = combined<C, T>(to[j], from[j]);
      }
    });
  }

  // Combined in the compute type and rounded once at the end.
  void run_narrow(const RunContext& ctx, const std::byte* x, const int64_t* index, const std::byte* u, std::byte* y) const {
    const int64_t count = rows_ * width_;
    std::byte* wide = ctx.scratch;
    std::byte* more = ctx.scratch + align64(static_cast<size_t>(count) * 4);
    load_op(type_)(x, wide, count);
    load_op(type_)(u, more, updates_ * width_);
    with_type(compute_type(type_), [&](auto v) {
      using T = decltype(v);
      combine_as<T>(ctx, index, reinterpret_cast<const T*>(more), reinterpret_cast<T*>(wide));
    });
    store_op(type_)(wide, y, count, {});
  }

  std::string name_;
  Combine combine_;
  DType type_;
  int64_t rows_, width_, updates_;
};

std::unique_ptr<Kernel> make_scatter(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 3 || node.outputs.size() != 1) return decline(ctx, "takes data, indices and updates");
  const auto &data = node.inputs[0], &index = node.inputs[1], &updates = node.inputs[2];
  if (data.rank() != 2 || index.rank() != 1 || index.dtype != DType::I64) return decline(ctx, "takes data[R,D], i64 indices[M], updates[M,D]");
  if (updates.dtype != data.dtype || updates.shape != Dims{index.shape[0], data.shape[1]}) return decline(ctx, "updates do not fit");
  const std::string fn = node.s("fn", "none");
  const Combine c = fn == "add" ? Combine::ADD : fn == "mul" ? Combine::MUL : fn == "max" ? Combine::MAX : fn == "min" ? Combine::MIN : Combine::NONE;
  if (c == Combine::NONE && fn != "none") return decline(ctx, "unknown fn");
  if (c != Combine::NONE && is_complex(data.dtype)) return decline(ctx, "complex numbers are only replaced");
  return std::make_unique<Scatter>(node, c);
}

}  // namespace

MNNPY_REGISTER("Gather", make_gather);
MNNPY_REGISTER("Scatter", make_scatter);

}  // namespace mnnpy::MNNPY_NS
