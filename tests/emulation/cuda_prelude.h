// CUDA C++ as the kernels of this project use it.
#pragma once
#include <cmath>
#include <algorithm>
#include "simt.h"

#define __global__
#define __shared__ static thread_local
#define __restrict__ __restrict
#define __launch_bounds__(n)
#define threadIdx (::simt::local_id)
#define blockIdx (::simt::group_id)
#define blockDim (::simt::local_size)
#define gridDim (::simt::group_count)
#define __device__
#define __shfl_xor_sync(mask, value, lanes) ::simt::exchange_xor(value, lanes)
#define __syncthreads() ::simt::wait(__LINE__)

using std::isinf;
using std::isnan;
using std::max;
using std::min;

template <class To, class From>
inline To simt_bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}
inline int __float_as_int(float v) { return simt_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return simt_bits<unsigned>(v); }
inline float __int_as_float(int v) { return simt_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return simt_bits<float>(v); }
inline long long __double_as_longlong(double v) { return simt_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return simt_bits<double>(v); }

typedef _Float16 __half;
inline float __half2float(__half v) { return static_cast<float>(v); }
inline __half __float2half_rn(float v) { return static_cast<__half>(v); }

inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
  const unsigned old = *at;
  if (old == expected) *at = value;
  return old;
}
