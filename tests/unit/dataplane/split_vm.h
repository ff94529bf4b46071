#pragma once
// A split guest between two daemons over a veth pair: host 0 runs it, host 1 has its page stores. The test is both
// bridges, and the guest, whose memory is this process's. Tests only.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "tests/unit/dataplane/round_trip.h"

namespace godwit::tests {

inline constexpr std::uint64_t kBudget = 16U << 20;
inline const std::string kStore = id_of('p');
inline const std::string kSecondStore = id_of('q');

class SplitVm : public RoundTrip {
 protected:
  void SetUp() override {
    RoundTrip::SetUp();
    ASSERT_EQ(pipe2(pipe_.data(), O_CLOEXEC), 0);
  }
  void TearDown() override {
    RoundTrip::TearDown();
    for (const int end : pipe_) {
      close(end);
    }
  }

  api::AttachGuestResult attach_split(api::AttachGuest::Kind kind) {
    auto request = attach_request(0, kind, 1);
    request.mutable_attach_guest()->set_split(true);
    return ask(0, request, guests_[0]->descriptors()).attach_guest();
  }
  static api::ToDataplane split_request(bool gather = false) {
    api::ToDataplane request;
    api::SplitGuest& split = *request.mutable_split_guest();
    split.set_vm_uuid(id_of('v'));
    split.set_ownership(1);
    split.set_budget_bytes(kBudget);
    split.set_gather(gather);
    split.add_stores()->set_store_id(kStore);
    return request;
  }
  api::SplitStatus split(bool gather = false) {
    auto request = split_request(gather);
    return ask(0, request, {pipe_[0], pipe_[1]}).split_guest().status();
  }
  void connect(bool create, char secret, const std::string& id = kStore) {
    api::ToDataplane request;
    api::PrepareStore& store = *request.mutable_prepare_store();
    store.set_store_id(id);
    store.set_vm_uuid(id_of('v'));
    store.set_ownership(1);
    store.set_pages(kPages);
    store.set_budget_bytes(kBytes * 2);
    store.set_create(create);
    const auto there = ask(1, request).prepare_store().endpoint();
    api::PrepareSub& sub = *request.mutable_prepare_sub();
    sub.set_vm_uuid(id_of('v'));
    sub.set_ownership(1);
    sub.set_store_id(id);
    const auto here = ask(0, request).prepare_sub().endpoint();
    api::StartStore& start_store = *request.mutable_start_store();
    start_store.set_store_id(id);
    *start_store.mutable_peer() = here;
    start_store.set_secret(std::string(32, secret));
    ask(1, request);
    api::StartSub& start_sub = *request.mutable_start_sub();
    start_sub.set_vm_uuid(id_of('v'));
    start_sub.set_store_id(id);
    *start_sub.mutable_peer() = there;
    start_sub.set_secret(std::string(32, secret));
    ask(0, request);
  }
  api::Status status(std::size_t host) {
    api::ToDataplane request;
    request.mutable_get_status();
    return ask(host, request).status();
  }
  /// Until it holds; false: never.
  bool until(const std::function<bool(const api::SplitStatus&)>& holds) {
    for (int tries = 0; tries < 200'000; ++tries) {
      const auto now = status(0);
      if (now.splits_size() == 1 && holds(now.splits(0))) {
        return true;
      }
    }
    return false;
  }
  /// A scan of the module's found the first `count` pages accessed, a multiple of 64.
  void note_hot(std::uint64_t count) { EXPECT_EQ(ask(0, hot_request(count, 1)).note_accesses().pages(), count); }
  static api::ToDataplane hot_request(std::uint64_t count, std::uint64_t ownership) {
    api::ToDataplane request;
    api::NoteAccesses& note = *request.mutable_note_accesses();
    note.set_vm_uuid(id_of('v'));
    note.set_ownership(ownership);
    note.set_source(api::ACCESS_MODULE);
    note.set_accessed(std::string(count / 8, '\xff'));
    note.set_ends(true);
    return request;
  }
  /// How many of the first `count` pages have memory here.
  [[nodiscard]] std::uint64_t here_of_first(std::uint64_t count) const {
    const UniqueFd file(open((hosts_.directory(0) + "/vm.ram").c_str(), O_RDONLY | O_CLOEXEC));
    const auto end = static_cast<off_t>(count * 4096);
    std::uint64_t bytes = 0;
    for (off_t at = lseek(file.get(), 0, SEEK_DATA); at >= 0 && at < end;) {
      const off_t hole = std::min(lseek(file.get(), at, SEEK_HOLE), end);
      bytes += static_cast<std::uint64_t>(hole - at);
      at = lseek(file.get(), hole, SEEK_DATA);
    }
    return bytes / 4096;
  }
  /// The first page that a store has, of the guest on host 0; kPages: none.
  [[nodiscard]] std::uint64_t first_away() const {
    const UniqueFd file(open((hosts_.directory(0) + "/vm.ram").c_str(), O_RDONLY | O_CLOEXEC));
    std::uint64_t page = 0;
    while (page < kPages && (page % 4 == 3 || lseek(file.get(), static_cast<off_t>(page * 4096), SEEK_DATA) ==
                                                  static_cast<off_t>(page * 4096))) {
      ++page;
    }
    return page;
  }
  bool begin_split() {
    if (!begin_split_alone()) {
      return false;
    }
    connect(true, 's');
    return !HasFailure();
  }
  /// With no store connected: nothing that has left is anywhere else, and the guest far above its budget.
  bool begin_split_alone() {
    make_guest(0);
    if (IsSkipped()) {
      return false;
    }
    fill(0);
    attach_and_split();
    return !HasFailure();
  }
  void attach_and_split() {
    expected_.assign(guests_[0]->data().begin(), guests_[0]->data().end());
    attach_split(api::AttachGuest::FRESH);
    split();
  }
  void restart(std::size_t host) {
    hosts_.kill_daemon(host, SIGKILL);
    bridges_[host].disconnect();
    ASSERT_EQ(hosts_.start_daemon(host), "");
    ASSERT_TRUE(bridges_[host].connect(hosts_.socket(host))) << hosts_.log(host);
  }

  [[nodiscard]] std::uint64_t resident() const {
    struct stat file {};
    EXPECT_EQ(stat((hosts_.directory(0) + "/vm.ram").c_str(), &file), 0);
    return static_cast<std::uint64_t>(file.st_blocks) * 512;
  }
  /// As the guest: every page must be as it was written last. Some are written on the way.
  void run_guest(std::uint64_t round) {
    std::uint64_t wrong = 0;
    for (std::uint64_t i = 0; i < kPages; ++i) {
      const std::uint64_t page = i * 5 % kPages;  // not in order
      std::byte* const here = guests_[0]->data().data() + page * 4096;
      wrong += std::memcmp(here, expected_.data() + page * 4096, 4096) != 0 ? 1U : 0U;
      if (page % 7 == round % 7) {
        const std::uint64_t value = page * 1000 + round;
        std::memcpy(here + 128, &value, sizeof value);
        std::memcpy(expected_.data() + page * 4096 + 128, &value, sizeof value);
      }
      if (i % 64 == 0) {
        resident_most_ = std::max(resident_most_, resident());
      }
    }
    EXPECT_EQ(wrong, 0U) << "pages are not what the guest wrote last";
  }

  std::array<int, 2> pipe_{-1, -1};
  std::vector<std::byte> expected_;
  std::uint64_t resident_most_ = 0;
};

}  // namespace godwit::tests
