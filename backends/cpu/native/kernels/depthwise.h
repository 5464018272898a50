// Lines of depthwise convolutions, shared by the depthwise kernel and the strips.
#pragma once

#include "conv.h"

namespace mnnpy::MNNPY_NS {

constexpr int kDepthwiseVectors = 2;    // most vectors of channels per call
constexpr int kDepthwiseLines = 128;    // most kernel lines (depth · height)

// One output line of one block of channels.
struct DepthwiseLine {
  const float* const* rows;     // input line per kernel line inside the input, at the block's first channel and column 0
  const float* const* weights;  // [kernel_w][weight_pitch] per such line
  int count;                    // kernel lines inside the input
  int64_t kernel_w, weight_pitch, step, dilation, before;  // step, dilation, before in pixels
  int64_t in_w;
  int64_t pixel, out_pixel;     // floats per pixel
  const float* bias;
  const float* residual;        // as out
  float* out;
  int lanes;                    // of the last vector; below W nothing beyond them is touched
};

// Output columns [begin, end) of a line of `vectors` vectors; columns outside the input are skipped.
void depthwise_columns(int vectors, const DepthwiseLine& l, const Epilogue& e, int64_t begin, int64_t end);

// How many columns to do of each line before the next columns, so that the input lines stay in L1.
int64_t depthwise_width(int vectors, const ConvShape& s);

// Weights [C][taps] to [taps][pitch], times the epilogue's scale; channels beyond C are zeros.
void pack_depthwise(const float* w, int64_t c, int64_t taps, int64_t pitch, float scale, float* to);

}  // namespace mnnpy::MNNPY_NS
