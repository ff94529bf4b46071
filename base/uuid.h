#pragma once
// Id128: 16 bytes that name a VM, an image, a migration or a boot. A value type: any thread, no allocation except for
// text(). Text is the UUID form 8-4-4-4-12 in lower case; on an API it is a bytes field of exactly 16. Parsing refuses
// anything else; random() ends the program if the kernel gives no random bytes, as no id of ours may ever be guessed or
// repeated.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace godwit {

class Id128 {
 public:
  static constexpr std::size_t kBytes = 16;
  static constexpr std::size_t kTextLength = 36;

  constexpr Id128() = default;
  explicit constexpr Id128(const std::array<std::uint8_t, kBytes>& bytes) : bytes_(bytes) {}

  /// A version 4 UUID from the kernel's generator.
  [[nodiscard]] static Id128 random();
  /// "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", either case of hex digits.
  [[nodiscard]] static std::optional<Id128> parse(std::string_view text);
  /// A protobuf bytes field; nothing unless it holds exactly 16 bytes.
  [[nodiscard]] static std::optional<Id128> from_bytes(std::string_view bytes);

  [[nodiscard]] std::string text() const;
  [[nodiscard]] std::string to_bytes() const;
  [[nodiscard]] constexpr const std::array<std::uint8_t, kBytes>& bytes() const { return bytes_; }
  /// All zero: the value of a default-constructed id, which names nothing.
  [[nodiscard]] constexpr bool is_nil() const { return *this == Id128{}; }

  constexpr auto operator<=>(const Id128&) const = default;

 private:
  std::array<std::uint8_t, kBytes> bytes_{};
};

}  // namespace godwit

template <>
struct std::hash<godwit::Id128> {
  std::size_t operator()(const godwit::Id128& id) const noexcept {
    // Ids that come from outside may be chosen, not drawn: mix both halves.
    std::uint64_t halves[2];
    std::memcpy(halves, id.bytes().data(), sizeof halves);
    std::uint64_t x = halves[0] ^ (halves[1] * 0x9e3779b97f4a7c15ULL);
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
    return static_cast<std::size_t>(x ^ (x >> 32));
  }
};
