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

}  // namespace
}  // namespace godwit::daemon
