#include "dataplane/memory/image_record.h"

#include <xxhash.h>

#include <algorithm>

#include "dataplane/memory/bytes.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/pages/table_codec.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t kMagic = 0x4547414d49574721;  // "!GWIMAGE"
constexpr std::uint32_t kTextBytesMax = 4096;
constexpr std::uint32_t kRegionsMax = 1024;
constexpr std::uint64_t kBytesMax = std::uint64_t{1} << 52;  // of one region: keeps sums in range

std::uint64_t checksum(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::unexpected<ImageRefused> refuse(Refusal reason, const std::string& text) {
  return std::unexpected(ImageRefused{reason, text});
}

Id read_id(ByteReader& in) {
  Id id{};
  if (const auto field = in.bytes(id.size()); field.size() == id.size()) {
    std::ranges::copy(field, id.begin());
  }
  return id;
}

std::vector<std::byte> encode_body(const RetainedImage& image) {
  ByteWriter out;
  std::vector<std::byte> piece;
  // At least one piece: an empty table is one, too.
  for (pages::PageNumber next = 0;;) {
    next = pages::encode_table_piece(image.table, next, {}, piece);
    out.number(static_cast<std::uint32_t>(piece.size()));
    out.bytes(piece);
    if (next >= image.table.size()) {
      break;
    }
  }
  out.number(static_cast<std::uint64_t>(image.hashes.size()));
  out.bytes(std::as_bytes(std::span(image.hashes)));
  return std::move(out.out());
}

bool plausible(const ImageRegion& region) {
  const bool known_size = region.page_bytes == pages::kPageSize || region.page_bytes == kHugePageSize;
  return known_size && region.bytes > 0 && region.bytes <= kBytesMax && region.bytes % region.page_bytes == 0 &&
         region.path.starts_with('/');
}

}  // namespace

std::uint64_t RecordHead::bytes_total() const {
  std::uint64_t sum = 0;
  for (const ImageRegion& region : regions) {
    sum += region.bytes;
  }
  return sum;
}

std::vector<std::byte> encode_record(const RetainedImage& image, const Id& boot_id) {
  const std::vector<std::byte> body = encode_body(image);
  ByteWriter rest;
  rest.number(static_cast<std::uint64_t>(body.size()));
  rest.number(checksum(body));
  rest.bytes(boot_id);
  rest.bytes(image.vm_uuid);
  rest.bytes(image.image_id);
  rest.bytes(image.serving);
  rest.number(image.epoch);
  rest.number(image.table.size() - image.table.count(pages::kUnknownGeneration));
  rest.number(static_cast<std::uint32_t>(image.regions.size()));
  for (const ImageRegion& region : image.regions) {
    rest.text(region.name);
    rest.number(region.bytes);
    rest.number(region.page_bytes);
    rest.text(region.path);
    rest.number(region.device);
    rest.number(region.inode);
  }
  ByteWriter record;
  record.number(kMagic);
  record.number(kRecordVersion);
  record.number(static_cast<std::uint32_t>(16 + rest.out().size() + 8));
  record.bytes(rest.out());
  record.number(checksum(record.out()));
  record.bytes(body);
  return std::move(record.out());
}

std::expected<RecordLengths, ImageRefused> decode_lengths(std::span<const std::byte> start, std::uint64_t file_bytes) {
  if (start.size() < kRecordHeadBytesMin) {
    return refuse(Refusal::kTruncated, "the record ends within its head");
  }
  ByteReader in(start);
  if (in.number<std::uint64_t>() != kMagic) {
    return refuse(Refusal::kNotAnImage, "the file is no record of a retained image");
  }
  const auto version = in.number<std::uint32_t>();
  if (version != kRecordVersion) {
    return refuse(Refusal::kVersion, "the record has version " + std::to_string(version) + ", this program reads " +
                                         std::to_string(kRecordVersion));
  }
  RecordLengths lengths;
  lengths.head_bytes = in.number<std::uint32_t>();
  lengths.body_bytes = in.number<std::uint64_t>();
  if (lengths.head_bytes < kRecordHeadBytesMin || lengths.head_bytes > kRecordHeadBytesMax) {
    return refuse(Refusal::kMalformed,
                  "the record's head cannot have " + std::to_string(lengths.head_bytes) + " bytes");
  }
  if (file_bytes < lengths.head_bytes || file_bytes - lengths.head_bytes < lengths.body_bytes) {
    return refuse(Refusal::kTruncated, "the record is shorter than it says");
  }
  if (file_bytes - lengths.head_bytes > lengths.body_bytes) {
    return refuse(Refusal::kMalformed, "the record is longer than it says");
  }
  return lengths;
}

std::expected<RecordHead, ImageRefused> decode_head(std::span<const std::byte> bytes) {
  const auto content = bytes.first(bytes.size() - sizeof(std::uint64_t));
  if (ByteReader(bytes.last(sizeof(std::uint64_t))).number<std::uint64_t>() != checksum(content)) {
    return refuse(Refusal::kChecksum, "the checksum of the record's head is wrong");
  }
  ByteReader in(content);
  RecordHead head;
  in.bytes(12);  // magic and version, checked by decode_lengths()
  head.lengths.head_bytes = in.number<std::uint32_t>();
  head.lengths.body_bytes = in.number<std::uint64_t>();
  head.body_checksum = in.number<std::uint64_t>();
  head.boot_id = read_id(in);
  head.vm_uuid = read_id(in);
  head.image_id = read_id(in);
  head.serving = read_id(in);
  head.epoch = in.number<std::uint32_t>();
  head.pages_known = in.number<std::uint64_t>();
  const auto region_count = in.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < region_count && i < kRegionsMax && in.ok(); ++i) {
    ImageRegion region;
    region.name = in.text(kTextBytesMax);
    region.bytes = in.number<std::uint64_t>();
    region.page_bytes = in.number<std::uint32_t>();
    region.path = in.text(kTextBytesMax);
    region.device = in.number<std::uint64_t>();
    region.inode = in.number<std::uint64_t>();
    if (!plausible(region)) {
      return refuse(Refusal::kMalformed, "region " + std::to_string(i) + " of the record cannot be");
    }
    head.regions.push_back(std::move(region));
  }
  if (!in.ok() || !in.at_end() || head.regions.empty()) {
    return refuse(Refusal::kMalformed, "the record's head is not of the form it should be");
  }
  return head;
}

std::expected<RetainedImage, ImageRefused> decode_body(const RecordHead& head, std::span<const std::byte> body) {
  if (checksum(body) != head.body_checksum) {
    return refuse(Refusal::kChecksum, "the checksum of the record's generation table is wrong");
  }
  const std::uint64_t page_count = head.bytes_total() / pages::kPageSize;
  RetainedImage image{.vm_uuid = head.vm_uuid,
                      .image_id = head.image_id,
                      .serving = head.serving,
                      .epoch = head.epoch,
                      .regions = head.regions,
                      .table = pages::GenerationTable(page_count),
                      .hashes = {}};
  ByteReader in(body);
  for (pages::PageNumber next = 0; next < page_count;) {
    const auto length = in.number<std::uint32_t>();
    const auto decoded = pages::decode_table_piece(in.bytes(length), next, image.table);
    if (!in.ok() || !decoded || *decoded <= next) {
      return refuse(Refusal::kMalformed, "the record's generation table does not decode");
    }
    next = *decoded;
  }
  const auto hash_count = in.number<std::uint64_t>();
  if (hash_count != 0 && hash_count != page_count) {
    return refuse(Refusal::kMalformed, "the record has hashes for another number of pages");
  }
  const auto hashes = in.bytes(hash_count * sizeof(std::uint64_t));
  if (!in.ok() || !in.at_end()) {
    return refuse(Refusal::kMalformed, "the record's body is not of the form it should be");
  }
  image.hashes.resize(hash_count);
  std::ranges::copy(hashes, std::as_writable_bytes(std::span(image.hashes)).begin());
  return image;
}

}  // namespace godwit::memory
