#pragma once
// Time as an argument: the sans-IO modules never read a clock, they are told what time it is.

#include <compare>
#include <cstdint>

namespace godwit {

/// A length of time in nanoseconds; may be negative.
struct Duration {
  std::int64_t ns = 0;
  auto operator<=>(const Duration&) const = default;
  [[nodiscard]] constexpr std::int64_t us() const { return ns / 1000; }
};

/// A point on one host's monotonic clock, in nanoseconds since an arbitrary origin. Never compared across hosts.
struct Instant {
  std::int64_t ns = 0;
  auto operator<=>(const Instant&) const = default;
};

inline constexpr Instant kNever{INT64_MAX};

constexpr Duration microseconds(std::int64_t us) { return {us * 1000}; }
constexpr Duration milliseconds(std::int64_t ms) { return {ms * 1'000'000}; }
constexpr Duration operator-(Instant a, Instant b) { return {a.ns - b.ns}; }
constexpr Duration operator+(Duration a, Duration b) { return {a.ns + b.ns}; }
constexpr Duration operator-(Duration a, Duration b) { return {a.ns - b.ns}; }
constexpr Duration operator*(Duration a, std::int64_t n) { return {a.ns * n}; }
constexpr Instant operator+(Instant a, Duration b) { return {a.ns + b.ns}; }

}  // namespace godwit
