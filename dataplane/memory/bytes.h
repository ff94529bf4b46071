#pragma once
// Little-endian fields to bytes and back, for records on disk. Pure. The reader never runs past its end: a short or
// impossible field makes it fail, and it stays failed.

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace godwit::memory {

static_assert(std::endian::native == std::endian::little, "records are written as the CPU holds them");

class ByteWriter {
 public:
  template <class T>
  requires std::is_integral_v<T>
  void number(T value) { bytes(std::as_bytes(std::span(&value, 1))); }
  void text(const std::string& value) {
    number(static_cast<std::uint32_t>(value.size()));
    bytes(std::as_bytes(std::span(value)));
  }
  void bytes(std::span<const std::byte> value) { out_.insert(out_.end(), value.begin(), value.end()); }
  [[nodiscard]] std::vector<std::byte>& out() { return out_; }

 private:
  std::vector<std::byte> out_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> in) : in_(in) {}

  template <class T>
  requires std::is_integral_v<T> T number() {
    T value{};
    if (const auto field = bytes(sizeof value); field.size() == sizeof value) {
      std::memcpy(&value, field.data(), sizeof value);
    }
    return value;
  }
  std::string text(std::uint32_t longest) {
    const auto length = number<std::uint32_t>();
    if (length > longest) {
      ok_ = false;
    }
    const auto field = bytes(length);
    return {reinterpret_cast<const char*>(field.data()), field.size()};
  }
  std::span<const std::byte> bytes(std::uint64_t count) {
    if (!ok_ || count > in_.size()) {
      ok_ = false;
      return {};
    }
    const auto field = in_.first(count);
    in_ = in_.subspan(count);
    return field;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return in_.empty(); }

 private:
  std::span<const std::byte> in_;
  bool ok_ = true;
};

}  // namespace godwit::memory
