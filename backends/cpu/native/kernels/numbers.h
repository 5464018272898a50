// Element types as numbers: what each type is computed in, and exact rounding to and from the narrow floats.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernel.h"
#include "simd.h"

#if defined(__clang__)
#define MNNPY_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define MNNPY_IVDEP _Pragma("GCC ivdep")
#endif

namespace mnnpy::MNNPY_NS {

constexpr bool is_narrow_float(DType t) {
  return t == DType::F16 || t == DType::BF16 || (t >= DType::F8E4M3FN && t <= DType::F4E2M1);
}
constexpr bool is_sub_byte_int(DType t) { return t == DType::I2 || t == DType::I4 || t == DType::U2 || t == DType::U4; }
constexpr bool is_complex(DType t) { return t == DType::C64 || t == DType::C128; }

// The type a register of this element type has: f32 for narrow floats, i8 or u8 for sub-byte integers.
constexpr DType compute_type(DType t) {
  if (is_narrow_float(t)) return DType::F32;
  if (t == DType::I2 || t == DType::I4) return DType::I8;
  if (t == DType::U2 || t == DType::U4) return DType::U8;
  return t;
}

MNNPY_INLINE uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
MNNPY_INLINE float float_of(uint32_t b) { return std::bit_cast<float>(b); }

// ---- f16 and bf16 ----------------------------------------------------------------------------------------------------

MNNPY_INLINE float half_to_float(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  // The multiplication moves the exponent bias and normalises subnormal numbers.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  return float_of(((h & 0x7c00) == 0x7c00 ? special : finite) | sign);
}

MNNPY_INLINE uint16_t float_to_half(float x) {
  const uint32_t b = bits_of(x), u = b & 0x7fffffffu;
  const uint32_t normal = (u + 0xfffu + ((u >> 13) & 1u) - (112u << 23)) >> 13;
  // Adding 0.5 lets the adder round to the spacing of half's subnormals.
  const uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000u;
  const uint32_t special = u > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t m = u >= 0x47800000u ? special : u < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(m | ((b >> 16) & 0x8000u));
}

MNNPY_INLINE float bf16_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

MNNPY_INLINE uint16_t float_to_bf16(float x) {
  const uint32_t b = bits_of(x);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const uint32_t nan = ((b >> 16) & 0x8000u) | 0x7fc0u;
  return static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

inline void halves_to_floats(const uint16_t* p, float* y, int64_t n) {
  int64_t k = 0;
#if MNNPY_ISA >= 1
  for (; k + 8 <= n; k += 8)
    _mm256_storeu_ps(y + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + k))));
#endif
  MNNPY_IVDEP
  for (int64_t j = k; j < n; ++j) y[j] = half_to_float(p[j]);
}

inline void floats_to_halves(const float* x, uint16_t* p, int64_t n) {
  int64_t k = 0;
#if MNNPY_ISA >= 1
  for (; k + 8 <= n; k += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + k), _mm256_cvtps_ph(_mm256_loadu_ps(x + k), 0));
#endif
  MNNPY_IVDEP
  for (int64_t j = k; j < n; ++j) p[j] = float_to_half(x[j]);
}

inline void bf16s_to_floats(const uint16_t* p, float* y, int64_t n) {
  MNNPY_IVDEP
  for (int64_t j = 0; j < n; ++j) y[j] = bf16_to_float(p[j]);
}

inline void floats_to_bf16s(const float* x, uint16_t* p, int64_t n) {
  MNNPY_IVDEP
  for (int64_t j = 0; j < n; ++j) p[j] = float_to_bf16(x[j]);
}

// ---- 8-bit floats and f4e2m1 -----------------------------------------------------------------------------------------

// OCP 8-bit floating point (OFP8) and the "fnuz" variants: no infinities, one NaN, no negative zero.
struct TinyFormat {
  int exponent_bits, mantissa_bits, bias;
  bool infinite;     // the top exponent holds inf and NaN
  uint8_t nan;       // code of a (positive) NaN; 0 where there is none
  bool one_zero;     // fnuz: the code of -0 is the NaN
  uint8_t max_code;  // largest finite magnitude
};

constexpr TinyFormat tiny_format(DType t) {
  switch (t) {
    case DType::F8E4M3FN: return {4, 3, 7, false, 0x7f, false, 0x7e};
    case DType::F8E4M3FNUZ: return {4, 3, 8, false, 0x80, true, 0x7f};
    case DType::F8E5M2: return {5, 2, 15, true, 0x7e, false, 0x7b};
    case DType::F8E5M2FNUZ: return {5, 2, 16, false, 0x80, true, 0x7f};
    default: return {2, 1, 1, false, 0, false, 0x07};  // f4e2m1
  }
}

constexpr float power_of_two(int e) {
  float y = 1;
  for (; e > 0; --e) y *= 2;
  for (; e < 0; ++e) y /= 2;
  return y;
}

constexpr float tiny_value(DType t, uint8_t code) {
  const float nan = std::bit_cast<float>(code & 0x80 && t != DType::F8E8M0 ? 0xffc00000u : 0x7fc00000u);
  if (t == DType::F8E8M0) return code == 255 ? nan : power_of_two(code - 127);
  const TinyFormat f = tiny_format(t);
  const int sign_at = f.exponent_bits + f.mantissa_bits;
  const int magnitude = code & ((1 << sign_at) - 1);
  const bool negative = (code >> sign_at) & 1;
  if (f.one_zero && negative && magnitude == 0) return nan;
  if (f.infinite && magnitude > f.max_code)
    return magnitude == f.max_code + 1 ? (negative ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity()) : nan;
  if (!f.one_zero && f.nan != 0 && !f.infinite && magnitude == f.nan) return nan;
  const int e = magnitude >> f.mantissa_bits, m = magnitude & ((1 << f.mantissa_bits) - 1);
  const float y = e == 0 ? m * power_of_two(1 - f.bias - f.mantissa_bits)
                         : ((1 << f.mantissa_bits) + m) * power_of_two(e - f.bias - f.mantissa_bits);
  return negative ? -y : y;
}

struct TinyTable {
  float value[256];
};
template <DType T>
constexpr TinyTable make_tiny_table() {
  TinyTable t{};
  for (int k = 0; k < 256; ++k) t.value[k] = tiny_value(T, static_cast<uint8_t>(k));
  return t;
}
template <DType T>
inline constexpr TinyTable tiny_table = make_tiny_table<T>();

// Rounds to nearest even. Beyond the largest finite value: that value with *saturate*, else inf or NaN.
template <DType T>
inline uint8_t float_to_tiny(float x, bool saturate) {
  constexpr TinyFormat f = tiny_format(T);
  constexpr int top = f.exponent_bits + f.mantissa_bits, shift = 23 - f.mantissa_bits;
  const uint32_t b = bits_of(x), u = b & 0x7fffffffu;
  const auto sign = static_cast<uint8_t>((b >> 31) << top);
  if (u > 0x7f800000u) {
    if (T == DType::F4E2M1) return sign ^ 0x08;  // no NaN in the type: a zero of the other sign, as in ml_dtypes
    return f.one_zero ? f.nan : static_cast<uint8_t>(f.nan | sign);
  }
  constexpr uint32_t smallest_normal = static_cast<uint32_t>(127 + 1 - f.bias) << 23;
  uint32_t code;
  if (u < smallest_normal) {
    // A number whose spacing is that of the subnormals: adding it rounds to nearest even.
    constexpr uint32_t magic = static_cast<uint32_t>(127 + 1 - f.bias + shift) << 23;
    code = bits_of(float_of(u) + float_of(magic)) - magic;
  } else {
    const uint32_t r = u + ((1u << (shift - 1)) - 1) + ((u >> shift) & 1u);
    code = (r >> shift) - (static_cast<uint32_t>(127 - f.bias) << f.mantissa_bits);
  }
  if (code > f.max_code) {
    if (saturate || T == DType::F4E2M1) code = f.max_code;
    else if (f.infinite) code = f.max_code + 1;
    else return f.one_zero ? f.nan : static_cast<uint8_t>(f.nan | sign);
  }
  if (f.one_zero && code == 0) return 0;
  return static_cast<uint8_t>(code | sign);
}

enum class E8M0Round : int { UP = 0, DOWN = 1, NEAREST = 2 };

// Magnitude as a power of two (OCP Microscaling 1.0, 5.4.1; rounding modes of ONNX Cast-25); 255 is NaN.
inline uint8_t float_to_e8m0(float x, bool saturate, E8M0Round mode) {
  const uint32_t u = bits_of(x) & 0x7fffffffu;
  if (u > 0x7f800000u) return 255;
  if (u == 0x7f800000u || u == 0) return u == 0 ? (saturate ? 0 : 255) : (saturate ? 254 : 255);
  int shift = 0;
  uint32_t v = u;
  if (v < 0x00800000u) {  // subnormal
    v = bits_of(float_of(v) * 0x1p24f);
    shift = 24;
  }
  int code = static_cast<int>(v >> 23) - shift;
  const uint32_t fraction = v & 0x7fffffu;
  if (mode == E8M0Round::UP) code += fraction != 0;
  else if (mode == E8M0Round::NEAREST) code += fraction >= 0x400000u;
  if (code < 0 || code > 254) return !saturate ? 255 : code < 0 ? 0 : 254;
  return static_cast<uint8_t>(code);
}

// A float that rounds to every narrower format as *d* itself would (rounding to odd keeps the sticky bit).
MNNPY_INLINE float round_to_odd(double d) {
  const float f = static_cast<float>(d);
  uint32_t b = bits_of(f);
  const double back = f;
  if (back != d && d == d) b = (b - (std::fabs(back) > std::fabs(d) ? 1u : 0u)) | 1u;
  return float_of(b);
}

}  // namespace mnnpy::MNNPY_NS
