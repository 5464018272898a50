// Vectors of the compiler, one width per instruction set, and elementary functions on them.
//
// Everything is inline in the variant's namespace. VF holds W floats, VI as many int32; a comparison of VF gives a VI
// of 0 or -1, and `mask ? a : b` selects by lane. Arithmetic operators work lane by lane, with scalars broadcast.
// Elementary functions are accurate to about 2e-7 relative, keep NaN, and saturate as their scalar counterparts do.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"

#if MNNPY_ISA >= 1
#include <immintrin.h>
#endif

#define MNNPY_INLINE inline __attribute__((always_inline))

namespace mnnpy::MNNPY_NS {

#if MNNPY_ISA == 2
constexpr int W = 16;
#elif MNNPY_ISA == 1
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float VF __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef float VFU __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t VIU __attribute__((vector_size(W * 4), aligned(4), may_alias));

MNNPY_INLINE VF load(const float* p) { return *reinterpret_cast<const VFU*>(p); }
MNNPY_INLINE void store(float* p, VF v) { *reinterpret_cast<VFU*>(p) = v; }
MNNPY_INLINE VI load(const int32_t* p) { return *reinterpret_cast<const VIU*>(p); }
MNNPY_INLINE void store(int32_t* p, VI v) { *reinterpret_cast<VIU*>(p) = v; }
MNNPY_INLINE VF splat(float x) { return x - VF{}; }
MNNPY_INLINE VI splat(int32_t x) { return x - VI{}; }
MNNPY_INLINE VI as_int(VF v) { return reinterpret_cast<VI>(v); }
MNNPY_INLINE VF as_float(VI v) { return reinterpret_cast<VF>(v); }
MNNPY_INLINE VF to_float(VI v) { return __builtin_convertvector(v, VF); }
// Truncates; out of range is undefined.
MNNPY_INLINE VI to_int(VF v) { return __builtin_convertvector(v, VI); }
MNNPY_INLINE VF select(VI mask, VF a, VF b) { return mask ? a : b; }

// The first n lanes (0 <= n <= W), the rest 0.
MNNPY_INLINE VF load_partial(const float* p, int n) {
#if MNNPY_ISA == 2
  return reinterpret_cast<VF>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#elif MNNPY_ISA == 1
  const VI lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return reinterpret_cast<VF>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(lane < n)));
#else
  switch (n) {  // a loop would become a call of memcpy
    case 0: return VF{};
    case 1: return VF{p[0]};
    case 2: return VF{p[0], p[1]};
    case 3: return VF{p[0], p[1], p[2]};
    default: return load(p);
  }
#endif
}

// Only the first n lanes (0 <= n <= W).
MNNPY_INLINE void store_partial(float* p, VF v, int n) {
#if MNNPY_ISA == 2
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
#elif MNNPY_ISA == 1
  const VI lane = {0, 1, 2, 3, 4, 5, 6, 7};
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(lane < n), reinterpret_cast<__m256>(v));
#else
  if (n == W) return store(p, v);
  if (n > 0) p[0] = v[0];
  if (n > 1) p[1] = v[1];
  if (n > 2) p[2] = v[2];
#endif
}

// b where either is NaN.
MNNPY_INLINE VF min_second(VF a, VF b) {
#if MNNPY_ISA == 2
  return reinterpret_cast<VF>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif MNNPY_ISA == 1
  return reinterpret_cast<VF>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}
MNNPY_INLINE VF max_second(VF a, VF b) {
#if MNNPY_ISA == 2
  return reinterpret_cast<VF>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif MNNPY_ISA == 1
  return reinterpret_cast<VF>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}
// NaN where either is NaN.
MNNPY_INLINE VF vmin(VF a, VF b) { return a != a ? a : min_second(a, b); }
MNNPY_INLINE VF vmax(VF a, VF b) { return a != a ? a : max_second(a, b); }
MNNPY_INLINE VF vclip(VF x, VF low, VF high) { return min_second(high, max_second(low, x)); }  // NaN stays NaN
MNNPY_INLINE VF vabs(VF x) { return as_float(as_int(x) & 0x7fffffff); }
MNNPY_INLINE VF copysign(VF magnitude, VF sign) {
  return as_float((as_int(magnitude) & 0x7fffffff) | (as_int(sign) & INT32_MIN));
}
MNNPY_INLINE VF vsqrt(VF x) {
#if MNNPY_ISA == 2
  return reinterpret_cast<VF>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
#elif MNNPY_ISA == 1
  return reinterpret_cast<VF>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#else
  VF y;
  for (int k = 0; k < W; ++k) y[k] = __builtin_sqrtf(x[k]);
  return y;
#endif
}

MNNPY_INLINE float sum_lanes(VF v) {
#if MNNPY_ISA == 2
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float s = 0;
  for (int k = 0; k < W; ++k) s += v[k];
  return s;
#endif
}
MNNPY_INLINE float max_lanes(VF v) {  // NaN if any lane is
  float m = v[0];
  for (int k = 1; k < W; ++k) m = !(m >= v[k]) && m == m ? v[k] : m;
  return m;
}

// Rounds to the nearest integer, |x| < 2^22. (The sum drops the fraction; the compiler may not reassociate it.)
MNNPY_INLINE VF round_small(VF x) {
  const VF magic = splat(12582912.0f);
  return (x + magic) - magic;
}

// 2^n for integers -252 <= n <= 254 held in a float, times y.
MNNPY_INLINE VF scale_pow2(VF y, VF n) {
  const VI whole = to_int(n);
  const VI half = whole >> 1;
  return y * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
}

MNNPY_INLINE VF vexp(VF x) {
  const VF in = vclip(x, splat(-104.0f), splat(89.0f));
  const VF n = round_small(in * 1.44269504f);
  VF r = in - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  VF q = r * 1.381459638e-03f + 8.368717091e-03f;
  q = q * r + 4.166838809e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const VF y = (q * r) * r + r + 1.0f;
  return scale_pow2(y, n);
}

// e^x for x in [-87, 88] or clipped to it: half the scaling work of vexp, no denormal results.
MNNPY_INLINE VF vexp_fast(VF x) {
  const VF in = vclip(x, splat(-87.0f), splat(88.0f));
  const VF n = round_small(in * 1.44269504f);
  VF r = in - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  VF q = r * 1.381459638e-03f + 8.368717091e-03f;
  q = q * r + 4.166838809e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const VF y = (q * r) * r + r + 1.0f;
  return y * as_float((to_int(n) + 127) << 23);
}

MNNPY_INLINE VF vlog(VF x) {
  const VI tiny = x < 1.17549435e-38f;
  const VF scaled = tiny ? x * 8388608.0f : x;
  const VI bits = reinterpret_cast<VI>(reinterpret_cast<VU>(scaled) - 0x3f3504f3u);  // mantissa in [sqrt(1/2), sqrt(2))
  const VF e = to_float((bits >> 23) - (tiny & 23));
  const VF f = as_float((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  VF q = f * -7.859545868e-02f + 1.288162240e-01f;
  q = q * f - 1.312876763e-01f;
  q = q * f + 1.418119611e-01f;
  q = q * f - 1.662455314e-01f;
  q = q * f + 2.000228608e-01f;
  q = q * f - 2.500081043e-01f;
  q = q * f + 3.333331673e-01f;
  const VF f2 = f * f;
  VF y = q * f * f2 - e * 2.12194440e-4f;
  y = y - f2 * 0.5f + f;
  y = y + e * 0.693359375f;
  const VF inf = splat(__builtin_inff());
  y = x == inf ? inf : y;
  y = x == 0.0f ? -inf : y;
  return x < 0.0f || x != x ? splat(__builtin_nanf("")) : y;
}

MNNPY_INLINE VF vtanh(VF x) {
  const VF a = vabs(x);
  const VF s = x * x;
  VF q = s * -5.717036561e-03f + 2.065057900e-02f;
  q = q * s - 5.374349526e-02f;
  q = q * s + 1.333149125e-01f;
  q = q * s - 3.333328392e-01f;
  const VF low = x + x * s * q;
  const VF high = copysign(1.0f - 2.0f / (vexp_fast(a + a) + 1.0f), x);
  const VF y = a < 0.625f ? low : high;
  return x != x ? x : y;
}

MNNPY_INLINE VF vsigmoid(VF x) {
  const VF y = 1.0f / (1.0f + vexp(-x));
  return y;
}

// erfc(a) for a >= 0.9; denormal or 0 from about 9.2 on.
MNNPY_INLINE VF erfc_tail(VF a) {
  const VF t = 1.0f / (1.0f + a * 0.5f);
  VF p = t * 8.555492518e-02f - 2.031799396e-01f;
  p = p * t + 5.449688367e-02f;
  p = p * t + 7.925003874e-02f;
  p = p * t + 1.718706688e-01f;
  p = p * t + 2.484791067e-01f;
  p = p * t + 2.818617000e-01f;
  p = p * t + 2.821070233e-01f;
  return p * t * vexp(-(a * a));
}
// erf(x) for |x| < 0.92.
MNNPY_INLINE VF erf_middle(VF x) {
  const VF s = x * x;
  VF q = s * 8.409920794e-05f - 8.152628003e-04f;
  q = q * s + 5.201960234e-03f;
  q = q * s - 2.685979860e-02f;
  q = q * s + 1.128370331e-01f;
  q = q * s - 3.761263430e-01f;
  q = q * s + 1.128379167e+00f;
  return q * x;
}

MNNPY_INLINE VF verf(VF x) {
  const VF a = vabs(x);
  return a < 0.91f ? erf_middle(x) : copysign(1.0f - erfc_tail(a), x);
}

// x·Φ(x) = x/2 (1 + erf(x/√2)), accurate in the left tail too: Φ(-a) = t·P(t)·exp(-a²/2) with t = 1/(1 + 0.35 a) and a
// polynomial fitted for the least relative error on 0 <= a <= 14.5 (3e-8).
MNNPY_INLINE VF vgelu(VF x) {
  const VF a = min_second(splat(15.0f), vabs(x));
  const VF d = a * 0.35f + 1.0f;
#if MNNPY_ISA == 2
  const VF r = reinterpret_cast<VF>(_mm512_rcp14_ps(reinterpret_cast<__m512>(d)));
  const VF t = r * (2.0f - d * r);
#else
  const VF t = 1.0f / d;
#endif
  VF p = t * -2.915725986e-02f + 1.440281140e-01f;
  p = p * t - 2.558336864e-01f;
  p = p * t + 1.593141454e-01f;
  p = p * t - 2.320887482e-02f;
  p = p * t + 1.055511652e-01f;
  p = p * t + 1.198215946e-01f;
  p = p * t + 1.398634770e-01f;
  p = p * t + 1.396213088e-01f;
  const VF u = a * a * -0.5f;
  const VF n = round_small(u * 1.44269504f);
  VF w = u - n * 0.693359375f;
  w = w + n * 2.12194440e-4f;
  VF q = w * 1.381459638e-03f + 8.368717091e-03f;
  q = q * w + 4.166838809e-02f;
  q = q * w + 1.666652063e-01f;
  q = q * w + 4.999999345e-01f;
  const VF y = ((q * w) * w + w + 1.0f) * (p * t);
#if MNNPY_ISA == 2
  const VF tail = reinterpret_cast<VF>(_mm512_scalef_ps(reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(n)));
#else
  const VF tail = scale_pow2(y, n);
#endif
  return max_second(splat(-15.0f), x) * (x > 0.0f ? 1.0f - tail : tail);  // -inf · 0 is NaN, -15 · 0 is not
}

// The tanh approximation of GELU: x·sigmoid(2·√(2/π)·(x + 0.044715 x³)).
MNNPY_INLINE VF vgelu_tanh(VF x) {
  const VF u = 1.59576912f * (x + 0.044715f * x * x * x);
  const VF y = x / (1.0f + vexp(-u));
  return x < -1e4f ? splat(-0.0f) : y;
}

MNNPY_INLINE VF vsilu(VF x) {
  const VF y = x / (1.0f + vexp(-x));
  return x < -1e4f ? splat(-0.0f) : y;
}

}  // namespace mnnpy::MNNPY_NS
