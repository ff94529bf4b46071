// The host's memory budget as guests are attached and leave.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "dataplane/daemon/guest.h"
#include "tests/unit/dataplane/fake_qemu.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kBudget = 12 * kMiB;

Id128 vm(std::uint8_t number) {
  std::array<std::uint8_t, 16> bytes{};
  bytes.fill(number);
  return Id128(bytes);
}

class Budget : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/dev/shm/gwd-budget-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    const auto boot_id = memory::read_boot_id();
    ASSERT_TRUE(boot_id) << boot_id.error().text;
    auto store = memory::ImageStore::open(directory_, kBudget, *boot_id);
    ASSERT_TRUE(store) << store.error().text;
    images_.emplace(std::move(*store));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  [[nodiscard]] std::string ram_path(std::uint8_t number) const {
    return directory_ + "/" + std::to_string(number) + ".ram";
  }
  /// Image `number` of 4 MiB, all of it in use.
  void keep_image(std::uint8_t number) {
    std::ofstream(ram_path(number)) << std::string(4 * kMiB, 'x');
    const UniqueFd file(open(ram_path(number).c_str(), O_RDWR | O_CLOEXEC));
    memory::RetainedImage image;
    image.vm_uuid = image.image_id = to_memory_id(vm(number));
    image.regions = {*memory::describe_ram_file("ram0", 4 * kMiB, 4096, ram_path(number), file.get())};
    image.table = pages::GenerationTable(4 * kMiB / 4096, 7);
    ASSERT_TRUE(images_->store.save(image));
  }
  /// A running QEMU of so many bytes is attached; null: skipped or failed.
  std::unique_ptr<Guest> attach_guest(std::uint8_t number, std::uint64_t bytes, std::uint64_t others_bytes) {
    qemu_ = std::make_unique<tests::FakeQemu>(ram_path(number), bytes);
    if (!qemu_->valid()) {
      return nullptr;
    }
    dataplane::v1::AttachGuest request;
    qemu_->describe(request);
    request.set_vm_uuid(vm(number).to_bytes());
    request.set_image_id(vm(number).to_bytes());
    request.set_kind(dataplane::v1::AttachGuest::FRESH);
    request.set_epoch(1);
    std::vector<UniqueFd> descriptors;
    for (const int descriptor : qemu_->descriptors()) {
      descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    }
    auto attachment = parse_attach(request, std::move(descriptors));
    EXPECT_TRUE(attachment) << attachment.error().text;
    auto guest = attach(std::move(*attachment), {directory_, vm(99), &*images_, others_bytes});
    EXPECT_TRUE(guest) << guest.error().text;
    return guest ? std::move(*guest) : nullptr;
  }
  [[nodiscard]] std::vector<Id128> kept() const {
    std::vector<Id128> result;
    const auto images = images_->store.list().value();
    for (const auto& image : images) {
      result.push_back(from_memory_id(image.vm_uuid));
    }
    return result;
  }

  std::string directory_;
  std::optional<Images> images_;
  std::unique_ptr<tests::FakeQemu> qemu_;
};

TEST_F(Budget, AttachingARunningVmDropsTheLeastRecentlyUsedImage) {
  keep_image(1);
  keep_image(2);
  const auto guest = attach_guest(3, 6 * kMiB, 0);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  EXPECT_EQ(kept(), std::vector{vm(2)});
  EXPECT_FALSE(std::filesystem::exists(ram_path(1))) << "its memory is given back";
}

TEST_F(Budget, OtherGuestsCount) {
  keep_image(1);
  const auto guest = attach_guest(3, 2 * kMiB, 8 * kMiB);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  EXPECT_TRUE(kept().empty());
}

TEST_F(Budget, NothingIsDroppedWhileThereIsRoom) {
  keep_image(1);
  const auto guest = attach_guest(3, 2 * kMiB, 4 * kMiB);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  EXPECT_EQ(kept(), std::vector{vm(1)});
}

TEST_F(Budget, AVmThatRunsAlreadyIsAttachedWhateverItNeeds) {
  keep_image(1);
  const auto guest = attach_guest(3, 16 * kMiB, 0);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  EXPECT_TRUE(kept().empty());
  EXPECT_TRUE(std::filesystem::exists(ram_path(3))) << "its own RAM stays";
}

TEST_F(Budget, AnAttachedGuestWhoseRamAnOldRecordNamesKeepsIt) {
  keep_image(3);
  const auto guest = attach_guest(3, 4 * kMiB, 12 * kMiB);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  EXPECT_TRUE(std::filesystem::exists(ram_path(3)));
}

TEST_F(Budget, AnImageThatFitsOnlyWithoutOlderOnesTakesTheirPlace) {
  const auto guest = attach_guest(3, 4 * kMiB, 0);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  keep_image(1);
  std::ranges::fill(qemu_->data(), std::byte{1});
  const Retained retained = retain(*guest, std::move(guest->table), 8, 6 * kMiB, *images_);
  EXPECT_TRUE(retained.retained) << retained.reason;
  EXPECT_EQ(kept(), std::vector{vm(3)});
}

TEST_F(Budget, AnImageThatFitsNotEvenAloneIsNotKept) {
  const auto guest = attach_guest(3, 4 * kMiB, 0);
  if (!guest) {
    GTEST_SKIP() << qemu_->error();
  }
  std::ranges::fill(qemu_->data(), std::byte{1});
  const Retained retained = retain(*guest, std::move(guest->table), 8, 10 * kMiB, *images_);
  EXPECT_FALSE(retained.retained);
  EXPECT_NE(retained.reason.find("memory_budget"), std::string::npos) << retained.reason;
  EXPECT_TRUE(kept().empty());
  EXPECT_FALSE(std::filesystem::exists(ram_path(3)));
}

}  // namespace
}  // namespace godwit::daemon
