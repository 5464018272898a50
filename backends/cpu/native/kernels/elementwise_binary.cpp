// Block functions of two and three operands.
#include <cstring>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

template <class T, class R, class F>
MNNPY_INLINE void by_pairs(const BlockArgs& q, F f) {
  const T* a = static_cast<const T*>(q.a);
  const T* b = static_cast<const T*>(q.b);
  R* y = static_cast<R*>(q.y);
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) y[k] = f(a[k], b[k]);
}

// 16-bit operands would be promoted to int, whose products may overflow.
template <class T>
MNNPY_INLINE auto wide(T x) {
  if constexpr (std::is_same_v<T, uint8_t> || std::is_same_v<T, uint16_t>) return static_cast<uint32_t>(x);
  else return x;
}

#define MNNPY_BINARY(name, expression)                                        \
  template <class T>                                                          \
  void name(const BlockArgs& q) {                                             \
    by_pairs<T, T>(q, [](T a, T b) { return static_cast<T>(expression); });   \
  }
MNNPY_BINARY(add_fn, a + b)
MNNPY_BINARY(sub_fn, a - b)
MNNPY_BINARY(mul_fn, wide(a) * wide(b))
MNNPY_BINARY(div_float, a / b)
MNNPY_BINARY(max_int, a > b ? a : b)
MNNPY_BINARY(min_int, a < b ? a : b)
MNNPY_BINARY(squared_difference, (wide(a) - wide(b)) * (wide(a) - wide(b)))
MNNPY_BINARY(bit_and, a& b)
MNNPY_BINARY(bit_or, a | b)
MNNPY_BINARY(bit_xor, a ^ b)
MNNPY_BINARY(pow_float, std::pow(a, b))
MNNPY_BINARY(fmod_float, std::fmod(a, b))
MNNPY_BINARY(atan2_fn, std::atan2(a, b))
#undef MNNPY_BINARY

// NaN of either operand wins.
template <class T>
void max_float(const BlockArgs& q) {
  by_pairs<T, T>(q, [](T a, T b) { return a > b || a != a ? a : b; });
}
template <class T>
void min_float(const BlockArgs& q) {
  by_pairs<T, T>(q, [](T a, T b) { return a < b || a != a ? a : b; });
}

template <class T>
T wrapped_negative(T a) {
  return static_cast<T>(std::make_unsigned_t<T>(0) - static_cast<std::make_unsigned_t<T>>(a));
}

// x / 0 is 0; the smallest value divided by -1 wraps to itself.
template <class T>
void div_int(const BlockArgs& q) {
  by_pairs<T, T>(q, [](T a, T b) {
    if (b == 0) return T(0);
    if (std::is_signed_v<T> && b == T(-1)) return wrapped_negative(a);
    return static_cast<T>(a / b);
  });
}
template <class T, bool kFloor>
void mod_int(const BlockArgs& q) {
  by_pairs<T, T>(q, [](T a, T b) {
    if (b == 0 || (std::is_signed_v<T> && b == T(-1))) return T(0);
    const T r = static_cast<T>(a % b);
    return kFloor && r != 0 && (r < 0) != (b < 0) ? static_cast<T>(r + b) : r;
  });
}
template <class T>
void mod_float(const BlockArgs& q) {
  by_pairs<T, T>(q, [](T a, T b) {
    const T r = std::fmod(a, b);
    if (b == 0) return r;
    if (r == 0) return std::copysign(r, b);
    return (r < 0) != (b < 0) ? r + b : r;
  });
}

template <class T>
void pow_int(const BlockArgs& q) {
  using U = std::make_unsigned_t<T>;
  by_pairs<T, T>(q, [](T a, T b) {
    if (b < 0) return a == T(1) ? T(1) : a == T(-1) ? (b & 1 ? T(-1) : T(1)) : T(0);
    // 64-bit unsigned arithmetic wraps like the type's own and cannot overflow by promotion.
    uint64_t base = static_cast<uint64_t>(a), y = 1;
    for (U e = static_cast<U>(b); e != 0; e = static_cast<U>(e >> 1)) {
      if (e & 1) y *= base;
      base *= base;
    }
    return static_cast<T>(y);
  });
}

template <class T, bool kLeft>
void shift_fn(const BlockArgs& q) {
  using U = std::make_unsigned_t<T>;
  constexpr int bits = sizeof(T) * 8;
  by_pairs<T, T>(q, [](T a, T b) {
    const bool outside = static_cast<U>(b) >= static_cast<U>(bits);  // negative amounts too
    const int s = outside ? 0 : static_cast<int>(b);
    if (kLeft) return outside ? T(0) : static_cast<T>(static_cast<uint64_t>(a) << s);
    return outside ? (a < 0 ? T(-1) : T(0)) : static_cast<T>(a >> s);
  });
}

#define MNNPY_COMPARE(name, expression)                                                       \
  template <class T>                                                                          \
  void name(const BlockArgs& q) {                                                             \
    by_pairs<T, uint8_t>(q, [](T a, T b) { return static_cast<uint8_t>(expression); });       \
  }
MNNPY_COMPARE(equal_fn, a == b)
MNNPY_COMPARE(not_equal_fn, a != b)
MNNPY_COMPARE(less_fn, a < b)
MNNPY_COMPARE(less_equal_fn, a <= b)
#undef MNNPY_COMPARE

template <BlockFn F>
void swapped(const BlockArgs& q) {
  BlockArgs r = q;
  r.a = q.b;
  r.b = q.a;
  F(r);
}

template <class U>
void select_fn(const BlockArgs& q) {
  const auto* c = static_cast<const uint8_t*>(q.a);
  const U* a = static_cast<const U*>(q.b);
  const U* b = static_cast<const U*>(q.c);
  U* y = static_cast<U*>(q.y);
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) {
    const U mask = static_cast<U>(U(0) - U(c[k] != 0));
    y[k] = static_cast<U>((a[k] & mask) | (b[k] & ~mask));
  }
}

bool is(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

template <class T>
BlockFn comparison(const char* fn) {
  if (is(fn, "Equal")) return equal_fn<T>;
  if (is(fn, "NotEqual")) return not_equal_fn<T>;
  if (is(fn, "Less")) return less_fn<T>;
  if (is(fn, "LessEqual")) return less_equal_fn<T>;
  if (is(fn, "Greater")) return swapped<less_fn<T>>;
  if (is(fn, "GreaterEqual")) return swapped<less_equal_fn<T>>;
  return nullptr;
}

template <class T>
BlockOp float_op(const char* fn) {
  if (is(fn, "Add")) return {add_fn<T>, 1, false};
  if (is(fn, "Sub")) return {sub_fn<T>, 1, false};
  if (is(fn, "Mul")) return {mul_fn<T>, 1, false};
  if (is(fn, "Div")) return {div_float<T>, 2, false};
  if (is(fn, "Max")) return {max_float<T>, 1, true};
  if (is(fn, "Min")) return {min_float<T>, 1, true};
  if (is(fn, "SquaredDifference")) return {squared_difference<T>, 1, false};
  if (is(fn, "Pow")) return {pow_float<T>, 40, false};
  if (is(fn, "Mod")) return {mod_float<T>, 30, false};
  if (is(fn, "Fmod")) return {fmod_float<T>, 30, false};
  if (is(fn, "Atan2")) return {atan2_fn<T>, 60, false};
  return {comparison<T>(fn), 1, true};
}

template <class T>
BlockOp integer_op(const char* fn) {
  using U = std::make_unsigned_t<T>;
  if (is(fn, "Add")) return {add_fn<U>};
  if (is(fn, "Sub")) return {sub_fn<U>};
  if (is(fn, "Mul")) return {mul_fn<U>};
  if (is(fn, "SquaredDifference")) return {squared_difference<U>};
  if (is(fn, "Max")) return {max_int<T>, 1, true};
  if (is(fn, "Min")) return {min_int<T>, 1, true};
  if (is(fn, "BitwiseAnd")) return {bit_and<U>, 1, true};
  if (is(fn, "BitwiseOr")) return {bit_or<U>, 1, true};
  if (is(fn, "BitwiseXor")) return {bit_xor<U>, 1, true};
  if (is(fn, "Div")) return {div_int<T>, 6, false};
  if (is(fn, "Mod")) return {mod_int<T, true>, 8, true};
  if (is(fn, "Fmod")) return {mod_int<T, false>, 8, true};
  if (is(fn, "Pow")) return {pow_int<T>, 20, false};
  if (is(fn, "ShiftLeft")) return {shift_fn<T, true>};
  if (is(fn, "ShiftRight")) return {shift_fn<T, false>};
  return {comparison<T>(fn), 1, true};
}

BlockOp bool_op(const char* fn) {
  if (is(fn, "And") || is(fn, "Mul") || is(fn, "Min") || is(fn, "BitwiseAnd")) return {bit_and<uint8_t>, 1, true};
  if (is(fn, "Or") || is(fn, "Add") || is(fn, "Max") || is(fn, "BitwiseOr")) return {bit_or<uint8_t>, 1, true};
  if (is(fn, "Xor") || is(fn, "BitwiseXor")) return {bit_xor<uint8_t>, 1, true};
  return {comparison<uint8_t>(fn), 1, true};
}

}  // namespace

BlockOp binary_op(const char* fn, DType t) {
  BlockOp found;
  with_type(t, [&](auto v) {
    using T = decltype(v);
    if constexpr (std::is_same_v<T, bool>) found = bool_op(fn);
    else if constexpr (std::is_integral_v<T>) found = integer_op<T>(fn);
    else found = float_op<T>(fn);
  });
  return found;
}

BlockFn select_op(DType t) {
  switch (dtype_size(t)) {
    case 1: return select_fn<uint8_t>;
    case 2: return select_fn<uint16_t>;
    case 4: return select_fn<uint32_t>;
    case 8: return select_fn<uint64_t>;
    default: return nullptr;
  }
}

}  // namespace mnnpy::MNNPY_NS
