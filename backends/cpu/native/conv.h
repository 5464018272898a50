// Geometry of channels-last convolutions, shared by the direct, depthwise and Winograd kernels.
#pragma once

#include "gemm.h"

namespace mnnpy::MNNPY_NS {

// Always three spatial dims (missing ones in front have size 1).
struct ConvShape {
  int64_t batch, c, m, group;
  int64_t pitch;  // from one output pixel to the next: m, or more where the result is a stretch of a wider tensor
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

// Reads shapes and attributes of a Convolution; false with a reason where they do not fit. Kernels that write with
// ConvShape::pitch say so; for all others a node with the attribute `pitch` does not fit.
bool conv_shape(const NodeDesc& node, bool channels_last, ConvShape& s, const char*& why, bool pitched = false);

// Common checks of the f32 channels-last kernels: dtypes, layout, bias, residual, epilogue.
bool conv_operands(const NodeDesc& node, const ConvShape& s, Epilogue& e, const char*& why);

// Whether the weights are constant: here, or (asked by supports() with weights="constant") in the program to come.
inline bool constant_weights(const NodeDesc& node) {
  return node.inputs[1].constant != nullptr || node.s("weights", "") == "constant";
}

// Weights [M][C/group][taps] to [M][taps][C/group].
void taps_outside(const float* w, const ConvShape& s, float* out);

// Negative padding crops.
bool conv_cropped(const ConvShape& s);

// Rows of the implicit matrix: pixels of an input with `pitch` elements per pixel; padding reads zeros.
template <class T>
struct PixelRows {
  const ConvShape* s;
  const T* x;          // at the group's first channel
  const T* zeros;
  const int64_t in[3];  // of x
  int64_t pitch;
  int64_t before[3];

  void operator()(int64_t row, int64_t count, int64_t tap, int64_t tap_count, const T** table, int64_t stride) const {
    for (int64_t r = 0; r < count;) {
      const int64_t at = row + r, ow = at % s->out[2], oh = at / s->out[2] % s->out[1];
      const int64_t od = at / (s->out[2] * s->out[1]) % s->out[0], n = at / (s->out[2] * s->out[1] * s->out[0]);
      const int64_t run = std::min(count - r, s->out[2] - ow);
      for (int64_t t = 0; t < tap_count; ++t) {
        const int64_t kw = (tap + t) % s->kernel[2], kh = (tap + t) / s->kernel[2] % s->kernel[1];
        const int64_t kd = (tap + t) / (s->kernel[2] * s->kernel[1]);
        line(table + t * stride + r, run, n, od * s->stride[0] + kd * s->dilation[0] - before[0],
             oh * s->stride[1] + kh * s->dilation[1] - before[1], ow * s->stride[2] + kw * s->dilation[2] - before[2]);
      }
      r += run;
    }
  }

  void line(const T** to, int64_t run, int64_t n, int64_t id, int64_t ih, int64_t iw) const {
    int64_t k = 0;
    if (id >= 0 && id < in[0] && ih >= 0 && ih < in[1]) {
      const int64_t step = s->stride[2];
      const T* base = x + ((n * in[0] + id) * in[1] + ih) * in[2] * pitch;
      for (; k < run && iw + k * step < 0; ++k) to[k] = zeros;
      const int64_t room = in[2] - iw;  // first column outside, relative to iw
      const int64_t end = std::min(run, room <= 0 ? int64_t{0} : (room + step - 1) / step);
      for (; k < end; ++k) to[k] = base + (iw + k * step) * pitch;
    }
    for (; k < run; ++k) to[k] = zeros;
  }
};

// Applies an activation that is not a clip to `count` vectors.
void activate_block(const Epilogue& e, VF* v, int count);

}  // namespace mnnpy::MNNPY_NS
