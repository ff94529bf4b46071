#include "dataplane/split/messages.h"

#include <algorithm>

#include "base/check.h"
#include "dataplane/wire/bytes.h"

namespace godwit::split {
namespace {

constexpr std::size_t kHeadBytes = 5;  // type, number
constexpr std::size_t kHelloBytes = kHeadBytes + 16 + 8 + 8;
constexpr std::size_t kEntryBytes = 16;  // page, version and note in one word

bool is_list(Type type) { return type >= Type::kListing && type <= Type::kDrop; }

std::uint16_t note_max(Type type) {
  switch (type) {
    case Type::kLacks:
      return 1;
    case Type::kResults:
      return static_cast<std::uint16_t>(PutResult::kFull);
    default:
      return 0;
  }
}

std::expected<void, std::string> read_hello(std::span<const std::byte> bytes, Message& out) {
  if (bytes.size() != kHelloBytes) {
    return std::unexpected("a Hello of " + std::to_string(bytes.size()) + " bytes");
  }
  std::ranges::copy(bytes.subspan(kHeadBytes, out.store.size()), out.store.begin());
  out.pages = wire::load_le<std::uint64_t>(bytes, kHeadBytes + 16);
  out.version_base = wire::load_le<std::uint64_t>(bytes, kHeadBytes + 24);
  if (out.pages == 0 || out.pages > kPagesMax || out.version_base > kVersionMax) {
    return std::unexpected("a Hello whose pages or version are out of range");
  }
  return {};
}

std::expected<void, std::string> read_entries(std::span<const std::byte> bytes, Message& out) {
  const auto list = bytes.subspan(kHeadBytes);
  const std::size_t count = list.size() / kEntryBytes;
  const bool may_be_empty = out.type == Type::kListing && out.number == 1;
  if (list.size() % kEntryBytes != 0 || count > kEntriesMax || (count == 0 && !may_be_empty)) {
    return std::unexpected("a list of " + std::to_string(list.size()) + " bytes");
  }
  if (out.type == Type::kListing ? out.number > 1 : out.type != Type::kGet && out.number != 0) {
    return std::unexpected("a list whose number is out of range");
  }
  out.entries.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto word = wire::load_le<std::uint64_t>(list, i * kEntryBytes + 8);
    out.entries[i] = {.page = wire::load_le<std::uint64_t>(list, i * kEntryBytes),
                      .version = word >> 16,
                      .note = static_cast<std::uint16_t>(word & 0xffff)};
    if (out.entries[i].page >= kPagesMax || out.entries[i].version == 0 || out.entries[i].note > note_max(out.type)) {
      return std::unexpected("a list with page, version or note out of range");
    }
  }
  return {};
}

}  // namespace

std::vector<std::byte> encode(const Message& message) {
  GW_ASSERT(message.entries.size() <= kEntriesMax);
  std::vector<std::byte> bytes(kHeadBytes);
  bytes[0] = static_cast<std::byte>(message.type);
  wire::store_le(std::span(bytes), 1, message.number);
  if (message.type == Type::kHello) {
    bytes.resize(kHelloBytes);
    std::ranges::copy(message.store, bytes.begin() + kHeadBytes);
    wire::store_le(std::span(bytes), kHeadBytes + 16, message.pages);
    wire::store_le(std::span(bytes), kHeadBytes + 24, message.version_base);
  } else if (is_list(message.type)) {
    bytes.resize(kHeadBytes + message.entries.size() * kEntryBytes);
    for (std::size_t i = 0; i < message.entries.size(); ++i) {
      const Entry& entry = message.entries[i];
      GW_ASSERT(entry.version <= kVersionMax);
      wire::store_le(std::span(bytes), kHeadBytes + i * kEntryBytes, std::uint64_t{entry.page});
      wire::store_le(std::span(bytes), kHeadBytes + i * kEntryBytes + 8, entry.version << 16 | entry.note);
    }
  } else if (message.type == Type::kAbort) {
    for (const char c : message.text.substr(0, kTextBytesMax)) {
      bytes.push_back(static_cast<std::byte>(c));
    }
  }
  return bytes;
}

std::expected<Message, std::string> decode(std::span<const std::byte> bytes) {
  if (bytes.size() < kHeadBytes || bytes[0] < static_cast<std::byte>(Type::kHello) ||
      bytes[0] > static_cast<std::byte>(Type::kAbort)) {
    return std::unexpected("a message of no known type");
  }
  Message out{.type = static_cast<Type>(bytes[0]), .number = wire::load_le<std::uint32_t>(bytes, 1)};
  std::expected<void, std::string> read;
  if (out.type == Type::kHello) {
    read = read_hello(bytes, out);
  } else if (is_list(out.type)) {
    read = read_entries(bytes, out);
  } else if (out.type == Type::kAbort && bytes.size() <= kHeadBytes + kTextBytesMax) {
    std::ranges::transform(bytes.subspan(kHeadBytes), std::back_inserter(out.text), [](std::byte byte) {
      const char c = static_cast<char>(byte);
      return c < 0x20 || c == 0x7f ? '?' : c;
    });
  } else if (bytes.size() != kHeadBytes) {
    read = std::unexpected("a message with more than its fields");
  }
  return read ? std::expected<Message, std::string>(std::move(out)) : std::unexpected(read.error());
}

}  // namespace godwit::split
