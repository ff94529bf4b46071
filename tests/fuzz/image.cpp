// The record of a retained image, as it lies on disk. Input: one byte (bit 0: checksums are made right, so that what is
// behind them is reached), the file.
// Properties: what is accepted is plausible and comes back equal through our own writer; with a wrong checksum nothing
// is accepted.

#include <xxhash.h>

#include "dataplane/memory/image_record.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

/// The store compares sizes with those of real files before it allocates a table; the fuzzer has no such files.
constexpr std::uint64_t kRamBytesMax = std::uint64_t{1} << 30;
constexpr std::size_t kAtBodyChecksum = 24;

void store(std::vector<std::byte>& file, std::size_t at, std::uint64_t value) {
  std::memcpy(file.data() + at, &value, sizeof value);
}

void repair_checksums(std::vector<std::byte>& file, const memory::RecordLengths& lengths) {
  if (lengths.head_bytes < kAtBodyChecksum + 16) {
    return;
  }
  store(file, kAtBodyChecksum, XXH3_64bits(file.data() + lengths.head_bytes, file.size() - lengths.head_bytes));
  store(file, lengths.head_bytes - 8, XXH3_64bits(file.data(), lengths.head_bytes - 8));
}

void check_round_trip(const memory::RetainedImage& image, const memory::Id& boot_id) {
  const std::vector<std::byte> file = memory::encode_record(image, boot_id);
  const auto lengths = memory::decode_lengths(file, file.size());
  FUZZ_CHECK(lengths);
  const auto head = memory::decode_head(std::span(file).first(lengths->head_bytes));
  FUZZ_CHECK(head && head->boot_id == boot_id);
  const auto again = memory::decode_body(*head, std::span(file).subspan(lengths->head_bytes));
  FUZZ_CHECK(again && again->vm_uuid == image.vm_uuid && again->image_id == image.image_id);
  FUZZ_CHECK(again->epoch == image.epoch && again->regions == image.regions);
  FUZZ_CHECK(again->table == image.table && again->hashes == image.hashes);
  FUZZ_CHECK(head->pages_known == image.table.size() - image.table.count(pages::kUnknownGeneration));
}

memory::RetainedImage example(bool with_hashes) {
  memory::RetainedImage image{.vm_uuid = {std::byte{1}}, .image_id = {std::byte{2}}, .epoch = 9};
  image.regions = {{"ram0", 64 * 4096, 4096, "/dev/shm/ram0", 25, 1234},
                   {"ram1", 2U << 20, 2U << 20, "/dev/hugepages/ram1", 26, 77}};
  image.table = pages::GenerationTable(64 + 512, 3);
  image.table.set_range(10, 20, 8);
  if (with_hashes) {
    image.hashes.assign(image.table.size(), 0x1234);
  }
  return image;
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  const bool repair = input.flag();
  const Bytes given = input.rest();
  std::vector<std::byte> file(given.begin(), given.end());
  const auto lengths = memory::decode_lengths(file, file.size());
  if (!lengths) {
    FUZZ_CHECK(!lengths.error().text.empty() && !memory::name_of(lengths.error().reason).empty());
    return;
  }
  FUZZ_CHECK(lengths->head_bytes + lengths->body_bytes == file.size());
  if (repair) {
    repair_checksums(file, *lengths);
  }
  const auto head = memory::decode_head(std::span(file).first(lengths->head_bytes));
  if (!head || head->bytes_total() > kRamBytesMax) {
    return;
  }
  FUZZ_CHECK(head->lengths.head_bytes == lengths->head_bytes && head->lengths.body_bytes == lengths->body_bytes);
  const auto image = memory::decode_body(*head, std::span(file).subspan(lengths->head_bytes));
  if (!image) {
    FUZZ_CHECK(!repair || image.error().reason == memory::Refusal::kMalformed);
    return;
  }
  FUZZ_CHECK(image->table.size() * 4096 == head->bytes_total());
  check_round_trip(*image, head->boot_id);
  // A damaged record is never an image.
  file.back() ^= std::byte{1};
  FUZZ_CHECK(!memory::decode_body(*head, std::span(file).subspan(lengths->head_bytes)));
}

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  for (const bool with_hashes : {false, true}) {
    Output file;
    file.number<std::uint8_t>(1).bytes(memory::encode_record(example(with_hashes), {std::byte{3}}));
    out.push_back({with_hashes ? "hashes" : "plain", file.take()});
  }
  return out;
}

}  // namespace godwit::fuzz
