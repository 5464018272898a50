// CPU features and the choice of the instruction set.
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

}  // namespace

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

const char* isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

Isa isa_from_name(const std::string& name) {
  for (int k = 0; k < 3; ++k)
    if (name == kIsaNames[k]) return static_cast<Isa>(k);
  throw std::invalid_argument("unknown instruction set '" + name + "'; known are generic, avx2, avx512");
}

std::vector<std::string> cpu_features(Isa limit) {
  std::vector<std::string> found;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#define MNNPY_FEATURE(f, level) \
  if (limit >= Isa::level && __builtin_cpu_supports(f)) found.emplace_back(f)
  MNNPY_FEATURE("sse4.2", GENERIC);
  MNNPY_FEATURE("avx", AVX2);
  MNNPY_FEATURE("avx2", AVX2);
  MNNPY_FEATURE("fma", AVX2);
  MNNPY_FEATURE("avx512f", AVX512);
  MNNPY_FEATURE("avx512bw", AVX512);
  MNNPY_FEATURE("avx512dq", AVX512);
  MNNPY_FEATURE("avx512vl", AVX512);
  MNNPY_FEATURE("avx512vnni", AVX512);
  MNNPY_FEATURE("avx512bf16", AVX512);
#undef MNNPY_FEATURE
  if (limit >= Isa::AVX512 && *amx_reason() == '\0') found.emplace_back("amx-bf16");  // found and permitted
#elif defined(__aarch64__)
  (void)limit;
  found.emplace_back("neon");
#endif
  return found;
}

}  // namespace mnnpy
