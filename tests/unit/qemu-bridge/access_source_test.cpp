// Goal: what the module finds by guest-physical page reaches the data plane by the VM's own page numbers, all of it and
// nothing else; a QEMU without a VM of KVM's is scanned by its writes. Method: memory maps as QEMU makes them, against
// a map of single pages.

#include "qemu-bridge/agent/access_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <random>

#include "tests/unit/qemu-bridge/fake_dataplane.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kRam = 0x7f0000000000, kDimm = 0x7e0000000000, kRom = 0x7d0000000000;

/// A PC: low memory, a gap, ROMs, RAM on both sides of the hole below 4 GiB, and a DIMM of its own region.
const std::vector<MappedRegion> kRegions{{kRam, 2000, 0}, {kDimm, 300, 2000}};
const std::vector<godwit_ept_slot> kSlots{{1000, 1000, kRam + 1000 * kPage, 3, 0},
                                          {0, 160, kRam, 0, 0},
                                          {192, 64, kRom, 1, 0},
                                          {256, 744, kRam + 256 * kPage, 2, 0},
                                          {1U << 20, 300, kDimm, 4, 0},
                                          {160, 32, kRam + 160 * kPage, 0x10005, 0}};  // SMM's own

TEST(AccessSource, EachPageIsTranslatedToItsOwnNumber) {
  const auto pieces = guest_pieces(kSlots, kRegions);
  std::map<std::uint64_t, std::uint64_t> ours;  // by guest-physical page
  for (std::uint64_t page = 0; page < 2000; ++page) {
    if (page < 160 || page >= 256) ours[page] = page;
  }
  for (std::uint64_t page = 0; page < 300; ++page) ours[(1U << 20) + page] = 2000 + page;
  std::mt19937_64 random(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::uint64_t> found((2300 + 63) / 64);
    std::vector<bool> expected(2300);
    for (const EptRequest& range : scan_ranges(pieces)) {
      ASSERT_EQ(range.first_page % 64, 0U);
      EXPECT_TRUE(range.clear);
      std::vector<std::uint64_t> accessed((range.pages + 63) / 64);
      for (std::uint64_t page = 0; page < range.pages; ++page) {
        if (random() % 3 != 0) continue;
        accessed[page / 64] |= std::uint64_t{1} << page % 64;
        if (const auto at = ours.find(range.first_page + page); at != ours.end()) expected[at->second] = true;
      }
      translate(pieces, range.first_page, accessed, found);
    }
    for (std::uint64_t page = 0; page < 2300; ++page) {
      ASSERT_EQ(found[page / 64] >> page % 64 & 1, expected[page] ? 1U : 0U) << page;
    }
  }
}

TEST(AccessSource, RangesCoverMemoryAndNoGap) {
  const auto ranges = scan_ranges(guest_pieces(kSlots, kRegions));
  std::map<std::uint64_t, int> covered;
  for (const EptRequest& range : ranges) {
    for (std::uint64_t page = 0; page < range.pages; ++page) ++covered[range.first_page + page];
  }
  std::map<std::uint64_t, int> expected;
  for (const godwit_ept_slot& slot : kSlots) {
    for (std::uint64_t page = 0; slot.id >> 16 == 0 && page < slot.count; ++page) expected[slot.start + page] = 1;
  }
  EXPECT_EQ(covered, expected);
  // A slot that a region only partly has is not the region's.
  EXPECT_EQ(guest_pieces(std::vector<godwit_ept_slot>{{0, 10, kDimm + 295 * kPage, 0, 0}}, kRegions),
            (std::vector<GuestPiece>{{0, 10, std::nullopt}}));
}

TEST(AccessSource, MessagesTellEveryBitOnceAndEndTheScan) {
  const ScannedVm vm{Id128::random(), 7};
  std::vector<std::uint64_t> bits(3 * 16384 + 5);  // of three messages and a bit
  bits[1] = 5;
  bits[2 * 16384 + 7] = ~std::uint64_t{0};
  const auto messages = note_messages(vm, bits);
  ASSERT_EQ(messages.size(), 3U) << "the second has nothing to tell";
  std::vector<std::uint64_t> told(bits.size());
  for (const auto& message : messages) {
    EXPECT_EQ(message.ends(), &message == &messages.back());
    EXPECT_EQ(message.vm_uuid(), vm.uuid.to_bytes());
    EXPECT_EQ(message.source(), dataplane::v1::ACCESS_MODULE);
    EXPECT_LE(message.accessed().size(), 128U << 10);
    std::memcpy(&told[message.first_page() / 64], message.accessed().data(), message.accessed().size());
  }
  EXPECT_EQ(told, bits);
  EXPECT_EQ(note_messages(vm, std::vector<std::uint64_t>(5)).size(), 1U) << "an idle guest's scan ends too";
}

TEST(AccessSource, AProcessWithoutKvmIsScannedByItsWritesAndSaysWhy) {
  const auto chosen = choose_access_source(getpid(), {});
  ASSERT_NE(chosen.source, nullptr);
  EXPECT_NE(chosen.reason.find("no VM of KVM's"), std::string::npos) << chosen.reason;
  const TempDir directory;
  FakeDataplane fake(directory.path() / "dataplane.sock");
  DataplaneClient client((directory.path() / "dataplane.sock").string(),
                         {[](const auto&) {}, [](const auto&) {}, [](const auto&) {}});
  client.start();
  client.wait_until_up(std::chrono::seconds(30));
  // A request is among those asked once the next one has been answered.
  ASSERT_TRUE(chosen.source->scan(client, {Id128::random(), 3}));
  ASSERT_TRUE(chosen.source->scan(client, {Id128::random(), 3}));
  const auto asked = fake.requests();
  const auto noted = std::ranges::find_if(asked, [](const auto& request) { return request.has_note_accesses(); });
  ASSERT_NE(noted, asked.end());
  EXPECT_EQ(noted->note_accesses().source(), dataplane::v1::ACCESS_WRITES);
  EXPECT_EQ(noted->note_accesses().ownership(), 3U);
  EXPECT_TRUE(noted->note_accesses().ends());
}

}  // namespace
}  // namespace godwit::bridge
