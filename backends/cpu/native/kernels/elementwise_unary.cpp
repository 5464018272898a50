// Block functions of one operand.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

// ---- f32 by vectors --------------------------------------------------------------------------------------------------

template <class F>
MNNPY_INLINE void by_vectors(const BlockArgs& q, F f) {
  const float* x = static_cast<const float*>(q.a);
  float* y = static_cast<float*>(q.y);
  int64_t k = 0;
  for (; k + W <= q.n; k += W) store(y + k, f(load(x + k)));
  if (k < q.n) {
    const int rest = static_cast<int>(q.n - k);
    store_partial(y + k, f(load_partial(x + k, rest)), rest);
  }
}

template <VF (*F)(VF)>
void vector_fn(const BlockArgs& q) {
  by_vectors(q, [](VF x) __attribute__((always_inline)) { return F(x); });
}

MNNPY_INLINE VF exp_f(VF x) { return vexp(x); }
MNNPY_INLINE VF log_f(VF x) { return vlog(x); }
MNNPY_INLINE VF tanh_f(VF x) { return copysign(vtanh(x), x); }  // keeps -0
MNNPY_INLINE VF erf_f(VF x) { return verf(x); }
MNNPY_INLINE VF gelu_f(VF x) { return vgelu(x); }
MNNPY_INLINE VF gelu_tanh_f(VF x) { return vgelu_tanh(x); }
MNNPY_INLINE VF silu_f(VF x) { return vsilu(x); }

// The side with a small result is computed as e/(1+e): no cancellation, subnormals kept.
MNNPY_INLINE VF sigmoid_f(VF x) {
  const VF e = vexp(-vabs(x));
  return (x >= 0.0f ? splat(1.0f) : e) / (1.0f + e);
}

// e^r − 1 for reduced r by the polynomial of vexp, then 2^n·p + (2^n − 1), at half scale because 2^128 is no float.
MNNPY_INLINE VF expm1_f(VF x) {
  const VF in = vclip(x, splat(-40.0f), splat(89.0f));
  const VF n = round_small(in * 1.44269504f);
  VF r = in - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  VF q = r * 1.381459638e-03f + 8.368717091e-03f;
  q = q * r + 4.166838809e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const VF p = (q * r) * r + r;
  const VF half = as_float((to_int(n) + 126) << 23);
  const VF y = (half * p + (half - 0.5f)) * 2.0f;
  return vabs(x) < 1e-7f ? x : y;  // keeps -0 and subnormals
}

// log(1 + x) with the rounding error of 1 + x put back to first order.
MNNPY_INLINE VF log1p_f(VF x) {
  const VF w = 1.0f + x;
  const VF lost = x - (w - 1.0f);
  const VF y = vlog(w) + lost / w;
  const VI plain = (x > 1e30f) | (x <= -1.0f);  // lost is meaningless there
  const VF z = plain ? vlog(w) : y;
  return vabs(x) < 1e-7f ? x : z;
}

MNNPY_INLINE VF softplus_f(VF x) {
  const VF e = vexp(-vabs(x));
  const VF y = vmax(x, VF{}) + log1p_f(e);
  return x != x ? x : y;
}

// x·tanh(log(1 + e^x)) as a ratio of polynomials in e^x.
MNNPY_INLINE VF mish_f(VF x) {
  const VF e = vexp(min_second(splat(30.0f), x));
  const VF p = e * (e + 2.0f);
  const VF y = x * (p / (p + 2.0f));
  const VF z = x > 30.0f ? x : y;
  return x < -1e4f ? splat(-0.0f) : z;
}

MNNPY_INLINE VF sinh_f(VF x) {
  const VF a = vabs(x);
  const VF t = expm1_f(a);
  const VF small = 0.5f * (t + t / (t + 1.0f));
  const VF e = vexp(0.5f * a);
  const VF y = copysign(a < 80.0f ? small : (0.5f * e) * e, x);
  return x != x ? x : y;
}

MNNPY_INLINE VF cosh_f(VF x) {
  const VF a = vabs(x);
  const VF e = vexp(a), h = vexp(0.5f * a);
  return a < 80.0f ? 0.5f * e + 0.5f / e : (0.5f * h) * h;
}

// Sine and cosine of float arguments in double arithmetic: two-part reduction by π/2 holds up to 2^30.
constexpr double kTwoOverPi = 0.63661977236758134308;
constexpr double kPiHalfHigh = 0x1.921fb544p+0;  // 33 bits, so that n·high is exact
constexpr double kPiHalfLow = 0x1.0b4611a626331p-34;
constexpr double kMagic = 0x1.8p52;
constexpr float kTrigLimit = 1e6f;

enum class Trig { SIN, COS, TAN };

template <Trig K>
MNNPY_INLINE float trig(float x) {
  const double d = x;
  const double shifted = d * kTwoOverPi + kMagic;
  const double n = shifted - kMagic;
  const int64_t quadrant = std::bit_cast<int64_t>(shifted) + (K == Trig::COS ? 1 : 0);
  const double r = (d - n * kPiHalfHigh) - n * kPiHalfLow;
  const double z = r * r;
  double s = 2.7555318967450504e-06 - 2.4758798937034237e-08 * z;
  s = s * z - 0.00019841263643494944;
  s = s * z + 0.0083333333249497009;
  s = s * z - 0.16666666666629834;
  s = s * z * r + r;
  double c = 2.4798990123070957e-05 - 2.7176355822757322e-07 * z;
  c = c * z - 0.0013888880843036838;
  c = c * z + 0.041666666557845303;
  c = c * z - 0.49999999999521949;
  c = c * z + 1.0;
  const bool odd = quadrant & 1;
  if (K == Trig::TAN) return static_cast<float>((odd ? -c : s) / (odd ? s : c));
  const double y = odd ? c : s;
  return static_cast<float>(quadrant & 2 ? -y : y);
}

template <Trig K>
void trig_fn(const BlockArgs& q) {
  const float* x = static_cast<const float*>(q.a);
  float* y = static_cast<float*>(q.y);
  int large = 0;
  for (int64_t k = 0; k < q.n; ++k) large |= !(std::fabs(x[k]) <= kTrigLimit);
  if (large) {
    for (int64_t k = 0; k < q.n; ++k) y[k] = K == Trig::SIN ? std::sin(x[k]) : K == Trig::COS ? std::cos(x[k]) : std::tan(x[k]);
    return;
  }
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) {
    const float v = trig<K>(x[k]);
    y[k] = K != Trig::COS && v == 0 ? x[k] : v;  // keeps -0
  }
}

void elu_f32(const BlockArgs& q) {
  const float alpha = static_cast<float>(q.alpha);
  by_vectors(q, [=](VF x) __attribute__((always_inline)) { return x < 0.0f ? alpha * expm1_f(x) : x; });
}

// ---- any type, by loops that the compiler vectorises -----------------------------------------------------------------

template <class T, class F>
MNNPY_INLINE void by_elements(const BlockArgs& q, F f) {
  const T* x = static_cast<const T*>(q.a);
  T* y = static_cast<T*>(q.y);
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) y[k] = f(x[k]);
}

// Two's complement: the smallest value is its own negative, products wrap. In signed types that would be undefined.
template <class T>
MNNPY_INLINE T negated(T x) {
  using U = std::make_unsigned_t<T>;
  return static_cast<T>(U(0) - static_cast<U>(x));
}
template <class T>
MNNPY_INLINE T squared(T x) {
  if constexpr (std::is_integral_v<T>) return static_cast<T>(static_cast<uint64_t>(x) * static_cast<uint64_t>(x));
  return x * x;
}

#define MNNPY_UNARY(name, expression)                                   \
  template <class T>                                                    \
  void name(const BlockArgs& q) {                                       \
    by_elements<T>(q, [](T x) { return static_cast<T>(expression); });  \
  }
MNNPY_UNARY(neg, negated(x))
MNNPY_UNARY(neg_float, -x)
MNNPY_UNARY(abs_int, x < 0 ? negated(x) : x)
MNNPY_UNARY(abs_float, std::fabs(x))
MNNPY_UNARY(sign_int, (x > 0) - (x < 0))
MNNPY_UNARY(sign_float, x > 0 ? T(1) : x < 0 ? T(-1) : x == 0 ? T(0) : x)
MNNPY_UNARY(square_fn, squared(x))
MNNPY_UNARY(relu_fn, x < T(0) ? T(0) : x)
MNNPY_UNARY(bit_not, ~x)
MNNPY_UNARY(floor_fn, std::floor(x))
MNNPY_UNARY(ceil_fn, std::ceil(x))
MNNPY_UNARY(round_fn, std::rint(x))
MNNPY_UNARY(trunc_fn, std::trunc(x))
MNNPY_UNARY(sqrt_fn, std::sqrt(x))
MNNPY_UNARY(rsqrt_fn, T(1) / std::sqrt(x))
MNNPY_UNARY(reciprocal_fn, T(1) / x)
MNNPY_UNARY(exp_fn, std::exp(x))
MNNPY_UNARY(expm1_fn, std::expm1(x))
MNNPY_UNARY(log_fn, std::log(x))
MNNPY_UNARY(log1p_fn, std::log1p(x))
MNNPY_UNARY(sin_fn, std::sin(x))
MNNPY_UNARY(cos_fn, std::cos(x))
MNNPY_UNARY(tan_fn, std::tan(x))
MNNPY_UNARY(asin_fn, std::asin(x))
MNNPY_UNARY(acos_fn, std::acos(x))
MNNPY_UNARY(atan_fn, std::atan(x))
MNNPY_UNARY(sinh_fn, std::sinh(x))
MNNPY_UNARY(cosh_fn, std::cosh(x))
MNNPY_UNARY(tanh_fn, std::tanh(x))
MNNPY_UNARY(asinh_fn, std::asinh(x))
MNNPY_UNARY(acosh_fn, std::acosh(x))
MNNPY_UNARY(atanh_fn, std::atanh(x))
MNNPY_UNARY(erf_fn, std::erf(x))
#undef MNNPY_UNARY

constexpr double kSqrtHalf = 0.70710678118654752440, kSqrtTwoOverPi = 0.79788456080286535588;
constexpr double kInf = std::numeric_limits<double>::infinity();

double sigmoid_d(double x) {
  const double e = std::exp(-std::fabs(x));
  return (x >= 0 ? 1.0 : e) / (1.0 + e);
}
double softplus_d(double x) { return (x > 0 ? x : x == x ? 0.0 : x) + std::log1p(std::exp(-std::fabs(x))); }
double silu_d(double x) { return x == -kInf ? 0.0 : x * sigmoid_d(x); }
double gelu_d(double x) { return x == -kInf ? 0.0 : 0.5 * x * std::erfc(-x * kSqrtHalf); }
double gelu_tanh_d(double x) { return x == -kInf ? 0.0 : x * sigmoid_d(2 * kSqrtTwoOverPi * (x + 0.044715 * x * x * x)); }
double mish_d(double x) { return x == -kInf ? 0.0 : x * std::tanh(softplus_d(x)); }

template <double (*F)(double)>
void double_fn(const BlockArgs& q) {
  by_elements<double>(q, [](double x) { return F(x); });
}

template <class T>
void leaky_relu_fn(const BlockArgs& q) {
  const T alpha = static_cast<T>(q.alpha);
  by_elements<T>(q, [=](T x) { return x < 0 ? alpha * x : x; });
}
void elu_f64(const BlockArgs& q) {
  const double alpha = q.alpha;
  by_elements<double>(q, [=](double x) { return x < 0 ? alpha * std::expm1(x) : x; });
}
template <class T>
void hard_sigmoid_fn(const BlockArgs& q) {
  const T alpha = static_cast<T>(q.alpha), beta = static_cast<T>(q.beta);
  by_elements<T>(q, [=](T x) {
    const T v = alpha * x + beta;
    const T w = v > T(1) ? T(1) : v;
    return w < T(0) ? T(0) : w;
  });
}
template <class T>
void hard_swish_fn(const BlockArgs& q) {
  by_elements<T>(q, [](T x) {
    const T v = x / T(6) + T(0.5);
    const T w = v > T(1) ? T(1) : v;
    return x * (w < T(0) ? T(0) : w);
  });
}
// Bounds outside an integer type mean its ends.
template <class T>
T bound(double v) {
  if constexpr (std::is_integral_v<T>) {
    if (!(v > static_cast<double>(std::numeric_limits<T>::min()))) return std::numeric_limits<T>::min();
    if (v >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  }
  return static_cast<T>(v);
}
template <class T>
void clip_fn(const BlockArgs& q) {
  const T low = bound<T>(q.alpha), high = bound<T>(q.beta);
  by_elements<T>(q, [=](T x) {
    const T v = x < low ? low : x;
    return v > high ? high : v;
  });
}

template <class T>
void copy_fn(const BlockArgs& q) {
  if (q.a != q.y) std::memcpy(q.y, q.a, static_cast<size_t>(q.n) * sizeof(T));
}
void not_fn(const BlockArgs& q) {
  const auto* x = static_cast<const uint8_t*>(q.a);
  auto* y = static_cast<uint8_t*>(q.y);
  MNNPY_IVDEP
  for (int64_t k = 0; k < q.n; ++k) y[k] = x[k] == 0;
}
// By bits, so that no compiler option can fold it away.
template <class T, class U, bool kNan>
void classify_fn(const BlockArgs& q) {
  const T* x = static_cast<const T*>(q.a);
  auto* y = static_cast<uint8_t*>(q.y);
  constexpr U infinity = std::bit_cast<U>(std::numeric_limits<T>::infinity());
  for (int64_t k = 0; k < q.n; ++k) {
    const U u = std::bit_cast<U>(x[k]) & (~U{0} >> 1);
    y[k] = kNan ? u > infinity : u == infinity;
  }
}

struct Row {
  const char* name;
  BlockFn f32, f64;
  double cost;
  bool exact;
};
#define MNNPY_BOTH(fn) fn<float>, fn<double>
constexpr Row kFloatRows[] = {
    {"Abs", MNNPY_BOTH(abs_float), 1, true},
    {"Neg", MNNPY_BOTH(neg_float), 1, true},
    {"Sign", MNNPY_BOTH(sign_float), 1, true},
    {"Floor", MNNPY_BOTH(floor_fn), 1, false},
    {"Ceil", MNNPY_BOTH(ceil_fn), 1, false},
    {"Round", MNNPY_BOTH(round_fn), 1, false},
    {"Trunc", MNNPY_BOTH(trunc_fn), 1, true},
    {"Sqrt", MNNPY_BOTH(sqrt_fn), 2, false},
    {"Rsqrt", MNNPY_BOTH(rsqrt_fn), 4, false},
    {"Reciprocal", MNNPY_BOTH(reciprocal_fn), 2, false},
    {"Square", MNNPY_BOTH(square_fn), 1, false},
    {"Relu", MNNPY_BOTH(relu_fn), 1, true},
    {"Exp", vector_fn<exp_f>, exp_fn<double>, 4, false},
    {"Expm1", vector_fn<expm1_f>, expm1_fn<double>, 5, false},
    {"Log", vector_fn<log_f>, log_fn<double>, 5, false},
    {"Log1p", vector_fn<log1p_f>, log1p_fn<double>, 7, false},
    {"Sin", trig_fn<Trig::SIN>, sin_fn<double>, 8, false},
    {"Cos", trig_fn<Trig::COS>, cos_fn<double>, 8, false},
    {"Tan", trig_fn<Trig::TAN>, tan_fn<double>, 10, false},
    {"Asin", MNNPY_BOTH(asin_fn), 30, false},
    {"Acos", MNNPY_BOTH(acos_fn), 30, false},
    {"Atan", MNNPY_BOTH(atan_fn), 30, false},
    {"Sinh", vector_fn<sinh_f>, sinh_fn<double>, 9, false},
    {"Cosh", vector_fn<cosh_f>, cosh_fn<double>, 9, false},
    {"Tanh", vector_fn<tanh_f>, tanh_fn<double>, 6, false},
    {"Asinh", MNNPY_BOTH(asinh_fn), 40, false},
    {"Acosh", MNNPY_BOTH(acosh_fn), 40, false},
    {"Atanh", MNNPY_BOTH(atanh_fn), 40, false},
    {"Erf", vector_fn<erf_f>, erf_fn<double>, 8, false},
    {"Sigmoid", vector_fn<sigmoid_f>, double_fn<sigmoid_d>, 5, false},
    {"Softplus", vector_fn<softplus_f>, double_fn<softplus_d>, 10, false},
    {"Silu", vector_fn<silu_f>, double_fn<silu_d>, 5, false},
    {"Gelu", vector_fn<gelu_f>, double_fn<gelu_d>, 9, false},
    {"GeluTanh", vector_fn<gelu_tanh_f>, double_fn<gelu_tanh_d>, 6, false},
    {"HardSwish", MNNPY_BOTH(hard_swish_fn), 1, false},
    {"Mish", vector_fn<mish_f>, double_fn<mish_d>, 6, false},
    {"LeakyRelu", MNNPY_BOTH(leaky_relu_fn), 1, false},
    {"Elu", elu_f32, elu_f64, 6, false},
    {"HardSigmoid", MNNPY_BOTH(hard_sigmoid_fn), 1, false},
    {"Clip", MNNPY_BOTH(clip_fn), 1, false},
    {"IsNaN", classify_fn<float, uint32_t, true>, classify_fn<double, uint64_t, true>, 1, true},
    {"IsInf", classify_fn<float, uint32_t, false>, classify_fn<double, uint64_t, false>, 1, true},
};
#undef MNNPY_BOTH

bool is(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

template <class T>
BlockFn integer_op(const char* fn) {
  using U = std::make_unsigned_t<T>;
  if (is(fn, "Neg")) return neg<U>;
  if (is(fn, "Abs")) return std::is_signed_v<T> ? abs_int<T> : copy_fn<T>;
  if (is(fn, "Sign")) return sign_int<T>;
  if (is(fn, "Square")) return square_fn<U>;
  if (is(fn, "Relu")) return std::is_signed_v<T> ? relu_fn<T> : copy_fn<T>;
  if (is(fn, "BitwiseNot")) return bit_not<U>;
  if (is(fn, "Clip")) return clip_fn<T>;
  if (is(fn, "Floor") || is(fn, "Ceil") || is(fn, "Round") || is(fn, "Trunc")) return copy_fn<T>;
  return nullptr;
}

}  // namespace

BlockOp unary_op(const char* fn, DType t, double, double) {
  if (t == DType::F32 || t == DType::F64) {
    for (const Row& r : kFloatRows)
      if (is(fn, r.name)) return {t == DType::F32 ? r.f32 : r.f64, t == DType::F32 ? r.cost : 4 * r.cost, r.exact};
    return {};
  }
  if (t == DType::BOOL) return {is(fn, "Not") ? not_fn : nullptr, 1, true};
  BlockFn found = nullptr;
  with_type(t, [&](auto v) {
    using T = decltype(v);
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) found = integer_op<T>(fn);
  });
  return {found, 1, false};
}

}  // namespace mnnpy::MNNPY_NS
