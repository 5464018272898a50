#include "core/staging.h"

#include <algorithm>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace mnnpy {
namespace {

void scale_rows(const TensorDesc& t, const std::vector<double>& factors, float* out) {
  if (t.dtype != DType::F32 || t.shape.empty() || t.shape[0] != static_cast<int64_t>(factors.size()))
    throw std::invalid_argument("weight_scale does not fit the weights");
  const auto row = static_cast<size_t>(t.count()) / std::max<size_t>(factors.size(), 1);
  const auto* in = static_cast<const std::byte*>(t.constant);  // maybe not aligned
  for (size_t r = 0; r < factors.size(); ++r) {
    std::memcpy(out + r * row, in + r * row * sizeof(float), row * sizeof(float));
    const auto f = static_cast<float>(factors[r]);
    for (size_t k = r * row; k < (r + 1) * row; ++k) out[k] *= f;
  }
}

// Whole pages only: what shares a page with something else stays.
void give_back(const void* data, size_t bytes) {
#if defined(MADV_DONTNEED)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const auto last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace

std::unique_ptr<Kernel> build_staged(NodeDesc& node, const std::vector<Source>& sources, const BuildContext& ctx,
                                     std::vector<Staged>& kept) {
  struct Read {
    size_t input;
    const void* data;
  };
  std::vector<Read> mapped;
  std::vector<Staged> staged;
  for (const Source& s : sources) {
    TensorDesc& t = node.inputs[s.input];
    if (s.mapped) mapped.push_back({s.input, t.constant});
    const bool odd = reinterpret_cast<uintptr_t>(t.constant) % dtype_size(t.dtype) != 0;
    if (s.factors.empty() && !odd) continue;
    Buffer copy(t.bytes());
    if (s.factors.empty()) {
      std::memcpy(copy.data(), t.constant, t.bytes());
    } else {
      scale_rows(t, s.factors, reinterpret_cast<float*>(copy.data()));
    }
    t.constant = copy.data();
    staged.push_back({s.input, std::move(copy)});
  }
  auto kernel = make_kernel(node, ctx);
  for (Staged& s : staged)
    if (!kernel->consumed(static_cast<int>(s.input))) kept.push_back(std::move(s));
  for (const Read& r : mapped) {
    const bool copied = std::any_of(kept.begin(), kept.end(), [&](const Staged& s) { return s.input == r.input; });
    if (copied || kernel->consumed(static_cast<int>(r.input))) give_back(r.data, node.inputs[r.input].bytes());
  }
  return kernel;
}

}  // namespace mnnpy
