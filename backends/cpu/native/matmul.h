// Geometry of matrix products, shared by the f32 and the bf16 kernels.
#pragma once

#include <optional>

#include "gemm.h"

namespace mnnpy::MNNPY_NS {

struct MatMulProblem {
  int64_t m = 0, n = 0, k = 0;
  bool trans_a = false, trans_b = false;
  int64_t batches = 1;
  std::vector<int64_t> a_batch, b_batch;  // matrix index per batch
  int64_t b_count = 1;                     // matrices in B
};

// Broadcast batch dims and 1-d operands; nullopt (with the reason) where shapes do not fit.
std::optional<MatMulProblem> matmul_problem(const NodeDesc& node, const char*& why);

}  // namespace mnnpy::MNNPY_NS
