// The library's own workers: one per further core, spinning briefly between calls, asleep after.
//
// Each thread has a contiguous share of a loop's indices, the same share in every loop of that length:
// what a core wrote in one loop it mostly finds in its own cache in the next. A thread takes from the
// front of its share and, when that is empty, from the back of another's. A share holds epoch, next and
// end in one word, so a worker that arrives late can never run an index of a loop that has ended, and
// the caller never waits for a worker that has claimed nothing.
#ifndef RANVIER_POOL_H_
#define RANVIER_POOL_H_

#include <cstdint>
#include <type_traits>

namespace ranvier {

using LoopBody = void (*)(void* context, int64_t index);

// Run body(context, 0 .. count-1) on all threads; returns when all are done. A second caller at the same
// time runs its loop inline.
void run_loop(int64_t count, LoopBody body, void* context);

int thread_count();
void set_threads(int count);

template <typename F>
void parallel_for(int64_t count, F&& f) {
  using Fn = std::remove_reference_t<F>;
  run_loop(count, [](void* c, int64_t i) { (*static_cast<Fn*>(c))(i); }, &f);
}

}  // namespace ranvier

#endif  // RANVIER_POOL_H_
