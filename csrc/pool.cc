#include "pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace ranvier {
namespace {

constexpr int kBits = 24;
constexpr uint64_t kMask = (1u << kBits) - 1;
constexpr int kThreads = 256;
constexpr int kSpins = 20000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

struct alignas(64) Share {
  std::atomic<uint64_t> word{0};  // epoch << 48 | end << 24 | next
};

struct Pool {
  Share shares[kThreads];
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<uint32_t> bell{0};
  std::atomic<int> sleepers{0};
  std::atomic<int> wanted{1};
  LoopBody body = nullptr;
  void* context = nullptr;
  uint64_t epoch = 0;
  std::mutex owner;
  int started = 0;

  Pool() {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    wanted = cores < 1 ? 1 : cores > kThreads ? kThreads : cores;
  }

  // Claim one index of a share, from its front or its back; -1 when it is empty.
  static int64_t claim(std::atomic<uint64_t>& word, bool is_front) {
    uint64_t now = word.load(std::memory_order_acquire);
    for (;;) {
      const uint64_t next = now & kMask, end = (now >> kBits) & kMask;
      if (next >= end) return -1;
      const uint64_t then = is_front ? now + 1 : now - (1ull << kBits);
      if (word.compare_exchange_weak(now, then, std::memory_order_acq_rel))
        return static_cast<int64_t>(is_front ? next : end - 1);
    }
  }

  // Run indices of the current loop until there are none left: the own share, then the others'. `done` is told
  // once a share: its line goes from core to core.
  void help(int id) {
    const int threads = wanted.load(std::memory_order_relaxed);
    for (int turn = 0; turn < threads; ++turn) {
      std::atomic<uint64_t>& word = shares[(id + turn) % threads].word;
      int64_t count = 0;
      for (int64_t i; (i = claim(word, turn == 0)) >= 0; ++count) body(context, i);
      if (count > 0) done.fetch_add(count, std::memory_order_release);
    }
  }

  void work(int id) {
    uint32_t heard = 0;
    for (;;) {
      int spins = 0;
      uint32_t rung;
      while ((rung = bell.load(std::memory_order_acquire)) == heard) {
        if (++spins < kSpins) {
          relax();
          continue;
        }
        sleepers.fetch_add(1);
        syscall(SYS_futex, &bell, FUTEX_WAIT_PRIVATE, heard, nullptr, nullptr, 0);
        sleepers.fetch_sub(1);
        spins = 0;
      }
      heard = rung;
      if (id < wanted.load(std::memory_order_relaxed)) help(id);
    }
  }

  void start() {
    for (; started < wanted - 1; ++started) std::thread(&Pool::work, this, started + 1).detach();
  }

  void run(int64_t count, LoopBody f, void* c) {
    start();
    body = f;
    context = c;
    done.store(0, std::memory_order_relaxed);
    epoch = (epoch + 1) & 0xffff;
    const int64_t threads = wanted;
    for (int64_t i = 0; i < threads; ++i) {
      const uint64_t next = count * i / threads, end = count * (i + 1) / threads;
      shares[i].word.store(epoch << 48 | end << kBits | next, std::memory_order_release);
    }
    bell.fetch_add(1);
    if (sleepers.load() > 0)
      syscall(SYS_futex, &bell, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
    help(0);
    while (done.load(std::memory_order_acquire) != count) relax();
  }
};

Pool& pool() {
  static Pool* const it = new Pool;  // never destroyed: workers outlive static destructors
  return *it;
}

}  // namespace

void run_loop(int64_t count, LoopBody body, void* context) {
  Pool& p = pool();
  std::unique_lock<std::mutex> lock(p.owner, std::defer_lock);
  const bool is_alone = count > 1 && count <= static_cast<int64_t>(kMask) && p.wanted > 1;
  if (!is_alone || !lock.try_lock()) {
    for (int64_t i = 0; i < count; ++i) body(context, i);
    return;
  }
  p.run(count, body, context);
}

int thread_count() { return pool().wanted; }
void set_threads(int count) { pool().wanted = count < 1 ? 1 : count > kThreads ? kThreads : count; }

}  // namespace ranvier

extern "C" __attribute__((visibility("default"))) void ranvier_set_threads(int count) {
  ranvier::set_threads(count);
}
