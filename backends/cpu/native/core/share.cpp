// Packed weights that several plans hold alike (one plan per input shape) exist once in memory.
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "kernel.h"

namespace mnnpy {
namespace {

struct Entry {
  std::weak_ptr<const void> block;
  size_t bytes;
};

// Four lanes of multiply and rotate: as fast as memory, and equality is checked byte by byte afterwards.
uint64_t hash_bytes(const void* data, size_t bytes) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15ull;
  uint64_t lane[4] = {1, 2, 3, 4};
  const auto* p = static_cast<const unsigned char*>(data);
  size_t k = 0;
  for (; k + 32 <= bytes; k += 32) {
    uint64_t word[4];
    std::memcpy(word, p + k, 32);
    for (int j = 0; j < 4; ++j) {
      lane[j] = (lane[j] ^ word[j]) * kPrime;
      lane[j] ^= lane[j] >> 29;
    }
  }
  for (; k < bytes; ++k) lane[0] = (lane[0] ^ p[k]) * kPrime;
  return ((lane[0] * kPrime ^ lane[1]) * kPrime ^ lane[2]) * kPrime ^ lane[3] ^ bytes;
}

}  // namespace

std::shared_ptr<const void> share_block(std::shared_ptr<const void> block, size_t bytes) {
  static std::mutex mutex;
  static std::unordered_multimap<uint64_t, Entry> known;
  if (bytes == 0) return block;
  const uint64_t hash = hash_bytes(block.get(), bytes);
  std::lock_guard lock(mutex);
  auto [it, end] = known.equal_range(hash);
  while (it != end) {
    const auto other = it->second.block.lock();
    if (!other) {
      it = known.erase(it);
    } else if (it->second.bytes == bytes && std::memcmp(other.get(), block.get(), bytes) == 0) {
      return other;
    } else {
      ++it;
    }
  }
  known.emplace(hash, Entry{block, bytes});
  return block;
}

}  // namespace mnnpy
