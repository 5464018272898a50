// Block functions of the element-wise kernels: each works on one block of at most kBlock elements.
#pragma once

#include "kernels/light.h"
#include "kernels/numbers.h"

namespace mnnpy::MNNPY_NS {

constexpr int64_t kBlock = 1024;

struct BlockArgs {
  const void* a;
  const void* b;
  const void* c;
  void* y;  // may be one of the operands
  int64_t n;
  double alpha, beta;
};
using BlockFn = void (*)(const BlockArgs&);

struct BlockOp {
  BlockFn fn = nullptr;
  double cost = 1;     // in simple operations per element
  bool exact = false;  // gives values of the operand's type: nothing to round
};

// nullptr fn where the function does not exist for the type. *t* is a compute type.
BlockOp unary_op(const char* fn, DType t, double alpha, double beta);
BlockOp binary_op(const char* fn, DType t);
BlockFn select_op(DType t);
// From compute type to the compute type of *to* so that storing gives the correctly rounded element.
BlockOp convert_op(DType from, DType to);

// Rounding of conversions.
struct StoreMode {
  bool saturate = true;
  E8M0Round e8m0 = E8M0Round::UP;
};
using LoadFn = void (*)(const void* from, void* to, int64_t n);
using StoreFn = void (*)(const void* from, void* to, int64_t n, StoreMode mode);
// Element type → its compute type and back; nullptr where both are the same.
LoadFn load_op(DType t);
StoreFn store_op(DType t);

StoreMode store_mode(const NodeDesc& node);  // attributes saturate and round_mode

}  // namespace mnnpy::MNNPY_NS
