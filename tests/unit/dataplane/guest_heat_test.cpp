// Goal: a scan of writes heats what was written, and takes nothing from the next migration: the writes are in the
// table, and in the file that a successor of the daemon reads. Method: a real guest's memory and tracker.

#include "dataplane/daemon/guest_heat.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "dataplane/daemon/guest_paging.h"
#include "tests/unit/dataplane/fake_qemu.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t kBytes = 2 << 20;
constexpr std::uint32_t kEpoch = 9;

class GuestHeat : public testing::TestWithParam<memory::TrackerKind> {
 protected:
  void SetUp() override {
    char name[] = "/dev/shm/gwd-heat-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    auto store = memory::ImageStore::open(directory_, 0, memory::read_boot_id().value());
    ASSERT_TRUE(store) << store.error().text;
    images_.emplace(std::move(*store));
    qemu_.emplace(directory_ + "/ram", kBytes);
    if (!qemu_->valid()) {
      GTEST_SKIP() << qemu_->error();
    }
    api::AttachGuest request;
    qemu_->describe(request);
    request.set_vm_uuid(std::string(16, 'v'));
    request.set_image_id(std::string(16, 'i'));
    request.set_ownership(1);
    request.set_epoch(kEpoch);
    std::vector<UniqueFd> descriptors;
    for (const int descriptor : qemu_->descriptors()) {
      descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    }
    auto attachment = parse_attach(request, std::move(descriptors));
    ASSERT_TRUE(attachment) << attachment.error().text;
    attachment->tracker = GetParam();
    auto guest = attach(std::move(*attachment),
                        {.run_dir = directory_, .boot_id = {}, .images = &*images_, .missing_dir = directory_});
    if (!guest) {
      GTEST_SKIP() << guest.error().text;
    }
    guest_ = std::move(*guest);
  }
  void TearDown() override {
    if (guest_) {
      static_cast<void>(guest_->memory->disarm());
    }
    guest_.reset();
    std::filesystem::remove_all(directory_);
  }
  void write(pages::PageNumber page) { qemu_->data()[page * pages::kPageSize] = std::byte{1}; }
  api::NoteAccessesResult scan() {
    const auto noted = note_accesses(
        *guest_, {.vm_uuid = {}, .ownership = 1, .source = api::ACCESS_WRITES, .accessed = {}, .ends = true});
    EXPECT_TRUE(noted) << noted.error().text;
    return noted.value_or(api::NoteAccessesResult{});
  }

  std::string directory_;
  std::optional<Images> images_;
  std::optional<tests::FakeQemu> qemu_;
  std::unique_ptr<Guest> guest_;
};

TEST_P(GuestHeat, WritesAreHeatAndHistory) {
  ASSERT_EQ(writes_refusal(*guest_), "");
  scan();  // what came before
  write(10);
  write(11);
  write(500);
  EXPECT_EQ(scan().pages(), 3U);
  for (const pages::PageNumber page : {10U, 11U, 500U}) {
    EXPECT_EQ(guest_->accesses.heat(page), 128) << page;
    EXPECT_EQ(guest_->table.entries()[page], kEpoch) << page;
    EXPECT_EQ(guest_->memory->state()->table().entries()[page], kEpoch) << page;
  }
  EXPECT_EQ(guest_->accesses.heat(12), 0);
  EXPECT_EQ(guest_->table.entries()[12], 0U) << "never written";
  write(11);
  const auto second = scan();
  EXPECT_EQ(second.pages(), 1U);
  EXPECT_GT(second.cost_us(), 0U);
  EXPECT_EQ(guest_->accesses.heat(10), 64);
  EXPECT_EQ(guest_->accesses.heat(11), 128 + 64);
  EXPECT_EQ(heat_map(*guest_, 512).source(), api::ACCESS_WRITES);
}

TEST_P(GuestHeat, TheBackgroundIsRankedByTheLastAccess) {
  const auto ranked = [this] {
    std::vector<pages::PageNumber> firsts;
    for (const transfer::PageRun& run : rank_for_pull(*guest_)) {
      firsts.push_back(run.first);
    }
    return firsts;
  };
  guest_->table.set_written(
      [] {
        pages::Bitmap one(512);
        one.set(300);
        return one;
      }(),
      kEpoch + 1);
  EXPECT_EQ(ranked().front(), 300U) << "no scan yet: by what was written last";
  scan();
  write(10);
  write(400);
  scan();
  write(200);
  scan();
  write(500);
  write(400);  // hotter than 500, and no later
  scan();
  const auto order = ranked();
  ASSERT_GE(order.size(), 5U);
  EXPECT_EQ(std::vector(order.begin(), order.begin() + 4), (std::vector<pages::PageNumber>{400, 500, 200, 10}));
  std::uint64_t pages = 0;
  for (const transfer::PageRun& run : rank_for_pull(*guest_)) {
    pages += run.count;
  }
  EXPECT_EQ(pages, 512U) << "each page once";
}

TEST_P(GuestHeat, InDoubtNoGenerationIsClaimed) {
  guest_->epoch_in_doubt = true;
  write(10);
  scan();
  EXPECT_EQ(guest_->table.entries()[10], pages::kUnknownGeneration);
}

TEST_P(GuestHeat, AFailedScanMakesEveryPageCountAsWritten) {
  scan();
  std::filesystem::resize_file(directory_ + "/ram", kBytes / 2);  // QEMU's user cuts it short
  EXPECT_FALSE(note_accesses(
      *guest_, {.vm_uuid = {}, .ownership = 1, .source = api::ACCESS_WRITES, .accessed = {}, .ends = true}));
  EXPECT_EQ(guest_->table.count(pages::kUnknownGeneration), guest_->table.size());
}

INSTANTIATE_TEST_SUITE_P(Trackers, GuestHeat,
                         testing::Values(memory::TrackerKind::kPagemapScan, memory::TrackerKind::kWriteProtectEvents),
                         [](const auto& instance) {
                           return instance.param == memory::TrackerKind::kPagemapScan ? "PagemapScan" : "Events";
                         });

}  // namespace
}  // namespace godwit::daemon
