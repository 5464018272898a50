// Copies of dense buffers: "Copy" (also for outputs that are inputs) and "Reinterpret".
#include <algorithm>
#include <cstring>

#include "kernel.h"

namespace mnnpy::MNNPY_NS {
namespace {

class Copy final : public Kernel {
 public:
  explicit Copy(size_t bytes) : bytes_(bytes) {}

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    if (inputs[0] == outputs[0]) return;
    const size_t step = size_t{256} << 10;
    const auto chunks = static_cast<int64_t>((bytes_ + step - 1) / step);
    auto* to = static_cast<std::byte*>(outputs[0]);
    const auto* from = static_cast<const std::byte*>(inputs[0]);
    ctx.pool->parallel_for(chunks, [&](int64_t c, int) {
      const size_t begin = static_cast<size_t>(c) * step;
      std::memcpy(to + begin, from + begin, std::min(step, bytes_ - begin));
    });
  }
  bool in_place(int input) const override { return input == 0; }
  std::string algorithm() const override { return "memcpy"; }

 private:
  size_t bytes_;
};

std::unique_ptr<Kernel> make_copy(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() != 1 || node.outputs.size() != 1) return decline(ctx, "takes one operand");
  if (node.inputs[0].bytes() != node.outputs[0].bytes()) return decline(ctx, "sizes differ");
  return std::make_unique<Copy>(node.inputs[0].bytes());
}

}  // namespace

MNNPY_REGISTER("Copy", make_copy);
MNNPY_REGISTER("Reinterpret", make_copy);

}  // namespace mnnpy::MNNPY_NS
