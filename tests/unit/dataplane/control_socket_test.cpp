#include "dataplane/daemon/control_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "dataplane/daemon/requests.h"
#include "tests/unit/dataplane/bridge_client.h"

namespace godwit::daemon {
namespace {

std::size_t open_descriptors() {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

class ControlSocketTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/gwd-socket-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/s";
    auto socket = ControlSocket::listen({.path = path_, .group = {}});
    ASSERT_TRUE(socket.has_value()) << socket.error();
    socket_.emplace(std::move(*socket));
    ASSERT_TRUE(client_.connect(path_));
    ASSERT_TRUE(socket_->accept_pending());
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string directory_;
  std::string path_;
  std::optional<ControlSocket> socket_;
  tests::BridgeClient client_;
};

TEST_F(ControlSocketTest, IsForTheOwnerAlone) {
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(ControlSocketTest, DescriptorsArriveAndAreClosedWithTheMessage) {
  const std::size_t before = open_descriptors();
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(client_.send_bytes("x", {file.get(), file.get(), file.get()}));
  {
    const auto message = socket_->receive();
    ASSERT_TRUE(message.has_value());
    EXPECT_EQ(message->bytes, "x");
    EXPECT_EQ(message->descriptors.size(), 3U);
  }
  EXPECT_EQ(open_descriptors(), before + 1);
}

TEST_F(ControlSocketTest, TooManyDescriptorsEndTheConnectionAndLeakNone) {
  const std::size_t before = open_descriptors();
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(client_.send_bytes("x", std::vector<int>(kDescriptorsMax + 20, file.get())));
  EXPECT_FALSE(socket_->receive().has_value());
  EXPECT_FALSE(socket_->connected());
  EXPECT_EQ(open_descriptors(), before);  // the connection went, the test's own file came
}

TEST_F(ControlSocketTest, ANewBridgeReplacesTheOld) {
  tests::BridgeClient second;
  ASSERT_TRUE(second.connect(path_));
  EXPECT_TRUE(socket_->accept_pending());
  ASSERT_TRUE(second.send_bytes("second"));
  EXPECT_EQ(socket_->receive()->bytes, "second");
}

TEST_F(ControlSocketTest, AnotherDaemonIsNotPushedAside) {
  EXPECT_FALSE(ControlSocket::listen({.path = path_, .group = {}}).has_value());
}

TEST_F(ControlSocketTest, ABridgeThatReadsNothingIsCutOff) {
  for (std::size_t sent = 0; sent <= kBacklogBytesMax + (std::size_t{32} << 20) && socket_->connected();
       sent += kMessageBytesMax) {
    socket_->send(std::string(kMessageBytesMax, 'x'));
  }
  EXPECT_FALSE(socket_->connected());
}

tests::api::AttachGuest good_attach() {
  tests::api::AttachGuest request;
  request.set_vm_uuid(std::string(16, 'v'));
  request.set_image_id(std::string(16, 'i'));
  request.set_epoch(1);
  request.set_qemu_pid(1);
  auto& region = *request.add_regions();
  region.set_name("ram0");
  region.set_bytes(1 << 20);
  region.set_page_bytes(4096);
  return request;
}

TEST(ParseAttach, EachMistakeIsRefusedByName) {
  struct Row {
    const char* names;
    void (*change)(tests::api::AttachGuest&);
  };
  const Row rows[] = {
      {"vm_uuid", [](auto& request) { request.set_vm_uuid("short"); }},
      {"image_id", [](auto& request) { request.set_image_id(std::string(16, '\0')); }},
      {"regions", [](auto& request) { request.clear_regions(); }},
      {"name", [](auto& request) { request.mutable_regions(0)->set_name("../../etc"); }},
      {"page_bytes", [](auto& request) { request.mutable_regions(0)->set_page_bytes(123); }},
      {"bytes", [](auto& request) { request.mutable_regions(0)->set_bytes(4097); }},
      {"qemu_address", [](auto& request) { request.mutable_regions(0)->set_qemu_address(~std::uint64_t{4095}); }},
      {"ram_path", [](auto& request) { request.mutable_regions(0)->set_ram_path("relative"); }},
      {"epoch", [](auto& request) { request.set_epoch(UINT32_MAX); }},
      {"qemu_pid", [](auto& request) { request.set_qemu_pid(-1); }},
      {"descriptors", [](auto& request) { request.set_has_pagemap(true); }},
  };
  for (const Row& row : rows) {
    auto request = good_attach();
    row.change(request);
    std::vector<UniqueFd> descriptors;
    if (request.regions_size() > 0) {
      descriptors.emplace_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
    const auto parsed = parse_attach(request, std::move(descriptors));
    ASSERT_FALSE(parsed.has_value()) << row.names;
    EXPECT_NE(parsed.error().text.find(row.names), std::string::npos) << parsed.error().text;
  }
  std::vector<UniqueFd> descriptors;
  descriptors.emplace_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(parse_attach(good_attach(), std::move(descriptors)).has_value());
}

TEST(ParseAttach, FaultRangesAreAllPagesInTheirOrder) {
  struct Range {
    std::uint64_t first, pages;
  };
  struct Row {
    bool good;
    std::vector<Range> ranges;
  };
  // Two regions of 4 MiB and 6 MiB: pages 0 to 1023, and 1024 to 2559.
  const std::vector<Row> rows = {
      {true, {{0, 2560}}},
      {true, {{0, 512}, {512, 2048}}},
      {true, {{0, 1024}, {1024, 512}, {1536, 1024}}},
      {false, {{0, 2559}}},               // not to the end
      {false, {{0, 2561}}},               // past it
      {false, {{0, 512}, {1024, 1536}}},  // a gap
      {false, {{0, 1024}, {512, 2048}}},  // twice
      {false, {{0, 100}, {100, 2460}}},   // within 2 MiB
      {false, {{0, 1024}, {1024, 0}, {1024, 1536}}},
      {false, {{512, 2048}}},
  };
  for (const Row& row : rows) {
    auto request = good_attach();
    request.set_has_userfaultfd(true);
    request.set_demand_paging(true);
    *request.add_regions() = request.regions(0);
    request.mutable_regions(1)->set_name("ram1");
    request.mutable_regions(0)->set_bytes(4 << 20);
    request.mutable_regions(1)->set_bytes(6 << 20);
    std::vector<UniqueFd> descriptors;
    for (std::size_t i = 0; i < 2 + row.ranges.size(); ++i) {
      descriptors.emplace_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
    for (const Range& range : row.ranges) {
      request.add_fault_ranges()->set_first_page(range.first);
      request.mutable_fault_ranges(request.fault_ranges_size() - 1)->set_pages(range.pages);
    }
    const auto parsed = parse_attach(request, std::move(descriptors));
    ASSERT_EQ(parsed.has_value(), row.good) << request.ShortDebugString() << (parsed ? "" : parsed.error().text);
    if (!row.good) {
      EXPECT_NE(parsed.error().text.find("fault_ranges"), std::string::npos) << parsed.error().text;
      continue;
    }
    EXPECT_TRUE(parsed->demand_paging);
    ASSERT_EQ(parsed->fault_parts.size(), row.ranges.size());
    for (const FaultPart& part : parsed->fault_parts) {
      EXPECT_TRUE(part.userfaultfd.valid());
    }
  }
}

}  // namespace
}  // namespace godwit::daemon
