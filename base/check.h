#pragma once
// GW_ASSERT: our own mistakes, checked in release builds too. Never for input from outside, which is an error value.

#include <cstdio>
#include <cstdlib>

namespace godwit {

[[noreturn]] inline void assert_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "godwit: assertion failed: %s (%s:%d)\n", expression, file, line);
  std::abort();
}

}  // namespace godwit

#define GW_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::godwit::assert_failed(#expression, __FILE__, __LINE__))
