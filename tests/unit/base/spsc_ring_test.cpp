#include "base/spsc_ring.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <thread>

namespace godwit {
namespace {

TEST(SpscRing, FullRefusesAndLeavesTheValue) {
  SpscRing<std::unique_ptr<int>> ring(4);
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(ring.push(std::make_unique<int>(i)));
  }
  auto fifth = std::make_unique<int>(4);
  EXPECT_FALSE(ring.push(std::move(fifth)));
  ASSERT_NE(fifth, nullptr);
  std::unique_ptr<int> out;
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(ring.pop(out));
    EXPECT_EQ(*out, i);
  }
  EXPECT_FALSE(ring.pop(out));
  EXPECT_TRUE(ring.push(std::move(fifth)));
  EXPECT_EQ(ring.size(), 1U);
}

/// The ring is small, so that it is full and empty again and again; what a pointer points to is written by the one
/// thread and read by the other.
TEST(SpscRing, EverythingComesOnceInOrderWithWhatWasWrittenBefore) {
  struct Item {
    std::uint64_t number = 0;
    std::uint64_t twice = 0;
  };
  constexpr std::uint64_t kItems = 20'000;
  SpscRing<std::unique_ptr<Item>> ring(16);
  std::thread producer([&ring] {
    for (std::uint64_t i = 0; i < kItems; ++i) {
      auto item = std::make_unique<Item>();
      item->number = i;
      item->twice = 2 * i;
      while (!ring.push(std::move(item))) {
        std::this_thread::yield();
      }
    }
  });
  std::uint64_t wrong = 0;
  for (std::uint64_t expected = 0; expected < kItems;) {
    wrong += ring.size() > 16 ? 1U : 0U;
    std::unique_ptr<Item> item;
    if (!ring.pop(item)) {
      std::this_thread::yield();
      continue;
    }
    wrong += item->number == expected && item->twice == 2 * expected ? 0U : 1U;
    ++expected;
  }
  producer.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(ring.size(), 0U);
}

}  // namespace
}  // namespace godwit
