#pragma once
// The messages between a main host and a page store, on the priority lane of their flow, and their bytes.
//
// Pure; any thread. Little-endian. decode() is the edge: it takes hostile bytes and gives a message whose fields are in
// their documented range, or one line that says what is not.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "dataplane/pages/page.h"

namespace godwit::split {

using StoreId = std::array<std::byte, 16>;

/// Of a page's content: raised by the main host with each eviction of the VM; from 1.
using Version = std::uint64_t;
inline constexpr Version kVersionMax = (Version{1} << 48) - 1;

inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 36;  // as wire/messages.h
inline constexpr std::size_t kEntriesMax = 4000;                    // of one message: 64,000 bytes
inline constexpr std::size_t kTextBytesMax = 512;

enum class Type : std::uint8_t {
  kHello = 64,  // main, first of all: store, pages, version_base; number: kProtocolVersion
  kHelloReply,  // sub: this store is here; its list follows
  kListing,     // sub: pages that it holds, in no order; number 1: the last
  kGet,         // main: these pages in these versions; number: ticket of the first, the next has one more
  kLacks,       // sub: it does not hold these; note 1: it did, and the content is damaged
  kResults,     // sub: of pages that were put; note: PutResult
  kDrop,        // main: not needed in this version or an older one
  kKeepalive,   // main, each half second
  kAbort,       // either: text; nothing follows
};

enum class PutResult : std::uint8_t {
  kHeld = 0,        // in this version
  kSuperseded = 1,  // a newer one is held
  kFull = 2,        // nothing has changed
};

struct Entry {
  pages::PageNumber page = 0;  // below the pages of the VM: the receiver compares
  Version version = 0;         // 1 to kVersionMax
  std::uint16_t note = 0;
  bool operator==(const Entry&) const = default;
};

struct Message {
  Type type = Type::kKeepalive;
  std::uint32_t number = 0;
  StoreId store{};             // kHello
  std::uint64_t pages = 0;     // kHello: of the VM, 1 to kPagesMax
  Version version_base = 0;    // kHello: what is put has this version and its round more
  std::vector<Entry> entries;  // of lists, at most kEntriesMax; none only in the last of kListing
  std::string text;            // kAbort, printable
};

[[nodiscard]] std::vector<std::byte> encode(const Message& message);
[[nodiscard]] std::expected<Message, std::string> decode(std::span<const std::byte> bytes);

}  // namespace godwit::split
