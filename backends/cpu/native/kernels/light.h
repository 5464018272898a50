// Shared by the element-wise, reducing and moving kernels: strides, work splitting, type dispatch.
#pragma once

#include <algorithm>
#include <vector>

#include "kernel.h"

namespace mnnpy::MNNPY_NS {

struct Shape8 {  // a small vector without code from the standard library
  int rank = 0;
  int64_t d[16] = {};
  int64_t& operator[](int k) { return d[k]; }
  int64_t operator[](int k) const { return d[k]; }
};
constexpr int kMaxRank = 15;

inline int64_t count_of(const Dims& s) {
  int64_t n = 1;
  for (int64_t d : s) n *= d;
  return n;
}

inline int normal_axis(int64_t axis, int rank) { return static_cast<int>(axis < 0 ? axis + rank : axis); }

// outer × axis × inner of a dense tensor.
struct AxisSplit {
  int64_t outer = 1, n = 1, inner = 1;
};
inline AxisSplit split_axis(const Dims& shape, int axis) {
  AxisSplit s;
  for (int k = 0; k < static_cast<int>(shape.size()); ++k) (k < axis ? s.outer : k == axis ? s.n : s.inner) *= shape[k];
  return s;
}

// Chunks that are worth a thread: *cost* is in elements of simple arithmetic.
inline int64_t chunk_count(int threads, int64_t items, double cost) {
  constexpr double worth = 32768;  // about 10 µs
  if (threads <= 1 || items <= 1 || cost < 2 * worth) return 1;
  const auto most = static_cast<int64_t>(std::min(cost / worth, 4.0 * threads));
  return std::max<int64_t>(1, std::min(items, most));
}

// body(begin, end, slot) over [0, items); serial where the whole is small.
template <class Body>
void share(const RunContext& ctx, int64_t items, double cost_per_item, Body&& body) {
  if (items <= 0) return;
  const int64_t chunks = chunk_count(ctx.pool->threads(), items, static_cast<double>(items) * cost_per_item);
  ctx.pool->parallel_for(chunks, [&](int64_t c, int slot) {
    const int64_t begin = items * c / chunks, end = items * (c + 1) / chunks;
    if (begin < end) body(begin, end, slot);
  });
}

inline size_t align64(size_t n) { return (n + 63) / 64 * 64; }

// Calls f(T{}) for the C++ type of a compute type; false where there is none.
template <class F>
bool with_type(DType t, F&& f) {
  switch (t) {
    case DType::BOOL: f(bool{}); return true;
    case DType::I8: f(int8_t{}); return true;
    case DType::I16: f(int16_t{}); return true;
    case DType::I32: f(int32_t{}); return true;
    case DType::I64: f(int64_t{}); return true;
    case DType::U8: f(uint8_t{}); return true;
    case DType::U16: f(uint16_t{}); return true;
    case DType::U32: f(uint32_t{}); return true;
    case DType::U64: f(uint64_t{}); return true;
    case DType::F32: f(float{}); return true;
    case DType::F64: f(double{}); return true;
    default: return false;
  }
}

}  // namespace mnnpy::MNNPY_NS
