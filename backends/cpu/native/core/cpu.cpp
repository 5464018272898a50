// CPU features and the choice of the instruction set.
#include <atomic>

#include "amx.h"
#include "core/core.h"

namespace mnnpy {
namespace {

constexpr const char* kIsaNames[] = {"generic", "avx2", "avx512"};

Isa detect() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  if (!avx2) return Isa::GENERIC;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  return avx512 ? Isa::AVX512 : Isa::AVX2;
#else
  return Isa::GENERIC;
#endif
}

std::atomic<int>& current() {
  static std::atomic<int> value{static_cast<int>(best_isa())};
  return value;
}

}  // namespace

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

void set_isa(Isa isa) {
  if (isa > best_isa())
    throw std::invalid_argument(std::string("this CPU has no ") + isa_name(isa) + "; the best it has is " +
                                isa_name(best_isa()));
  current().store(static_cast<int>(isa));
}

const char* isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

Isa isa_from_name(const std::string& name) {
  for (int k = 0; k < 3; ++k)
    if (name == kIsaNames[k]) return static_cast<Isa>(k);
  throw std::invalid_argument("unknown instruction set '" + name + "'; known are generic, avx2, avx512");
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#define MNNPY_FEATURE(f) \
  if (__builtin_cpu_supports(f)) found.emplace_back(f)
  MNNPY_FEATURE("sse4.2");
  MNNPY_FEATURE("avx");
  MNNPY_FEATURE("avx2");
  MNNPY_FEATURE("fma");
  MNNPY_FEATURE("avx512f");
  MNNPY_FEATURE("avx512bw");
  MNNPY_FEATURE("avx512dq");
  MNNPY_FEATURE("avx512vl");
  MNNPY_FEATURE("avx512vnni");
  MNNPY_FEATURE("avx512bf16");
#undef MNNPY_FEATURE
  if (*amx_reason() == '\0') found.emplace_back("amx-bf16");  // found and permitted
#elif defined(__aarch64__)
  found.emplace_back("neon");
#endif
  return found;
}

}  // namespace mnnpy
