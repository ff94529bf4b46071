// A kernel that is bound by memory, after CG of the NAS Parallel Benchmarks: the conjugate gradient of a sparse
// symmetric matrix, whose columns are gathered at random. kRows rows of kNonzero entries: 37 MiB of matrix.
//
// Prints after each iteration: GODWIT BENCH sweep=<n> rows_per_s=<n>. The first line is "GODWIT FILLED pages=<n>".
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { kRows = 200000, kNonzero = 16 };

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static double* vector(double value) {
  double* made = malloc(kRows * sizeof *made);
  if (!made) exit(1);
  for (int i = 0; i < kRows; i++) made[i] = value;
  return made;
}

static double dot(const double* a, const double* b) {
  double sum = 0;
  for (int i = 0; i < kRows; i++) sum += a[i] * b[i];
  return sum;
}

int main(void) {
  int32_t* columns = malloc(sizeof *columns * kRows * kNonzero);
  double* values = malloc(sizeof *values * kRows * kNonzero);
  if (!columns || !values) return 1;
  uint64_t s = 88172645463325252ull;
  for (size_t i = 0; i < (size_t)kRows * kNonzero; i++) {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    columns[i] = (int32_t)(s % kRows);
    values[i] = 1e-3;
  }
  for (int row = 0; row < kRows; row++)
    columns[row * kNonzero] = row, values[row * kNonzero] = 1;  // the diagonal rules
  double *x = vector(0), *r = vector(1), *p = vector(1), *q = vector(0);
  printf("GODWIT FILLED pages=%zu\n", (size_t)kRows * kNonzero * 12 / 4096);
  fflush(stdout);
  double rho = dot(r, r);
  for (uint64_t sweep = 1;; sweep++) {
    const uint64_t begin = now_us();
    for (int row = 0; row < kRows; row++) {
      double sum = 0;
      for (int i = row * kNonzero; i < (row + 1) * kNonzero; i++) sum += values[i] * p[columns[i]];
      q[row] = sum;
    }
    const double alpha = rho / (dot(p, q) + 1e-300);
    for (int i = 0; i < kRows; i++) x[i] += alpha * p[i], r[i] -= alpha * q[i];
    const double next = dot(r, r), beta = next / (rho + 1e-300);
    rho = next;
    for (int i = 0; i < kRows; i++) p[i] = r[i] + beta * p[i];
    if (rho < 1e-20) {  // solved: the same again
      for (int i = 0; i < kRows; i++) r[i] = p[i] = 1, x[i] = 0;
      rho = dot(r, r);
    }
    const uint64_t took = now_us() - begin;
    printf("GODWIT BENCH sweep=%" PRIu64 " rows_per_s=%" PRIu64 "\n", sweep,
           (uint64_t)kRows * 1000000 / (took ? took : 1));
    fflush(stdout);
  }
}
