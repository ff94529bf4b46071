#pragma once
// Loads and stores of fixed-width integers at any alignment: little-endian for our own protocol, big-endian for
// Ethernet and IP. Pure; any thread. The caller has checked the length: GW_ASSERT here catches our own mistakes.

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/check.h"

namespace godwit::wire {

static_assert(std::endian::native == std::endian::little, "only little-endian hosts are supported");

template <std::unsigned_integral T>
[[nodiscard]] inline T load_le(std::span<const std::byte> bytes, std::size_t at) {
  GW_ASSERT(at + sizeof(T) <= bytes.size());
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

template <std::unsigned_integral T>
inline void store_le(std::span<std::byte> bytes, std::size_t at, T value) {
  GW_ASSERT(at + sizeof(T) <= bytes.size());
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

template <std::unsigned_integral T>
[[nodiscard]] constexpr T swap_bytes(T value) {
  if constexpr (sizeof(T) == 1) {
    return value;
  } else if constexpr (sizeof(T) == 2) {
    return __builtin_bswap16(value);
  } else if constexpr (sizeof(T) == 4) {
    return __builtin_bswap32(value);
  } else {
    return __builtin_bswap64(value);
  }
}

template <std::unsigned_integral T>
[[nodiscard]] inline T load_be(std::span<const std::byte> bytes, std::size_t at) {
  return swap_bytes(load_le<T>(bytes, at));
}

template <std::unsigned_integral T>
inline void store_be(std::span<std::byte> bytes, std::size_t at, T value) {
  store_le<T>(bytes, at, swap_bytes(value));
}

}  // namespace godwit::wire
