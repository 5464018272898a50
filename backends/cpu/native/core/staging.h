// Weights on their way from where the model keeps them into a kernel.
#pragma once

#include "core/core.h"

namespace mnnpy {

// A constant operand of a node that is being built.
struct Source {
  size_t input;
  bool mapped;  // see Place::mapped
  std::vector<double> factors;  // one per index of the first axis, multiplied in; empty: none
};

// A copy of a constant that the kernel goes on reading.
struct Staged {
  size_t input;
  Buffer copy;
};

// Builds a kernel. Constants that lie at odd addresses or have factors are copied for it, one node at a time, so that no
// second copy of all weights ever exists; copies that were not packed are added to `kept`. Pages of files that were
// read for packing are given back.
std::unique_ptr<Kernel> build_staged(NodeDesc& node, const std::vector<Source>& sources, const BuildContext& ctx,
                                     std::vector<Staged>& kept);

}  // namespace mnnpy
