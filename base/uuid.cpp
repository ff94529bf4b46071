#include "base/uuid.h"

#include <sys/random.h>

#include <cerrno>

#include "base/check.h"

namespace godwit {

namespace {

constexpr char kHexDigits[] = "0123456789abcdef";

std::optional<std::uint8_t> hex_value(char c) {
  if (c >= '0' && c <= '9') {
    return static_cast<std::uint8_t>(c - '0');
  }
  if (c >= 'a' && c <= 'f') {
    return static_cast<std::uint8_t>(c - 'a' + 10);
  }
  if (c >= 'A' && c <= 'F') {
    return static_cast<std::uint8_t>(c - 'A' + 10);
  }
  return std::nullopt;
}

/// Bytes before which the text form has a dash.
constexpr bool dash_before(std::size_t byte) { return byte == 4 || byte == 6 || byte == 8 || byte == 10; }

}  // namespace

Id128 Id128::random() {
  std::array<std::uint8_t, kBytes> bytes{};
  std::size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t n = ::getrandom(bytes.data() + filled, bytes.size() - filled, 0);
    GW_ASSERT(n > 0 || errno == EINTR);
    filled += n > 0 ? static_cast<std::size_t>(n) : 0;
  }
  bytes[6] = static_cast<std::uint8_t>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<std::uint8_t>((bytes[8] & 0x3f) | 0x80);
  return Id128(bytes);
}

std::optional<Id128> Id128::parse(std::string_view text) {
  if (text.size() != kTextLength) {
    return std::nullopt;
  }
  std::array<std::uint8_t, kBytes> bytes{};
  std::size_t at = 0;
  for (std::size_t i = 0; i < kBytes; ++i) {
    if (dash_before(i) && text[at++] != '-') {
      return std::nullopt;
    }
    const auto high = hex_value(text[at]);
    const auto low = hex_value(text[at + 1]);
    if (!high || !low) {
      return std::nullopt;
    }
    bytes[i] = static_cast<std::uint8_t>(*high << 4 | *low);
    at += 2;
  }
  return Id128(bytes);
}

std::optional<Id128> Id128::from_bytes(std::string_view bytes) {
  if (bytes.size() != kBytes) {
    return std::nullopt;
  }
  std::array<std::uint8_t, kBytes> out{};
  std::memcpy(out.data(), bytes.data(), kBytes);
  return Id128(out);
}

std::string Id128::text() const {
  std::string out;
  out.reserve(kTextLength);
  for (std::size_t i = 0; i < kBytes; ++i) {
    if (dash_before(i)) {
      out += '-';
    }
    out += kHexDigits[bytes_[i] >> 4];
    out += kHexDigits[bytes_[i] & 0x0f];
  }
  return out;
}

std::string Id128::to_bytes() const {
  std::string out(kBytes, '\0');
  std::memcpy(out.data(), bytes_.data(), kBytes);
  return out;
}

}  // namespace godwit
