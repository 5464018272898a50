// Row and column reductions of one block; see reduce.cpp.
#pragma once

#include "kernels/light.h"
#include "kernels/numbers.h"

namespace mnnpy::MNNPY_NS {

enum class Fold { SUM, PROD, MAX, MIN, SQUARES, ABSOLUTES };

// Accumulators are double for floats (f32 sums of short blocks first), int64 for integers; extremes keep the type's order.
union Total {
  double f;
  int64_t i;
  uint64_t u;
};

struct FoldOps {
  void (*start)(Total* acc, int64_t n);
  void (*row)(const void* x, int64_t n, Total* acc);                            // acc[0] ← acc[0] ∘ fold(x[0..n))
  void (*columns)(const void* x, int64_t rows, int64_t stride, int64_t n, Total* acc);  // acc[j] ← acc[j] ∘ fold over rows
  void (*merge)(const Total* from, int64_t n, Total* acc);
  void (*finish)(const Total* acc, int64_t n, int64_t count, bool mean, bool root, void* y);  // to the compute type
};

// Null functions where the type has none. *t* is a compute type; columns take at most kColumns columns.
constexpr int64_t kColumns = 256;
FoldOps fold_ops(Fold fold, DType t);

}  // namespace mnnpy::MNNPY_NS
