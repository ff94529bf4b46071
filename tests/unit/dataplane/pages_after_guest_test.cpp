// Goal: pages that come after the guest, between two daemons over a veth pair: every byte that the guest sees there is
// the source's, whatever dies meanwhile. Method: the test is both bridges and both QEMUs; as the guest it reads all of
// its memory while pages are missing, and waits in the fault like a vCPU.

#include <signal.h>
#include <sys/stat.h>

#include "tests/unit/dataplane/round_trip.h"

namespace godwit::tests {
namespace {

constexpr std::uint64_t kSlowBps = 100'000'000;  // the guest's 48 MiB take four seconds

class PagesAfterGuest : public RoundTrip {
 protected:
  void SetUp() override {
    mode_ = api::POSTCOPY;
    RoundTrip::SetUp();
  }

  api::Reply commit(std::size_t host, std::uint64_t ownership) {
    api::ToDataplane request;
    request.mutable_commit_migration()->set_migration_id(current_);
    request.mutable_commit_migration()->set_ownership(ownership);
    return ask(host, request);
  }

  /// The guest runs on host 1 and lacks pages. False: skipped, or it failed.
  bool move_without_pages() {
    if (!attach_both()) {
      return false;
    }
    begin(kFirst);
    if (!wait(0, api::Event::kReadyToSwitch)) {
      return false;
    }
    switch_over(kFirst);
    EXPECT_GT(pages_missing_, kPages / 2);
    commit(1, 2);
    commit(0, 2);
    return !HasFailure();
  }

  api::PrepareResumeResult prepare_resume(std::size_t host) {
    api::ToDataplane request;
    api::PrepareResume& prepare = *request.mutable_prepare_resume();
    prepare.set_migration_id(kFirst.id);
    prepare.set_vm_uuid(id_of('v'));
    prepare.set_image_id(id_of('i'));
    prepare.set_ownership(2);
    prepare.set_role(host == 0 ? api::ROLE_SOURCE : api::ROLE_DESTINATION);
    return ask(host, request).prepare_resume();
  }

  void resume(std::size_t host, const api::Endpoint& peer) {
    api::ToDataplane request;
    api::ResumeMigration& resume = *request.mutable_resume_migration();
    resume.set_migration_id(kFirst.id);
    *resume.mutable_peer() = peer;
    resume.set_secret(std::string(32, 'r'));
    *resume.mutable_policy() = policy();
    ask(host, request);
  }

  void go_on_with_another_flow() {
    const auto source = prepare_resume(0);
    const auto destination = prepare_resume(1);
    EXPECT_GT(destination.pages_missing(), 0U);
    EXPECT_LE(destination.pages_missing(), pages_missing_);
    bandwidth_bps_ = 0;
    resume(1, source.endpoint());
    resume(0, destination.endpoint());
  }

  void restart(std::size_t host) {
    ASSERT_EQ(hosts_.start_daemon(host), "");
    ASSERT_TRUE(bridges_[host].connect(hosts_.socket(host)));
  }

  /// All of the memory is read where it lacks pages, and is that of the source; then both ends know that it is whole.
  void expect_all_comes() {
    expect_equal_memory();
    api::Event complete;
    ASSERT_TRUE(wait(1, api::Event::kComplete, &complete));
    EXPECT_FALSE(complete.complete().has_error()) << complete.complete().error().text();
    EXPECT_EQ(complete.complete().stats().paging().pages_missing(), 0U);
    ASSERT_TRUE(wait(0, api::Event::kComplete));
    finish(1, kFirst, api::OUTCOME_COMMITTED, 2);
    const auto left = finish(0, kFirst, api::OUTCOME_COMMITTED, 2);
    EXPECT_TRUE(left.image_retained()) << left.image_reason();
  }

  void expect_refused(std::size_t host, const api::ToDataplane& request, const std::string& why) {
    const auto refused = bridges_[host].ask(request);
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->error().code(), api::Error::BAD_REQUEST) << request.ShortDebugString();
    EXPECT_NE(refused->error().text().find(why), std::string::npos) << refused->error().text();
  }

  std::string missing_file() { return hosts_.directory(1) + "/" + Id128::from_bytes(id_of('v'))->text() + ".missing"; }

  api::Status status(std::size_t host) {
    api::ToDataplane request;
    request.mutable_get_status();
    return ask(host, request).status();
  }
};

TEST_F(PagesAfterGuest, ComeOnDemandAndUnasked) {
  if (!move_without_pages()) {
    return;
  }
  expect_all_comes();
  EXPECT_EQ(guests_[1]->armed().find(" um"), std::string::npos) << "faults on missing pages are still the daemon's";

  // What came so is an image like any other: the way home is cheap.
  guests_[0].reset();
  for (std::uint64_t i = 0; i < 300; ++i) {
    guests_[1]->data()[(i * 50 + 1) * 4096 + 5] ^= std::byte{0x5a};
  }
  make_guest(0);
  attach(0, api::AttachGuest::ARRIVING, 2);
  const Move back{.from = 1, .to = 0, .id = id_of('2'), .epoch_base = 2000, .ownership = 2, .reuse = true};
  begin(back);
  ASSERT_TRUE(wait(1, api::Event::kReadyToSwitch));
  ASSERT_NO_FATAL_FAILURE(switch_over(back));
  EXPECT_GE(pages_missing_, 300U) << "what was written must be missing at home";
  EXPECT_LE(pages_missing_, 320U) << "what did not change was punched out, too";
  commit(0, 3);
  commit(1, 3);
  expect_equal_memory();
  ASSERT_TRUE(wait(0, api::Event::kComplete));
}

TEST_F(PagesAfterGuest, AreKeptForItUntilAllHaveCome) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  ASSERT_EQ(status(0).paging_size(), 1);
  EXPECT_EQ(status(0).guests_size(), 0) << "the source has no guest any more";
  EXPECT_EQ(status(1).guests_size(), 1);
  for (const std::size_t host : {0U, 1U}) {
    api::ToDataplane request;
    request.mutable_finish_migration()->set_migration_id(kFirst.id);
    request.mutable_finish_migration()->set_outcome(api::OUTCOME_COMMITTED);
    request.mutable_finish_migration()->set_ownership(2);
    const auto refused = bridges_[host].ask(request);
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->error().code(), api::Error::BAD_REQUEST) << "finished while pages were missing";
  }
  api::ToDataplane request;
  request.mutable_drop_image()->mutable_id()->set_vm_uuid(id_of('v'));
  request.mutable_drop_image()->mutable_id()->set_image_id(id_of('i'));
  const auto refused = bridges_[0].ask(request);
  ASSERT_TRUE(refused);
  EXPECT_NE(refused->error().code(), api::Error::NONE) << "the memory that a guest elsewhere needs was dropped";
  expect_all_comes();
}

TEST_F(PagesAfterGuest, AreNotGivenUpWhileTheGuestRuns) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  api::ToDataplane request;
  request.mutable_finish_migration()->set_migration_id(kFirst.id);
  request.mutable_finish_migration()->set_outcome(api::OUTCOME_ABANDONED);
  request.mutable_finish_migration()->set_ownership(2);
  expect_refused(1, request, "end its QEMU first");
  if (!HasFailure()) {
    expect_all_comes();
  }
}

TEST_F(PagesAfterGuest, OfAMigrationThatNeverBeganNothingIsLeft) {
  if (!attach_both()) {
    return;
  }
  prepare(1, kFirst, api::ROLE_DESTINATION);
  ASSERT_EQ(access(missing_file().c_str(), F_OK), 0) << "nothing is tested";
  hosts_.kill_daemon(1, SIGKILL);
  ASSERT_NO_FATAL_FAILURE(restart(1));
  status(1);
  EXPECT_NE(access(missing_file().c_str(), F_OK), 0);
}

TEST_F(PagesAfterGuest, SurviveTheDestinationsDaemon) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  hosts_.kill_daemon(1, SIGKILL);
  ASSERT_NO_FATAL_FAILURE(restart(1));
  const auto again = attach(1, api::AttachGuest::CONTINUING, 2);
  EXPECT_GT(again.pages_missing(), 0U);
  go_on_with_another_flow();
  expect_all_comes();
}

TEST_F(PagesAfterGuest, AreNotTakenForZerosByADaemonThatHasJustBegunAgain) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  hosts_.kill_daemon(1, SIGKILL);
  ASSERT_NO_FATAL_FAILURE(restart(1));
  ASSERT_GT(attach(1, api::AttachGuest::CONTINUING, 2).pages_missing(), 0U);
  api::ToDataplane request;
  api::PrepareMigration& away = *request.mutable_prepare_migration();
  away.set_migration_id(id_of('2'));
  away.set_vm_uuid(id_of('v'));
  away.set_ownership(2);
  away.set_role(api::ROLE_SOURCE);
  away.set_epoch_base(2000);
  away.set_epoch_count(1000);
  away.set_bytes_total(kBytes);
  expect_refused(1, request, "lacks");
  request.mutable_detach_guest()->set_vm_uuid(id_of('v'));
  request.mutable_detach_guest()->set_ownership(2);
  expect_refused(1, request, "lacks");
  go_on_with_another_flow();
  expect_all_comes();
}

TEST_F(PagesAfterGuest, ComeThoughTheHistoryCannotBeKept) {
  const std::string in_the_way = hosts_.directory(1) + "/" + Id128::from_bytes(id_of('v'))->text() + ".tracking";
  ASSERT_EQ(mkdir(in_the_way.c_str(), 0700), 0) << in_the_way;
  if (move_without_pages()) {
    expect_all_comes();
  }
}

TEST_F(PagesAfterGuest, AreNotTakenForCompleteWhenNobodyKnowsWhichTheyAre) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  hosts_.kill_daemon(1, SIGKILL);
  const std::string file = missing_file();
  ASSERT_EQ(std::rename(file.c_str(), (file + ".aside").c_str()), 0) << file;
  ASSERT_NO_FATAL_FAILURE(restart(1));
  const auto refused = bridges_[1].ask(attach_request(1, api::AttachGuest::CONTINUING, 2), guests_[1]->descriptors());
  ASSERT_TRUE(refused);
  EXPECT_NE(refused->error().text().find("what the guest lacks is not known"), std::string::npos)
      << refused->error().text();
  EXPECT_NE(guests_[1]->armed().find(" um"), std::string::npos) << "what is missing would read as zeros";
  ASSERT_EQ(std::rename((file + ".aside").c_str(), file.c_str()), 0);
  attach(1, api::AttachGuest::CONTINUING, 2);
  go_on_with_another_flow();
  expect_all_comes();
  EXPECT_NE(access(file.c_str(), F_OK), 0) << "left behind";
}

TEST_F(PagesAfterGuest, SurviveTheSourcesDaemonWithoutQemu) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  hosts_.kill_daemon(0, SIGKILL);
  ASSERT_NO_FATAL_FAILURE(restart(0));
  go_on_with_another_flow();
  expect_all_comes();
}

TEST_F(PagesAfterGuest, GoOnWithAnotherFlow) {
  bandwidth_bps_ = kSlowBps;
  if (!move_without_pages()) {
    return;
  }
  go_on_with_another_flow();
  expect_all_comes();
}

}  // namespace
}  // namespace godwit::tests
