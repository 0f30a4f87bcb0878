#include "isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ranvier {
namespace {

#if defined(__x86_64__)
// AMX tiles need the kernel's permission for this process (arch_prctl, feature 18).
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has_tiles = (d >> 24 & 1) && (d >> 22 & 1);
  return has_tiles && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

Isa detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kGeneric;
  const bool is_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!is_512) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni"))
    return Isa::kAvx512;
  return has_amx() ? Isa::kAmx : Isa::kBf16;
}
#else
Isa detect() { return Isa::kGeneric; }
#endif

std::atomic<int> chosen{-1};

}  // namespace

Isa isa() {
  int now = chosen.load(std::memory_order_relaxed);
  if (now < 0) chosen = now = static_cast<int>(detect());
  return static_cast<Isa>(now);
}

}  // namespace ranvier

extern "C" __attribute__((visibility("default"))) int ranvier_isa() {
  return static_cast<int>(ranvier::isa());
}

// Lower the ISA (tests); never above what the machine has. Returns the one in force.
extern "C" __attribute__((visibility("default"))) int ranvier_set_isa(int wanted) {
  const int best = static_cast<int>(ranvier::detect());
  ranvier::chosen = wanted < 0 || wanted > best ? best : wanted;
  return ranvier::chosen;
}
