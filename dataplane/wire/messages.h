#pragma once
// The messages that the two ends of a migration exchange on the priority lane, and their bytes.
//
// Pure; any thread. Little-endian, first byte the type, each at most kMessageBytesMax, nothing after its last field.
// decode_message() is the edge: it takes hostile bytes and gives either a message whose every field is in its
// documented range, or one line that says which field of which message is not. Spans in a decoded message point into
// the bytes that were given.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "dataplane/pages/page_digest.h"

namespace godwit::wire {

inline constexpr std::uint16_t kTransferVersion =
    5;  // 1: no post-copy, 2: no stores that stay, 3: no budget, 4: kApart
inline constexpr std::size_t kMessageBytesMax = 65536;
inline constexpr std::size_t kRegionsMax = 64;
inline constexpr std::size_t kRegionNameBytesMax = 255;
inline constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 36;  // 256 TiB of guest
inline constexpr std::size_t kAbortTextBytesMax = 512;
inline constexpr std::size_t kChunkDigestsMax = 4000;                   // of one message: 64,000 bytes
inline constexpr std::size_t kPayloadBytesMax = kMessageBytesMax - 16;  // of DeviceState, TablePiece, PageSetPiece
inline constexpr std::size_t kDemandPagesMax = 512;                     // of one message
inline constexpr std::size_t kStoredPagesMax = 2400;                    // of one message: 64,800 bytes
inline constexpr std::uint64_t kStoreVersionMax = (std::uint64_t{1} << 48) - 1;

/// One QEMU RAM backend as both ends must have it: they number pages through the regions in order.
struct RegionShape {
  std::string name;
  std::uint64_t pages = 0;
  bool operator==(const RegionShape&) const = default;
};

enum class VerifyLevel : std::uint8_t { kOff = 0, kSent = 1, kFull = 2 };
/// What the source may do. kHybrid: rounds of pre-copy, and at any time the rest by post-copy.
enum class TransferMode : std::uint8_t { kPrecopy = 0, kPostcopy = 1, kHybrid = 2 };
/// What the pages of a set are.
enum class PageSet : std::uint8_t {
  kMissing = 0,       // of a round: the destination does not have them, they come when asked for or in the background
  kZero = 1,          // of a round: they read as zero at the source; they never cross
  kStillMissing = 2,  // of no round, destination: all that it does not have, after Resume
  kGot = 3,           // of no round, destination: all that Complete's digest is of
  kApart = 4,         // of no round, source: not in round 1, as they may be leaving for stores; see StoredPages
};

/// Source, first of all.
struct Hello {
  std::uint16_t version = kTransferVersion;  // any: the receiver compares
  VerifyLevel verify = VerifyLevel::kOff;
  TransferMode mode = TransferMode::kPrecopy;
  bool keeps_stores = false;  // the guest is split: StoredPages follow the table. Not kPrecopy
  std::array<std::byte, 16> id{};
  std::uint32_t epoch_base = 0;
  std::uint32_t epoch_count = 0;
  std::vector<RegionShape> regions;  // 1..kRegionsMax, each of 1.. pages, together at most kPagesMax
};
/// Destination's answer; the pieces of its table follow if it has one.
struct HelloReply {
  bool has_retained = false;
  bool can_page = false;           // it can catch the faults that post-copy needs
  std::uint64_t budget_pages = 0;  // of a guest that is split: what may be in memory there; at most kPagesMax
};
/// A piece of the sender's generation table, in order.
struct TablePiece {
  bool last = false;
  std::span<const std::byte> bytes;  // not empty
};
/// Source: pages of `round` come next, and of the round before exactly `pages_before` were sent and acknowledged.
struct RoundBegin {
  std::uint32_t round = 0;  // 1..
  std::uint64_t pages_before = 0;
};
/// Destination: takes pages of `round` and of no other from now on.
struct RoundAck {
  std::uint32_t round = 0;
};
struct DeviceState {
  std::span<const std::byte> bytes;  // not empty
};
struct DeviceStateEnd {};
/// Source: `round` is the last and has `pages` pages; then RAM is as at the source, which knows hashes of
/// `pages_checked` pages.
struct AllPlaced {
  std::uint32_t round = 0;
  std::uint64_t pages = 0;
  std::uint64_t pages_checked = 0;
  pages::PageDigest digest;
};
/// Destination: everything is placed, and what was to be compared is equal.
struct Verified {};
/// Destination, instead of Verified: digests of all its chunks, in order, so that the source sees where they differ.
struct ChunkDigests {
  bool last = false;
  std::uint64_t first_chunk = 0;
  std::vector<pages::PageDigest> digests;  // 1..kChunkDigestsMax
};
/// Either end: it has failed; nothing follows.
struct Abort {
  std::string text;  // printable, at most kAbortTextBytesMax
};
/// Source: shows that it lives while it has nothing to say.
struct Keepalive {};
/// A piece of a compressed bitmap, in order. Of a round the missing set comes first, then the zero set; the later round
/// of two counts for a page that is in both.
struct PageSetPiece {
  std::uint32_t round = 0;  // 1.. of kMissing and kZero, 0 of the others
  PageSet kind = PageSet::kMissing;
  bool last = false;
  std::span<const std::byte> bytes;  // not empty
};
/// Destination: the sets of `round` are punched out, while the guest still runs at the source.
struct PageSetAck {
  std::uint32_t round = 0;  // 1..
};
/// Source, instead of AllPlaced: `round`, the one that is open, had `pages` pages and is over; all that was not placed
/// is in a set, the last of them of `last_round`. It knows hashes of `pages_checked` pages that are in no set, or zero.
struct AllAnnounced {
  std::uint32_t round = 0;  // 1..
  std::uint64_t pages = 0;
  std::uint32_t last_round = 0;  // round or the one after it
  std::uint64_t pages_checked = 0;
  pages::PageDigest digest;
};
/// Destination: the guest waits for these pages.
struct DemandRequest {
  bool again = false;                // asked for before, and not there in time
  std::vector<std::uint64_t> pages;  // 1..kDemandPagesMax, each below kPagesMax
};
/// Source: each page that is missing has been sent and acknowledged.
struct AllSent {};
/// Destination: nothing is missing. The digest is of the pages of its kGot set, which came before; none: not verified.
struct Complete {
  std::uint64_t pages = 0;
  pages::PageDigest digest;
};
/// Source: it has nothing left to give; `equal`: the digest is that of its own pages.
struct Completed {
  bool equal = false;
};
/// Destination, first of all on new lanes: goes on with a post-copy whose connection was lost. kStillMissing follows.
struct Resume {
  std::uint16_t version = kTransferVersion;  // any: the receiver compares
  std::array<std::byte, 16> id{};
};

/// A page of a split guest that is missing at the source, and the one copy of it that counts. `written`: after the
/// table, so its generation is round 2's.
struct StoredPage {
  std::uint64_t page = 0;     // below kPagesMax
  std::uint64_t version = 0;  // 1..kStoreVersionMax
  std::uint16_t sub = 0;      // the store, as the control plane numbers them
  pages::PageHash hash = 0;
  bool written = false;
  bool operator==(const StoredPage&) const = default;
};
/// Source, if the guest is split: pages that stay with its page stores unless a later round or set has them. Ascending
/// over all messages. The last has what no version reaches that any store of the guest's has. Behind its table; or, if
/// pages are still leaving for stores, kApart is there, and these between rounds 1 and 2: what was apart and is not
/// among them comes with later rounds, unless the destination had it and the table says that it is as it was.
struct StoredPages {
  bool last = false;
  std::uint64_t version_next = 0;  // 1..kStoreVersionMax
  std::vector<StoredPage> pages;   // at most kStoredPagesMax; of the last perhaps none
};

using Message = std::variant<Hello, HelloReply, TablePiece, RoundBegin, RoundAck, DeviceState, DeviceStateEnd,
                             AllPlaced, Verified, ChunkDigests, Abort, Keepalive, PageSetPiece, PageSetAck,
                             AllAnnounced, DemandRequest, AllSent, Complete, Completed, Resume, StoredPages>;

/// Fields must be in range (asserted), except Abort's text, which is cut and made printable.
[[nodiscard]] std::vector<std::byte> encode_message(const Message& message);
[[nodiscard]] std::expected<Message, std::string> decode_message(std::span<const std::byte> bytes);
/// For diagnostics: "RoundBegin".
[[nodiscard]] const char* message_name(const Message& message);

}  // namespace godwit::wire
