#pragma once
// What the fuzz targets share. A target is one file that defines run() and seeds(); fuzz_main.cpp makes it a libFuzzer
// program. A broken property ends the program as a crash does: libFuzzer keeps the input. One thread; no state from one
// input to the next, so that an input alone replays what it found.

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace godwit::fuzz {

using Bytes = std::span<const std::byte>;

/// The target: any bytes.
void run(Bytes input);

struct Seed {
  std::string name;  // of its file in the corpus
  std::vector<std::byte> bytes;
};
/// Valid inputs, made with our own encoders: where the fuzzer starts.
std::vector<Seed> seeds();

[[noreturn]] inline void property_broken(const char* property, const char* file, int line) {
  std::fprintf(stderr, "fuzz: property broken: %s (%s:%d)\n", property, file, line);
  std::abort();
}

/// Takes an input apart from its front; past the end everything is zero.
class Input {
 public:
  explicit Input(Bytes bytes) : left_(bytes) {}

  [[nodiscard]] bool empty() const { return left_.empty(); }
  template <std::unsigned_integral T>
  T number() {
    T value = 0;
    const Bytes taken = bytes(sizeof value);
    std::memcpy(&value, taken.data(), taken.size());
    return value;
  }
  /// 0 .. limit - 1.
  std::uint32_t below(std::uint32_t limit) { return number<std::uint32_t>() % limit; }
  /// 0 .. limit - 1, small ones as often as large ones: most of what can break shows at small sizes too.
  std::uint32_t size_below(std::uint32_t limit) {
    const auto width = static_cast<unsigned>(std::bit_width(limit - 1));
    const std::uint32_t mask = (std::uint32_t{1} << number<std::uint8_t>() % (width + 1)) - 1;
    return (number<std::uint32_t>() & mask) % limit;
  }
  bool flag() { return (number<std::uint8_t>() & 1) != 0; }
  /// At most `count`, what is there.
  Bytes bytes(std::size_t count) {
    const Bytes taken = left_.first(count < left_.size() ? count : left_.size());
    left_ = left_.subspan(taken.size());
    return taken;
  }
  Bytes rest() { return bytes(left_.size()); }

 private:
  Bytes left_;
};

/// The other way round: writes what Input reads, for seeds.
class Output {
 public:
  template <std::unsigned_integral T>
  Output& number(T value) {
    return bytes(std::as_bytes(std::span(&value, 1)));
  }
  Output& bytes(Bytes bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Output& text(std::string_view text) { return bytes(std::as_bytes(std::span(text))); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

inline bool same(Bytes a, Bytes b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

inline std::string_view as_text(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

}  // namespace godwit::fuzz

#define FUZZ_CHECK(property) \
  ((property) ? static_cast<void>(0) : ::godwit::fuzz::property_broken(#property, __FILE__, __LINE__))
