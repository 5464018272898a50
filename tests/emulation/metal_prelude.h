// The Metal Shading Language as the kernels of this project use it.
#pragma once
#include <algorithm>
#include <cmath>
#include "simt.h"

#define kernel
#define max_total_threads_per_threadgroup(n) maybe_unused
#define device
#define constant const
#define threadgroup static thread_local
#define threadgroup_barrier(flags) ::simt::wait(__LINE__)

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
struct uint3 {
  uint x, y, z;
};

namespace metal {
enum class mem_flags { mem_none, mem_threadgroup, mem_device };
using std::abs;
using std::acos;
using std::asin;
using std::atan;
using std::atan2;
using std::ceil;
using std::exp;
using std::fabs;
using std::floor;
using std::fma;
using std::fmax;
using std::fmin;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
using std::rint;
using std::trunc;
namespace precise {
using std::cos;
using std::cosh;
using std::exp;
using std::log;
using std::pow;
using std::sin;
using std::sinh;
using std::sqrt;
using std::tan;
using std::tanh;
}  // namespace precise

template <class T, class Merge>
inline T simd_reduce(T v, Merge merge) {
  for (uint d = 16; d > 0; d >>= 1) v = merge(v, ::simt::exchange_xor(v, d));
  return v;
}
template <class T>
inline T simd_sum(T v) {
  return simd_reduce(v, [](T a, T b) { return a + b; });
}
template <class T>
inline T simd_max(T v) {
  return simd_reduce(v, [](T a, T b) { return b > a ? b : a; });
}
template <class T>
inline T simd_min(T v) {
  return simd_reduce(v, [](T a, T b) { return b < a ? b : a; });
}

template <class To, class From>
inline To as_type(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}

struct atomic_uint {
  uint value;
};
enum memory_order { memory_order_relaxed };
inline uint atomic_load_explicit(const atomic_uint* at, memory_order) { return at->value; }
inline bool atomic_compare_exchange_weak_explicit(atomic_uint* at, uint* expected, uint value, memory_order, memory_order) {
  if (at->value == *expected) return at->value = value, true;
  *expected = at->value;
  return false;
}
}  // namespace metal
