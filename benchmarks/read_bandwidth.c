// Read bandwidth of this machine: THREADS threads sum disjoint parts of one large array.
// Prints GB/s (1e9 bytes) of the best of ROUNDS passes. cc -O3 -march=native -pthread.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 12, LANES = 8 };

typedef struct {
  const uint64_t *data;
  size_t count;
  uint64_t sum;
} Part;

static void *sum_part(void *argument) {
  Part *part = argument;
  uint64_t lanes[LANES] = {0};
  for (size_t i = 0; i + LANES <= part->count; i += LANES)
    for (int lane = 0; lane < LANES; lane++) lanes[lane] += part->data[i + lane];
  part->sum = 0;
  for (int lane = 0; lane < LANES; lane++) part->sum += lanes[lane];
  return NULL;
}

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  size_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1024) << 20;
  if (threads < 1 || threads > 1024 || bytes == 0) return 2;
  uint64_t *data = aligned_alloc(1 << 21, bytes);
  if (!data) return 3;
  memset(data, 1, bytes);
  pthread_t ids[1024];
  Part parts[1024];
  size_t each = bytes / sizeof *data / threads;
  double best_s = 1e9;
  uint64_t check = 0;
  for (int round = 0; round < ROUNDS; round++) {
    double start_s = now_s();
    for (int t = 0; t < threads; t++) {
      parts[t] = (Part){data + t * each, each, 0};
      if (pthread_create(&ids[t], NULL, sum_part, &parts[t])) return 4;
    }
    for (int t = 0; t < threads; t++) {
      pthread_join(ids[t], NULL);
      check += parts[t].sum;
    }
    double took_s = now_s() - start_s;
    if (took_s < best_s) best_s = took_s;
  }
  fprintf(stderr, "checksum %llu\n", (unsigned long long)check);
  printf("%.2f\n", 1e-9 * each * threads * sizeof *data / best_s);
  return 0;
}
