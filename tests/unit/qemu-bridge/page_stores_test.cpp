// This host as a sub host: what it lends, what it remembers of it over restarts, and that only DropStore ends it.
#include "qemu-bridge/agent/page_stores.h"

#include <gtest/gtest.h>

#include "tests/unit/qemu-bridge/fake_dataplane.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

using dataplane::v1::Error;

constexpr std::uint64_t kLent = 64 << 20;
constexpr std::uint64_t kFree = 1ULL << 30;

class PageStoresTest : public testing::Test {
 protected:
  void SetUp() override {
    client_.start();
    client_.wait_until_up(std::chrono::seconds(30));
    ASSERT_TRUE(stores_->load());
  }
  /// The bridge dies, and the next one reads what it left.
  void restart() {
    stores_ = std::make_unique<PageStores>(dir_.path(), 2 * kLent);
    const auto problems = stores_->load();
    ASSERT_TRUE(problems);
    EXPECT_TRUE(problems->empty());
  }
  controlplane::v1::PrepareStore command(const Id128& id, bool create) const {
    controlplane::v1::PrepareStore prepare;
    prepare.set_store_id(id.to_bytes());
    prepare.set_vm_uuid(vm_.to_bytes());
    prepare.set_vm_name("demo");
    prepare.set_main_host("host-a");
    prepare.set_ownership(5);
    prepare.set_bytes_lent(kLent);
    prepare.set_pages(16384);
    prepare.set_create(create);
    return prepare;
  }
  Error::Code prepare(const Id128& id, bool create, std::uint64_t free_bytes = kFree) {
    const auto reply = stores_->prepare(client_, command(id, create), free_bytes);
    EXPECT_TRUE(!reply || reply->flow_prepared().endpoint().flow_id() != 0);
    return reply ? Error::NONE : reply.error().code();
  }
  void drop(const Id128& id) {
    controlplane::v1::DropStore drop;
    drop.set_store_id(id.to_bytes());
    EXPECT_TRUE(stores_->drop(client_, drop));
  }
  void look() {
    dataplane::v1::ToDataplane request;
    request.mutable_get_status();
    const auto reply = client_.call(std::move(request));
    ASSERT_TRUE(reply);
    stores_->take(&reply->status());
  }

  TempDir dir_;
  FakeDataplane dataplane_{dir_.path() / "dp.sock"};
  DataplaneClient client_{(dir_.path() / "dp.sock").string(),
                          {.on_up = [](const auto&) {}, .on_down = [](const auto&) {}, .on_event = [](const auto&) {}}};
  std::unique_ptr<PageStores> stores_ = std::make_unique<PageStores>(dir_.path(), 2 * kLent);
  const Id128 vm_ = Id128::random();
  const Id128 id_ = Id128::random();
};

TEST_F(PageStoresTest, NoMoreIsLentThanTheConfigurationAndTheMemoryAllow) {
  EXPECT_EQ(prepare(id_, true, kLent - 1), Error::NO_MEMORY);
  EXPECT_TRUE(stores_->held().empty());
  EXPECT_EQ(prepare(id_, true), Error::NONE);
  EXPECT_EQ(prepare(Id128::random(), true), Error::NONE);
  EXPECT_EQ(prepare(Id128::random(), true), Error::NO_MEMORY);
  EXPECT_EQ(prepare(id_, false), Error::NONE) << "what is here already is not lent once more";
  EXPECT_EQ(stores_->lent_bytes(), 2 * kLent);
}

TEST_F(PageStoresTest, WhatIsPromisedAndNotUsedYetCountsAsUsed) {
  EXPECT_EQ(prepare(id_, true), Error::NONE);
  EXPECT_EQ(stores_->unfilled_bytes(), kLent);
  look();
  EXPECT_EQ(stores_->unfilled_bytes(), kLent - 4096);
  stores_->take(nullptr);
  EXPECT_EQ(stores_->lent_bytes(), kLent);
  EXPECT_FALSE(stores_->held().at(0).lost()) << "that a data plane is down loses nothing";
}

TEST_F(PageStoresTest, ARestartForgetsNothingAndAnOlderOwnerGetsNothing) {
  EXPECT_EQ(prepare(id_, true), Error::NONE);
  restart();
  ASSERT_EQ(stores_->held().size(), 1u);
  EXPECT_EQ(stores_->held()[0].vm_name(), "demo");
  EXPECT_EQ(stores_->held()[0].main_host(), "host-a");
  EXPECT_EQ(stores_->lent_bytes(), kLent);
  auto older = command(id_, false);
  older.set_ownership(4);
  EXPECT_EQ(stores_->prepare(client_, older, kFree).error().code(), Error::STALE_OWNERSHIP);
  EXPECT_EQ(prepare(id_, false), Error::NONE);
}

TEST_F(PageStoresTest, PagesThatAreGoneAreSaidToBeLost) {
  EXPECT_EQ(prepare(id_, true), Error::NONE);
  dataplane_.lose_stores();
  look();
  EXPECT_TRUE(stores_->held().at(0).lost());
  EXPECT_EQ(prepare(id_, false), Error::NO_SUCH_STORE);
  ASSERT_EQ(stores_->held().size(), 1u) << "it is the control plane that ends it";
}

TEST_F(PageStoresTest, DroppingFreesEvenWhatOnlyTheDataPlaneKnows) {
  EXPECT_EQ(prepare(id_, true), Error::NONE);
  std::filesystem::remove(dir_.path() / "stores" / (id_.text() + ".json"));
  restart();
  look();
  ASSERT_EQ(stores_->held().size(), 1u) << "nobody's store is told of too";
  EXPECT_EQ(stores_->lent_bytes(), kLent);
  drop(id_);
  look();
  EXPECT_TRUE(stores_->held().empty());
  EXPECT_EQ(prepare(id_, true), Error::NONE);
  drop(id_);
  restart();
  look();
  EXPECT_TRUE(stores_->held().empty());
}

}  // namespace
}  // namespace godwit::bridge
