// Conversion between element types: ONNX Cast, with out-of-range floats to integers going through int64 and wrapping.
#include <cstring>
#include <memory>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

// ---- stored element <-> compute type ---------------------------------------------------------------------------------

void load_f16(const void* from, void* to, int64_t n) { halves_to_floats(static_cast<const uint16_t*>(from), static_cast<float*>(to), n); }
void load_bf16(const void* from, void* to, int64_t n) { bf16s_to_floats(static_cast<const uint16_t*>(from), static_cast<float*>(to), n); }
void store_f16(const void* from, void* to, int64_t n, StoreMode) { floats_to_halves(static_cast<const float*>(from), static_cast<uint16_t*>(to), n); }
void store_bf16(const void* from, void* to, int64_t n, StoreMode) { floats_to_bf16s(static_cast<const float*>(from), static_cast<uint16_t*>(to), n); }

template <DType T>
void load_tiny(const void* from, void* to, int64_t n) {
  const auto* x = static_cast<const uint8_t*>(from);
  float* y = static_cast<float*>(to);
  constexpr int mask = T == DType::F4E2M1 ? 0x0f : 0xff;
  for (int64_t k = 0; k < n; ++k) y[k] = tiny_table<T>.value[x[k] & mask];
}
template <DType T>
void store_tiny(const void* from, void* to, int64_t n, StoreMode mode) {
  const float* x = static_cast<const float*>(from);
  auto* y = static_cast<uint8_t*>(to);
  for (int64_t k = 0; k < n; ++k) y[k] = float_to_tiny<T>(x[k], mode.saturate);
}
void store_e8m0(const void* from, void* to, int64_t n, StoreMode mode) {
  const float* x = static_cast<const float*>(from);
  auto* y = static_cast<uint8_t*>(to);
  for (int64_t k = 0; k < n; ++k) y[k] = float_to_e8m0(x[k], mode.saturate, mode.e8m0);
}

template <int kBits, bool kSigned>
void load_bits(const void* from, void* to, int64_t n) {
  const auto* x = static_cast<const uint8_t*>(from);
  auto* y = static_cast<uint8_t*>(to);
  constexpr int mask = (1 << kBits) - 1, sign = kSigned ? 1 << (kBits - 1) : 0;
  MNNPY_IVDEP
  for (int64_t k = 0; k < n; ++k) y[k] = static_cast<uint8_t>(((x[k] & mask) ^ sign) - sign);
}
template <int kBits>
void store_bits(const void* from, void* to, int64_t n, StoreMode) {
  const auto* x = static_cast<const uint8_t*>(from);
  auto* y = static_cast<uint8_t*>(to);
  MNNPY_IVDEP
  for (int64_t k = 0; k < n; ++k) y[k] = x[k] & ((1 << kBits) - 1);
}

// ---- compute type -> compute type ------------------------------------------------------------------------------------

template <class From, class To>
MNNPY_INLINE To cast(From x) {
  if constexpr (std::is_floating_point_v<From> && std::is_same_v<To, uint64_t>) {
    return x >= From(0x1p63) ? static_cast<uint64_t>(static_cast<int64_t>(x - From(0x1p63))) ^ (uint64_t{1} << 63)
                             : static_cast<uint64_t>(static_cast<int64_t>(x));
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    return static_cast<To>(static_cast<int64_t>(x));
  } else {
    return static_cast<To>(x);
  }
}

MNNPY_INLINE bool any(VI mask) {
#if MNNPY_ISA == 2
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif MNNPY_ISA == 1
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

template <class From, class To>
void cast_fn(const BlockArgs& q) {
  const From* x = static_cast<const From*>(q.a);
  To* y = static_cast<To*>(q.y);
  if constexpr (std::is_same_v<From, float> && std::is_integral_v<To> && sizeof(To) <= 4) {
    // Vector units convert to int32 fast; only values beyond that range need the detour over int64.
    typedef To VTo __attribute__((vector_size(W * sizeof(To))));
    int64_t k = 0;
    for (; k + W <= q.n; k += W) {
      const VF v = load(x + k);
      const VI outside = ~(vabs(v) < 0x1p31f);
      if (any(outside)) {
        for (int64_t j = k; j < k + W; ++j) y[j] = cast<From, To>(x[j]);
        continue;
      }
#if MNNPY_ISA == 1
      if constexpr (sizeof(To) == 1) {  // the compiler would go element by element
        const __m256i low = _mm256_set1_epi32(0x0c080400);
        const __m256i bytes = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(to_int(v)), low);
        const int32_t halves[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
        std::memcpy(y + k, halves, 8);
        continue;
      }
#endif
      const VTo t = __builtin_convertvector(to_int(v), VTo);
      std::memcpy(y + k, &t, sizeof t);
    }
    for (; k < q.n; ++k) y[k] = cast<From, To>(x[k]);
    return;
  }
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) y[k] = cast<From, To>(x[k]);
}

template <class From>
void to_bool_fn(const BlockArgs& q) {
  const From* x = static_cast<const From*>(q.a);
  auto* y = static_cast<uint8_t*>(q.y);
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) y[k] = x[k] != From(0);
}
template <class T>
void same_fn(const BlockArgs& q) {
  if (q.a != q.y) std::memmove(q.y, q.a, static_cast<size_t>(q.n) * sizeof(T));
}
void odd_fn(const BlockArgs& q) {
  const double* x = static_cast<const double*>(q.a);
  float* y = static_cast<float*>(q.y);
  for (int64_t k = 0; k < q.n; ++k) y[k] = round_to_odd(x[k]);
}

template <class From, class To>
BlockFn pick() {
  if constexpr (std::is_same_v<From, To>) return same_fn<To>;
  else if constexpr (std::is_same_v<To, bool>) return to_bool_fn<From>;
  else if constexpr (std::is_same_v<From, bool>) return std::is_same_v<To, uint8_t> ? same_fn<uint8_t> : cast_fn<uint8_t, To>;
  else return cast_fn<From, To>;
}

}  // namespace

LoadFn load_op(DType t) {
  switch (t) {
    case DType::F16: return load_f16;
    case DType::BF16: return load_bf16;
    case DType::F8E4M3FN: return load_tiny<DType::F8E4M3FN>;
    case DType::F8E4M3FNUZ: return load_tiny<DType::F8E4M3FNUZ>;
    case DType::F8E5M2: return load_tiny<DType::F8E5M2>;
    case DType::F8E5M2FNUZ: return load_tiny<DType::F8E5M2FNUZ>;
    case DType::F8E8M0: return load_tiny<DType::F8E8M0>;
    case DType::F4E2M1: return load_tiny<DType::F4E2M1>;
    case DType::I2: return load_bits<2, true>;
    case DType::I4: return load_bits<4, true>;
    case DType::U2: return load_bits<2, false>;
    case DType::U4: return load_bits<4, false>;
    default: return nullptr;
  }
}

StoreFn store_op(DType t) {
  switch (t) {
    case DType::F16: return store_f16;
    case DType::BF16: return store_bf16;
    case DType::F8E4M3FN: return store_tiny<DType::F8E4M3FN>;
    case DType::F8E4M3FNUZ: return store_tiny<DType::F8E4M3FNUZ>;
    case DType::F8E5M2: return store_tiny<DType::F8E5M2>;
    case DType::F8E5M2FNUZ: return store_tiny<DType::F8E5M2FNUZ>;
    case DType::F8E8M0: return store_e8m0;
    case DType::F4E2M1: return store_tiny<DType::F4E2M1>;
    case DType::I2: case DType::U2: return store_bits<2>;
    case DType::I4: case DType::U4: return store_bits<4>;
    default: return nullptr;
  }
}

BlockOp convert_op(DType from, DType to) {
  const DType source = compute_type(from), target = compute_type(to);
  // f64 to f16 rounds once (as NumPy does); the other narrow floats are reached through f32 (as ml_dtypes does).
  if (source == DType::F64 && (to == DType::F16 || to == DType::F8E8M0)) return {odd_fn, 2, true};
  BlockFn found = nullptr;
  with_type(source, [&](auto a) {
    with_type(target, [&](auto b) { found = pick<decltype(a), decltype(b)>(); });
  });
  return {found, 1, !is_narrow_float(to) && !is_sub_byte_int(to)};
}

StoreMode store_mode(const NodeDesc& node) {
  const std::string mode = node.s("round_mode", "up");
  if (mode != "up" && mode != "down" && mode != "nearest")
    throw std::invalid_argument("round_mode '" + mode + "' of " + node.op + " '" + node.name + "' is not up, down or nearest");
  return {node.i("saturate", 1) != 0, mode == "up" ? E8M0Round::UP : mode == "down" ? E8M0Round::DOWN : E8M0Round::NEAREST};
}

namespace {

// Load, convert and store, each stage only where it does something; values between stages stay in L1.
class Convert final : public Kernel {
 public:
  Convert(const NodeDesc& node, BlockOp op)
      : from_(node.inputs[0].dtype), to_(node.outputs[0].dtype), count_(node.inputs[0].count()), load_(load_op(from_)),
        store_(store_op(to_)), mode_(store_mode(node)), op_(op) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* in = static_cast<const std::byte*>(inputs[0]);
    auto* out = static_cast<std::byte*>(outputs[0]);
    const size_t from = dtype_size(from_), to = dtype_size(to_);
    if (from_ == to_) {
      if (in != out) share(ctx, count_, 0.5, [&](int64_t b, int64_t e, int) { std::memcpy(out + b * from, in + b * from, (e - b) * from); });
      return;
    }
    const bool same = compute_type(from_) == compute_type(to_);
    share(ctx, (count_ + kBlock - 1) / kBlock, kBlock * cost(), [&](int64_t begin, int64_t end, int) {
      alignas(64) std::byte first[kBlock * 8], second[kBlock * 8];
      for (int64_t block = begin; block < end; ++block) {
        const int64_t at = block * kBlock, n = std::min(kBlock, count_ - at);
        const void* x = in + at * from;
        void* y = out + at * to;
        if (load_ != nullptr) {
          void* loaded = same && store_ == nullptr ? y : first;
          load_(x, loaded, n);
          x = loaded;
        }
        if (!same) {
          void* converted = store_ == nullptr ? y : second;
          op_.fn({x, nullptr, nullptr, converted, n, 0, 0});
          x = converted;
        }
        if (store_ != nullptr) store_(x, y, n, mode_);
      }
    });
  }
  bool in_place(int) const override { return from_ == to_ || dtype_size(from_) == dtype_size(to_); }
  std::string algorithm() const override { return "blocks"; }

 private:
  double cost() const { return 1 + (dtype_size(from_) == 1 && load_ ? 2 : 0) + (dtype_size(to_) == 1 && store_ ? 6 : 0); }

  DType from_, to_;
  int64_t count_;
  LoadFn load_;
  StoreFn store_;
  StoreMode mode_;
  BlockOp op_;
};

std::unique_ptr<Kernel> make_convert(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1) return decline(ctx, "takes one operand");
  if (node.inputs[0].count() != node.outputs[0].count()) return decline(ctx, "sizes differ");
  const BlockOp op = convert_op(node.inputs[0].dtype, node.outputs[0].dtype);
  if (op.fn == nullptr) return decline(ctx, "no conversion of complex types");
  return std::make_unique<Convert>(node, op);
}

}  // namespace

MNNPY_REGISTER("Convert", make_convert);

}  // namespace mnnpy::MNNPY_NS
