// Geometry of channels-last convolutions, shared by the direct, depthwise and Winograd kernels.
#pragma once

#include "gemm.h"

namespace mnnpy::MNNPY_NS {

// Always three spatial dims (missing ones in front have size 1).
struct ConvShape {
  int64_t batch, c, m, group;
  int64_t in[3], out[3], kernel[3], stride[3], dilation[3], before[3], after[3];
  int64_t cg() const { return c / group; }
  int64_t mg() const { return m / group; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  int64_t out_pixels() const { return out[0] * out[1] * out[2]; }
  double flops() const {
    return 2.0 * static_cast<double>(batch * out_pixels() * m) * static_cast<double>(cg() * taps());
  }
};

// Reads shapes and attributes of a Convolution; false with a reason where they do not fit.
bool conv_shape(const NodeDesc& node, bool channels_last, ConvShape& s, const char*& why);

// Common checks of the f32 channels-last kernels: dtypes, layout, bias, residual, epilogue.
bool conv_operands(const NodeDesc& node, const ConvShape& s, Epilogue& e, const char*& why);

// Weights [M][C/group][taps] to [M][taps][C/group].
void taps_outside(const float* w, const ConvShape& s, float* out);

// Applies an activation that is not a clip to `count` vectors.
void activate_block(const Epilogue& e, VF* v, int count);

}  // namespace mnnpy::MNNPY_NS
