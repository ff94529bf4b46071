#include "dataplane/daemon/flows.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace godwit::daemon {
namespace {

TEST(FlowIds, AreDistinctNeverZeroAndRunOut) {
  FlowIds ids;
  std::set<std::size_t> indices;
  for (std::size_t i = 0; i < kFlowsMax; ++i) {
    const std::uint32_t id = ids.draw();
    ASSERT_NE(id, 0U);
    EXPECT_TRUE(indices.insert(flow_index(id)).second);
  }
  EXPECT_EQ(ids.draw(), 0U);
}

TEST(FlowIds, AReleasedPlaceIsUsedAgainUnderAnotherId) {
  std::mt19937 random(1);
  FlowIds ids([&] { return static_cast<std::uint32_t>(random()); });
  std::set<std::uint32_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::uint32_t id = ids.draw();
    EXPECT_TRUE(seen.insert(id).second);
    ids.release(id);
    ids.release(id);  // harmless
  }
  EXPECT_EQ(ids.size(), 0U);
}

TEST(FlowIds, AllZeroRandomBitsStillMakeNoZeroId) {
  FlowIds ids([] { return 0U; });
  EXPECT_NE(ids.draw(), 0U);
}

TEST(FlowTable, FindsExactlyTheLiveFlow) {
  FlowTable<int> table;
  int owner = 0;
  table.insert(0xabcde123, owner);
  EXPECT_EQ(table.find(0xabcde123), &owner);
  EXPECT_EQ(table.find(0xbbcde123), nullptr) << "same index, other id";
  EXPECT_EQ(table.find(0), nullptr);
  table.erase(0xbbcde123);
  EXPECT_EQ(table.find(0xabcde123), &owner) << "another id takes nothing away";
  table.erase(0xabcde123);
  EXPECT_EQ(table.find(0xabcde123), nullptr);
}

}  // namespace
}  // namespace godwit::daemon
