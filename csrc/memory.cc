// How the C library keeps memory: buffers of a step are allocated and freed every step, and pages that go
// back to the system in between come again as faults, each a page to clear.
#include <cstdlib>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

extern "C" __attribute__((visibility("default"))) void ranvier_keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}
