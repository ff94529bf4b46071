// Goal: requests that meet an attachment under way: a detachment is not lost, and the memory of both of two guests that
// come at once counts. Method: the real service; its jobs wait for the lock on the images, which the test holds.

#include "dataplane/daemon/service.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>

#include "tests/unit/dataplane/fake_qemu.h"
#include "tests/unit/dataplane/no_queue.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::chrono::seconds kPatience{60};

std::string id(char letter) { return std::string(16, letter); }

class ServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/dev/shm/gwd-service-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    auto store = memory::ImageStore::open(directory_, 12 * kMiB, memory::read_boot_id().value());
    ASSERT_TRUE(store) << store.error().text;
    images_.emplace(std::move(*store));
    ServiceOptions options;
    options.run_dir = directory_;
    service_.emplace(
        std::move(options), *images_, control_, data_path_, [](const api::Event&) {}, [](int) {});
  }
  void TearDown() override {
    service_.reset();
    std::filesystem::remove_all(directory_);
  }

  /// Sends an AttachGuest of a running VM; the answer's place. Null: this kernel cannot.
  const api::Reply* attach(char vm, std::uint64_t bytes) {
    qemus_.push_back(std::make_unique<tests::FakeQemu>(directory_ + "/" + vm + ".ram", bytes));
    if (!qemus_.back()->valid()) {
      return nullptr;
    }
    api::ToDataplane request;
    api::AttachGuest& attach = *request.mutable_attach_guest();
    qemus_.back()->describe(attach);
    attach.set_vm_uuid(id(vm));
    attach.set_image_id(id(vm));
    attach.set_ownership(7);
    attach.set_epoch(1);
    std::vector<UniqueFd> descriptors;
    for (const int descriptor : qemus_.back()->descriptors()) {
      descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    }
    return send(std::move(request), std::move(descriptors));
  }
  const api::Reply* detach(char vm, std::uint64_t ownership = 7) {
    api::ToDataplane request;
    request.mutable_detach_guest()->set_vm_uuid(id(vm));
    request.mutable_detach_guest()->set_ownership(ownership);
    return send(std::move(request), {});
  }
  api::Status status() {
    api::ToDataplane request;
    request.mutable_get_status();
    return send(std::move(request), {})->status();
  }
  const api::Reply* send(api::ToDataplane request, std::vector<UniqueFd> descriptors) {
    const std::size_t place = replies_.size();
    replies_.emplace_back();
    service_->handle(std::move(request), std::move(descriptors), [this, place](api::Reply reply) {
      replies_[place] = std::move(reply);
      ++answered_;
    });
    return &replies_[place];
  }
  /// As the control thread does, until so many requests are answered.
  bool run_until_answered(std::size_t count) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    std::unique_lock lock(mutex_);
    while (answered_ < count) {
      if (!woken_.wait_until(lock, until, [this] { return std::exchange(posted_, false); })) {
        return false;
      }
      lock.unlock();
      control_.run();
      lock.lock();
    }
    return true;
  }
  /// An image of 4 MiB, all of it in use.
  void keep_image(char vm) {
    const std::string path = directory_ + "/" + vm + ".ram";
    std::ofstream(path) << std::string(4 * kMiB, 'x');
    const UniqueFd file(open(path.c_str(), O_RDWR | O_CLOEXEC));
    memory::RetainedImage image;
    image.vm_uuid = image.image_id = to_memory_id(Id128::from_bytes(id(vm)).value());
    image.regions = {*memory::describe_ram_file("ram0", 4 * kMiB, 4096, path, file.get())};
    image.table = pages::GenerationTable(4 * kMiB / 4096, 7);
    ASSERT_TRUE(images_->store.save(image));
  }

  std::string directory_;
  std::optional<Images> images_;
  std::mutex mutex_;
  std::condition_variable woken_;
  bool posted_ = false;
  Inbox control_{[this] {
    const std::lock_guard lock(mutex_);
    posted_ = true;
    woken_.notify_one();
  }};
  tests::NoQueue queue_;
  DataPath data_path_{queue_, {.wake = [] {}, .on_sleeping = [](bool) {}}};
  std::deque<api::Reply> replies_;
  std::size_t answered_ = 0;
  std::vector<std::unique_ptr<tests::FakeQemu>> qemus_;
  std::optional<Service> service_;
};

TEST_F(ServiceTest, ADetachmentWaitsForTheAttachmentUnderWayAndTakesItBack) {
  std::unique_lock held(images_->mutex);
  const api::Reply* const attached = attach('a', 2 * kMiB);
  if (attached == nullptr) {
    GTEST_SKIP() << qemus_.back()->error();
  }
  ASSERT_EQ(status().guests_size(), 1) << "a bridge that asks must see what is on its way";
  EXPECT_TRUE(status().guests(0).attaching());
  EXPECT_EQ(status().guests(0).ownership(), 7U);
  EXPECT_EQ(status().guests(0).qemu_pid(), getpid());
  const std::size_t asked = answered_;
  EXPECT_EQ(detach('a', 6)->error().code(), api::Error::STALE_OWNERSHIP);
  const api::Reply* const detached = detach('a');
  const api::Reply* const again = detach('a');
  EXPECT_EQ(answered_, asked + 1) << "answered before it is true";
  held.unlock();
  ASSERT_TRUE(run_until_answered(asked + 4));
  EXPECT_EQ(attached->error().code(), api::Error::BAD_REQUEST);
  EXPECT_NE(attached->error().text().find("detached"), std::string::npos) << attached->error().text();
  EXPECT_EQ(detached->error().code(), api::Error::NONE);
  EXPECT_EQ(again->error().code(), api::Error::NONE);
  EXPECT_EQ(status().guests_size(), 0);
  EXPECT_EQ(qemus_.back()->armed(), "") << "QEMU is left with write protection";
}

TEST_F(ServiceTest, GuestsThatComeAtOnceSeeEachOthersMemory) {
  keep_image('i');
  std::unique_lock held(images_->mutex);
  const api::Reply* const first = attach('a', 5 * kMiB);
  if (first == nullptr) {
    GTEST_SKIP() << qemus_.back()->error();
  }
  const api::Reply* const second = attach('b', 5 * kMiB);
  held.unlock();
  ASSERT_TRUE(run_until_answered(2));
  EXPECT_EQ(first->error().code(), api::Error::NONE) << first->error().text();
  EXPECT_EQ(second->error().code(), api::Error::NONE) << second->error().text();
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/i.ram")) << "4 + 5 + 5 MiB are more than the budget of 12";
}

/// A scan of 512 pages by the module that found the first of each word.
api::ToDataplane module_scan(char vm) {
  api::ToDataplane request;
  api::NoteAccesses& note = *request.mutable_note_accesses();
  note.set_vm_uuid(id(vm));
  note.set_ownership(7);
  note.set_source(api::ACCESS_MODULE);
  for (int word = 0; word < 8; ++word) {
    note.mutable_accessed()->append("\1\0\0\0\0\0\0\0", 8);
  }
  note.set_ends(true);
  return request;
}

api::ToDataplane heat_query(char vm, std::uint32_t cells) {
  api::ToDataplane request;
  request.mutable_get_heat()->set_vm_uuid(id(vm));
  request.mutable_get_heat()->set_cells(cells);
  return request;
}

TEST_F(ServiceTest, AccessesBecomeHeatAndAMigrationWaitsForTheScan) {
  const api::Reply* const attached = attach('a', 2 * kMiB);
  if (attached == nullptr) {
    GTEST_SKIP() << qemus_.back()->error();
  }
  ASSERT_TRUE(run_until_answered(1));
  const api::Reply* const noted = send(module_scan('a'), {});
  const api::Reply* const busy = send(module_scan('a'), {});
  api::ToDataplane preparing;
  preparing.mutable_prepare_migration()->set_migration_id(id('m'));
  preparing.mutable_prepare_migration()->set_vm_uuid(id('a'));
  const api::Reply* const prepared = send(std::move(preparing), {});
  EXPECT_EQ(busy->error().code(), api::Error::BAD_REQUEST) << "one at a time";
  EXPECT_EQ(prepared->error().code(), api::Error::NONE) << "not answered while the tracker is being read";
  ASSERT_TRUE(run_until_answered(4));
  EXPECT_EQ(noted->note_accesses().pages(), 8U);
  EXPECT_EQ(prepared->error().code(), api::Error::STALE_OWNERSHIP);
  const api::Reply* const each = send(heat_query('a', 4096), {});
  const api::Reply* const eighths = send(heat_query('a', 8), {});
  ASSERT_TRUE(run_until_answered(6));
  ASSERT_EQ(each->heat().cells().size(), 512U);
  for (std::size_t page = 0; page < 512; ++page) {
    ASSERT_EQ(static_cast<std::uint8_t>(each->heat().cells()[page]), page % 64 == 0 ? 128 : 0) << page;
  }
  EXPECT_EQ(eighths->heat().cells(), std::string(8, '\2'));
  EXPECT_EQ(each->heat().scans(), 1U);
  EXPECT_EQ(each->heat().source(), api::ACCESS_MODULE);
}

TEST_F(ServiceTest, AccessesThatCannotBeAreRefused) {
  const api::Reply* const attached = attach('a', 2 * kMiB);
  if (attached == nullptr) {
    GTEST_SKIP() << qemus_.back()->error();
  }
  ASSERT_TRUE(run_until_answered(1));
  const auto refused = [&](const std::function<void(api::NoteAccesses&)>& change) {
    api::ToDataplane request = module_scan('a');
    change(*request.mutable_note_accesses());
    return send(std::move(request), {})->error().code();
  };
  EXPECT_EQ(refused([](auto& note) { note.set_ownership(6); }), api::Error::STALE_OWNERSHIP);
  EXPECT_EQ(refused([](auto& note) { note.set_vm_uuid(id('b')); }), api::Error::NO_SUCH_VM);
  EXPECT_EQ(refused([](auto& note) { note.set_vm_uuid("short"); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(refused([](auto& note) { note.set_source(api::ACCESS_UNKNOWN); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(refused([](auto& note) { note.set_first_page(8); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(refused([](auto& note) { note.set_first_page(64); }), api::Error::BAD_REQUEST) << "beyond the last page";
  EXPECT_EQ(refused([](auto& note) { note.set_first_page(~std::uint64_t{63}); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(refused([](auto& note) { note.mutable_accessed()->pop_back(); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(refused([](auto& note) { note.set_accessed(std::string((128U << 10) + 8, 0)); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(refused([](auto& note) { note.set_source(api::ACCESS_WRITES); }), api::Error::BAD_REQUEST);
  EXPECT_EQ(send(heat_query('a', 0), {})->error().code(), api::Error::BAD_REQUEST);
  EXPECT_EQ(send(heat_query('a', 4097), {})->error().code(), api::Error::BAD_REQUEST);
  EXPECT_EQ(send(heat_query('b', 1), {})->error().code(), api::Error::NO_SUCH_VM);
}

}  // namespace
}  // namespace godwit::daemon
