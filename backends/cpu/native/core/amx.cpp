// Detection of AMX, and its stand-in.
#include "amx.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mnnpy {
namespace {

// CPUID, then what the operating system saves (XCR0), then its permission for this process: the state of tiles is large
// (8 KiB a thread), so Linux wants to be asked (Documentation/arch/x86/xstate.rst).
const char* find_reason() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 1) == 0) return "this CPU has no AMX tiles";
  if ((d >> 22 & 1) == 0) return "AMX of this CPU has no bf16 products";
  if (__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) == 0 || a >> 16 != 1024 || (b & 0xffff) != 64 || b >> 16 < 8 || (c & 0xffff) < 16)
    return "AMX of this CPU has tiles of another size";
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return "the operating system saves no extended state";
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTiles = 3u << 17;
  if ((low & kTiles) != kTiles) return "the operating system does not save AMX tiles (XCR0)";
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0)
    return "the operating system refuses AMX tiles to this process (arch_prctl ARCH_REQ_XCOMP_PERM)";
  return "";
#else
  return "AMX is supported on x86-64 Linux";
#endif
}

std::atomic<bool>& emulation() {
  static std::atomic<bool> on{false};
  return on;
}

}  // namespace

const char* amx_reason() {
  static const char* const reason = find_reason();
  return reason;
}

AmxUnit amx_unit() {
  if (emulation().load(std::memory_order_relaxed)) return AmxUnit::EMULATED;
  return *amx_reason() == '\0' ? AmxUnit::HARDWARE : AmxUnit::NONE;
}

void emulate_amx(bool on) { emulation().store(on); }

namespace amx_emulator {
namespace {

constexpr int kTiles = 8, kRows = 16, kBytes = 64;

struct State {
  bool configured;
  uint8_t rows[kTiles];
  uint16_t bytes[kTiles];
  alignas(64) unsigned char data[kTiles][kRows][kBytes];
};
thread_local State state;

[[noreturn]] void fault(const std::string& what) { throw std::logic_error("AMX: " + what); }

State& used(int tile) {
  if (!state.configured) fault("no configuration is loaded");
  if (tile < 0 || tile >= kTiles || state.rows[tile] == 0) fault("tile " + std::to_string(tile) + " is not configured");
  return state;
}

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// One bf16, denormals as zero.
float widened(const unsigned char* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return flushed(x);
}

}  // namespace

void configure(const TileConfig& c) {
  if (c.palette > 1) fault("unknown palette");
  if (c.palette == 0) return release();
  if (c.start_row != 0) fault("the stand-in restarts no instruction");
  for (const uint8_t b : c.reserved)
    if (b != 0) fault("reserved bytes of the configuration are not zero");
  for (int t = 0; t < 16; ++t) {
    const bool known = t < kTiles;
    if (c.rows[t] > (known ? kRows : 0) || c.bytes[t] > (known ? kBytes : 0)) fault("a tile of the configuration is too large");
    if ((c.rows[t] == 0) != (c.bytes[t] == 0)) fault("a tile of the configuration has rows or columns, not both");
  }
  std::memset(&state, 0, sizeof state);
  state.configured = true;
  std::memcpy(state.rows, c.rows, sizeof state.rows);
  std::memcpy(state.bytes, c.bytes, sizeof state.bytes);
}

void release() { std::memset(&state, 0, sizeof state); }

void zero(int tile) {
  State& s = used(tile);
  std::memset(s.data[tile], 0, sizeof s.data[tile]);
}

void load(int tile, const void* from, ptrdiff_t stride) {
  State& s = used(tile);
  std::memset(s.data[tile], 0, sizeof s.data[tile]);
  for (int r = 0; r < s.rows[tile]; ++r) std::memcpy(s.data[tile][r], static_cast<const char*>(from) + r * stride, s.bytes[tile]);
}

void store(int tile, void* to, ptrdiff_t stride) {
  const State& s = used(tile);
  for (int r = 0; r < s.rows[tile]; ++r) std::memcpy(static_cast<char*>(to) + r * stride, s.data[tile][r], s.bytes[tile]);
}

void multiply_bf16(int sum, int a, int b) {
  used(sum), used(a), used(b);
  State& s = state;
  if (sum == a || sum == b || a == b) fault("operands of a product share a tile");
  if (s.bytes[sum] % 4 != 0 || s.bytes[a] % 4 != 0 || s.bytes[b] % 4 != 0) fault("rows are no whole pairs");
  if (s.rows[sum] != s.rows[a] || s.bytes[sum] != s.bytes[b] || s.bytes[a] / 4 != s.rows[b]) fault("tiles of a product do not fit");
  const int pairs = s.bytes[a] / 4, columns = s.bytes[sum] / 4;
  for (int m = 0; m < s.rows[sum]; ++m) {
    float even[kBytes / 4] = {}, odd[kBytes / 4] = {};  // two sums, added at the end
    for (int k = 0; k < pairs; ++k) {
      const float a0 = widened(s.data[a][m] + 4 * k), a1 = widened(s.data[a][m] + 4 * k + 2);
      for (int n = 0; n < columns; ++n) {
        even[n] = flushed(std::fma(a0, widened(s.data[b][k] + 4 * n), even[n]));
        odd[n] = flushed(std::fma(a1, widened(s.data[b][k] + 4 * n + 2), odd[n]));
      }
    }
    for (int n = 0; n < columns; ++n) {
      float x;
      std::memcpy(&x, s.data[sum][m] + 4 * n, sizeof x);
      x = flushed(flushed(x) + flushed(even[n] + odd[n]));
      std::memcpy(s.data[sum][m] + 4 * n, &x, sizeof x);
    }
    std::memset(s.data[sum][m] + s.bytes[sum], 0, static_cast<size_t>(kBytes - s.bytes[sum]));
  }
  for (int m = s.rows[sum]; m < kRows; ++m) std::memset(s.data[sum][m], 0, kBytes);
}

}  // namespace amx_emulator
}  // namespace mnnpy
