// Aligned buffers, on huge pages where they are large.
#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <utility>

#include "core/core.h"

namespace mnnpy {
namespace {
constexpr size_t kHuge = size_t{2} << 20;
}

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const size_t align = bytes >= kHuge ? kHuge : 64;
  void* p = nullptr;
  if (posix_memalign(&p, align, (bytes + align - 1) / align * align) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHuge) madvise(p, bytes, MADV_HUGEPAGE);  // a hint: without it pages are small and slower
#endif
  data_ = static_cast<std::byte*>(p);
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace mnnpy
