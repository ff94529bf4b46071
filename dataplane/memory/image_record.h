#pragma once
// The bytes of a retained image's record: a head that says what the image is, and a body with table and hashes, each
// checksummed.
//
// Pure: no files, no clock. Decoding takes hostile bytes: any input gives a record or a refusal.
//
//   head: magic u64, version u32, head_bytes u32, body_bytes u64, body_xxh3 u64, boot id, vm uuid, image id, migration
//         that it serves (16 bytes, zero: none), epoch u32, pages_known u64, region count u32, regions (name, bytes
//         u64, page_bytes u32, path, device u64, inode u64), xxh3 u64 of all before it
//   body: table pieces (u32 length, bytes) up to the last page, hash count u64, hashes u64 each

#include <expected>
#include <span>
#include <vector>

#include "dataplane/memory/retained_image.h"

namespace godwit::memory {

inline constexpr std::uint32_t kRecordVersion = 2;
inline constexpr std::size_t kRecordHeadBytesMin = 32;  // enough for decode_lengths()
inline constexpr std::size_t kRecordHeadBytesMax = 1U << 20;

struct RecordLengths {
  std::uint32_t head_bytes = 0;
  std::uint64_t body_bytes = 0;
};

struct RecordHead {
  RecordLengths lengths;
  std::uint64_t body_checksum = 0;
  Id boot_id{};
  Id vm_uuid{};
  Id image_id{};
  Id serving{};  // as RetainedImage has it
  std::uint32_t epoch = 0;
  std::uint64_t pages_known = 0;
  std::vector<ImageRegion> regions;

  [[nodiscard]] std::uint64_t bytes_total() const;
};

std::vector<std::byte> encode_record(const RetainedImage& image, const Id& boot_id);

/// From the first kRecordHeadBytesMin bytes or more of a file of `file_bytes`.
std::expected<RecordLengths, ImageRefused> decode_lengths(std::span<const std::byte> start, std::uint64_t file_bytes);
/// `head` is exactly head_bytes long.
std::expected<RecordHead, ImageRefused> decode_head(std::span<const std::byte> head);
/// `body` is exactly body_bytes long.
std::expected<RetainedImage, ImageRefused> decode_body(const RecordHead& head, std::span<const std::byte> body);

}  // namespace godwit::memory
