// The first k elements in order along an axis, with their indices. Elements become unsigned keys whose order is the
// wanted one (NaN largest, -0 equal to 0); key and index together make every comparison strict, so ties go by index.
#include <memory>
#include <string>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <class T>
MNNPY_INLINE auto ascending_key(T x) {
  if constexpr (std::is_same_v<T, float>) {
    const uint32_t b = bits_of(x == 0 ? 0.0f : x);
    return x != x ? ~uint32_t{0} : b & 0x80000000u ? ~b : b | 0x80000000u;
  } else if constexpr (std::is_same_v<T, double>) {
    const uint64_t b = std::bit_cast<uint64_t>(x == 0 ? 0.0 : x), top = uint64_t{1} << 63;
    return x != x ? ~uint64_t{0} : b & top ? ~b : b | top;
  } else if constexpr (sizeof(T) == 8) {
    return static_cast<uint64_t>(x) ^ (std::is_signed_v<T> ? uint64_t{1} << 63 : 0);
  } else {
    return static_cast<uint32_t>(static_cast<int64_t>(x) + (std::is_signed_v<T> ? int64_t{1} << 31 : 0));
  }
}

struct Long {
  uint64_t key;
  uint64_t index;
};
struct LongLess {
  bool operator()(const Long& a, const Long& b) const { return a.key != b.key ? a.key < b.key : a.index < b.index; }
};
struct Short {  // key in the upper half, index in the lower: one comparison
  uint64_t both;
};
struct ShortLess {
  bool operator()(const Short& a, const Short& b) const { return a.both < b.both; }
};

template <class Item, class Less>
void first_in_order(Item* p, int64_t n, int64_t k, Less less) {
  if (k * 8 <= n) {
    std::partial_sort(p, p + k, p + n, less);
    return;
  }
  if (k * 2 <= n) {
    std::nth_element(p, p + k, p + n, less);
    n = k;
  }
  std::sort(p, p + n, less);
}

class Sort final : public Kernel {
 public:
  Sort(AxisSplit s, int64_t k, bool descending, DType t) : split_(s), k_(k), descending_(descending), type_(t), load_(load_op(t)) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    with_type(compute_type(type_), [&](auto v) {
      using T = std::conditional_t<std::is_same_v<decltype(v), bool>, uint8_t, decltype(v)>;
      if (sizeof(T) == 8 || split_.n > 0xffffffffll) run_as<T, Long>(ctx, inputs[0], outputs);
      else run_as<T, Short>(ctx, inputs[0], outputs);
    });
  }
  std::string algorithm() const override { return k_ * 8 <= split_.n ? "heap" : "sort"; }

 private:
  template <class T, class Item>
  void run_as(const RunContext& ctx, const void* in, void* const* outputs) const {
    const int64_t outer = split_.outer, n = split_.n, inner = split_.inner;
    if (k_ == 0) return;
    const double cost = static_cast<double>(n) * (k_ * 8 <= n ? 4 : 30);
    share(ctx, outer * inner, cost, [&](int64_t begin, int64_t end, int) {
      std::vector<Item> items(static_cast<size_t>(n));
      std::vector<T> wide(load_ != nullptr ? static_cast<size_t>(n) : 0);
      for (int64_t line = begin; line < end; ++line) {
        const int64_t at = line / inner * n * inner + line % inner;
        gather<T>(in, at, items.data(), wide.data());
        const int64_t to = line / inner * k_ * inner + line % inner;
        if constexpr (std::is_same_v<Item, Short>) first_in_order(items.data(), n, k_, ShortLess{});
        else first_in_order(items.data(), n, k_, LongLess{});
        for (int64_t j = 0; j < k_; ++j) {
          int64_t index;
          if constexpr (std::is_same_v<Item, Short>) index = static_cast<int64_t>(items[static_cast<size_t>(j)].both & 0xffffffffu);
          else index = static_cast<int64_t>(items[static_cast<size_t>(j)].index);
          copy_element(in, at + index * inner, outputs[0], to + j * inner);
          if (outputs[1] != nullptr) static_cast<int64_t*>(outputs[1])[to + j * inner] = index;
        }
      }
    });
  }
  template <class T, class Item>
  void gather(const void* in, int64_t at, Item* items, T* wide) const {
    const auto size = static_cast<int64_t>(dtype_size(type_));
    const auto* x = static_cast<const std::byte*>(in) + at * size;
    if (load_ != nullptr)
      for (int64_t k = 0; k < split_.n; ++k) load_(x + k * split_.inner * size, wide + k, 1);
    for (int64_t k = 0; k < split_.n; ++k) {
      const T v = load_ != nullptr ? wide[k] : *reinterpret_cast<const T*>(x + k * split_.inner * size);
      auto key = ascending_key<T>(v);
      if (descending_) key = ~key;
      if constexpr (std::is_same_v<Item, Short>) items[k].both = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(k);
      else items[k] = {static_cast<uint64_t>(key), static_cast<uint64_t>(k)};
    }
  }
  void copy_element(const void* in, int64_t from, void* out, int64_t to) const {
    switch (dtype_size(type_)) {
      case 1: static_cast<uint8_t*>(out)[to] = static_cast<const uint8_t*>(in)[from]; break;
      case 2: static_cast<uint16_t*>(out)[to] = static_cast<const uint16_t*>(in)[from]; break;
      case 4: static_cast<uint32_t*>(out)[to] = static_cast<const uint32_t*>(in)[from]; break;
      default: static_cast<uint64_t*>(out)[to] = static_cast<const uint64_t*>(in)[from];
    }
  }

  AxisSplit split_;
  int64_t k_;
  bool descending_;
  DType type_;
  LoadFn load_;
};

std::unique_ptr<Kernel> make_sort(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 2) return decline(ctx, "takes one operand, gives values and indices");
  const TensorDesc& x = node.inputs[0];
  const int axis = normal_axis(node.i("axis", -1), x.rank());
  if (axis < 0 || axis >= x.rank() || is_complex(x.dtype)) return decline(ctx, "bad axis or dtype");
  if (!node.outputs[0].present) return decline(ctx, "the values must be used");
  const AxisSplit s = split_axis(x.shape, axis);
  const int64_t k = node.i("k", s.n);
  if (k < 0 || k > s.n)
    throw std::invalid_argument("Sort '" + node.name + "': k " + std::to_string(k) + " is not between 0 and " + std::to_string(s.n));
  return std::make_unique<Sort>(s, k, node.i("descending", 1) != 0, x.dtype);
}

}  // namespace

MNNPY_REGISTER("Sort", make_sort);

}  // namespace mnnpy::MNNPY_NS
