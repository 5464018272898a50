// AMX tiles: whether they may be used, the instructions, and a stand-in of the same meaning for machines without them.
//
// Semantics are those of the Intel 64 Software Developer's Manual, volume 2 (LDTILECFG, TILELOADD, TILESTORED, TILEZERO,
// TDPBF16PS). Kernels are templates over the unit, so that what tests run on the stand-in is what the hardware runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace mnnpy {

enum class AmxUnit : int { NONE, HARDWARE, EMULATED };

// What kernels built from now on may use. The first call asks the operating system for the permission.
AmxUnit amx_unit();
// Why the hardware cannot be used; empty where it can.
const char* amx_reason();
// For tests: kernels built from now on use the stand-in, on any machine.
void emulate_amx(bool on);

// The operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 0, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // per row of each tile
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// State per thread. What the hardware answers with a fault throws std::logic_error.
namespace amx_emulator {
void configure(const TileConfig& config);
void release();
void zero(int tile);
void load(int tile, const void* from, ptrdiff_t stride);
void store(int tile, void* to, ptrdiff_t stride);
void multiply_bf16(int sum, int a, int b);
}  // namespace amx_emulator

namespace MNNPY_NS {

struct EmulatedTiles {
  static void configure(const TileConfig& config) { amx_emulator::configure(config); }
  static void release() { amx_emulator::release(); }
  template <int T>
  static void zero() { amx_emulator::zero(T); }
  template <int T>
  static void load(const void* from, ptrdiff_t stride) { amx_emulator::load(T, from, stride); }
  template <int T>
  static void store(void* to, ptrdiff_t stride) { amx_emulator::store(T, to, stride); }
  template <int SUM, int A, int B>
  static void multiply_bf16() { amx_emulator::multiply_bf16(SUM, A, B); }
};

// Every CPU with AMX has AVX-512: the other variants only know the stand-in.
#if MNNPY_ISA == 2 && defined(__linux__)
#define MNNPY_HAS_AMX 1
#define MNNPY_AMX gnu::target("amx-tile,amx-bf16")

// Plain assembly, as the intrinsics of gcc are macros that take no template arguments. Compilers hold nothing in tiles.
struct HardwareTiles {
  [[MNNPY_AMX]] static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  [[MNNPY_AMX]] static void release() { asm volatile("tilerelease"); }
  template <int T>
  [[MNNPY_AMX]] MNNPY_INLINE static void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
  template <int T>
  [[MNNPY_AMX]] MNNPY_INLINE static void load(const void* from, ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  [[MNNPY_AMX]] MNNPY_INLINE static void store(void* to, ptrdiff_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int SUM, int A, int B>
  [[MNNPY_AMX]] MNNPY_INLINE static void multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
  }
};
#else
#define MNNPY_HAS_AMX 0
#define MNNPY_AMX maybe_unused
#endif

// A configuration for as long as this lives. It is loaded anew for each piece of work: other libraries on the same thread
// may change it in between, and a released state keeps context switches cheap.
template <class Unit>
class TileScope {
 public:
  explicit TileScope(const TileConfig& config) { Unit::configure(config); }
  ~TileScope() { Unit::release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace MNNPY_NS
}  // namespace mnnpy
