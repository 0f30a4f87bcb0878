// Which instructions the kernels may use: found once at run time, overridable for tests.
#ifndef RANVIER_ISA_H_
#define RANVIER_ISA_H_

namespace ranvier {

enum class Isa : int { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kBf16 = 3, kAmx = 4 };

Isa isa();

}  // namespace ranvier

#endif  // RANVIER_ISA_H_
