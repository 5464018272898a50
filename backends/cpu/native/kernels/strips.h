// Chains of convolutions computed a few lines at a time, so that what lies between them stays in L2.
#pragma once

#include <atomic>
#include <memory>

#include "depthwise.h"

namespace mnnpy::MNNPY_NS {

// One convolution of a chain: 1×1 (stride 1, no padding) or depthwise.
struct Stage {
  ConvShape s;
  Epilogue epilogue;
  bool depthwise = false;
  Panels panels;                 // of a 1×1
  int64_t weights = 0, bias = -1;  // floats from the start of the packed block; bias -1: none
  // What it writes, unless it is the last: `ring` lines of [left | out | right] pixels of `pitch` floats, zeros at both ends.
  int64_t pitch = 0, left = 0, columns = 0, ring = 0, buffer = 0;
  int64_t line() const { return columns * pitch; }
};

// Numbers [0, count) in contiguous ranges, one per participant. Who has finished his own takes the back half of the longest
// range left: neighbours stay with one participant (no line is computed twice), yet nobody waits for a slow one.
class Ranges {
 public:
  Ranges(int64_t count, int64_t participants);
  // The next number of this participant; false where nothing is left anywhere.
  bool next(int64_t participant, int64_t& number);

 private:
  struct alignas(64) Range {
    std::atomic<uint64_t> ends{0};  // begin << 32 | end
  };
  bool steal(int64_t participant);
  int64_t participants_;
  std::unique_ptr<Range[]> ranges_;
};

}  // namespace mnnpy::MNNPY_NS
