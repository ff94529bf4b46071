// What is to be read next: whole lines, in order, each once, by the thread that knows of it.

#include "dataplane/pages/read_ahead.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace godwit::pages {
namespace {

constexpr std::size_t kLine = ReadAhead::kLineBytes;
alignas(kLine) constexpr std::array<std::byte, 64 * kLine> kMemory{};

std::span<const std::byte> memory(std::size_t at, std::size_t bytes) { return std::span(kMemory).subspan(at, bytes); }

bool same(std::span<const std::byte> one, std::span<const std::byte> other) {
  return one.data() == other.data() && one.size() == other.size();
}

TEST(ReadAhead, GivesPiecesInOrderAndEachLineOnce) {
  ReadAhead ahead;
  ahead.add(memory(0, 4 * kLine));
  ahead.add(memory(32 * kLine, kLine));
  EXPECT_TRUE(same(ahead.take(3 * kLine), memory(0, 3 * kLine)));
  EXPECT_TRUE(same(ahead.take(3 * kLine), memory(3 * kLine, kLine))) << "of one piece only";
  EXPECT_TRUE(same(ahead.take(3 * kLine), memory(32 * kLine, kLine)));
  EXPECT_TRUE(ahead.take(3 * kLine).empty());
}

TEST(ReadAhead, GivesEachLineThatAPieceTouchesAndNoOther) {
  ReadAhead ahead;
  ahead.add(memory(kLine + 14, 2 * kLine));
  EXPECT_TRUE(same(ahead.take(8 * kLine), memory(kLine, 3 * kLine)));
  ahead.clear();
  ahead.add(memory(kLine - 1, 2));
  EXPECT_TRUE(same(ahead.take(kLine + kLine - 1), memory(0, kLine))) << "whole lines only";
  EXPECT_TRUE(same(ahead.take(kLine), memory(kLine, kLine)));
}

TEST(ReadAhead, RemembersSoManyAndForgetsThemAll) {
  ReadAhead ahead;
  for (std::size_t i = 0; i < ReadAhead::kPiecesMax + 1; ++i) {
    ahead.add({});
    ahead.add(memory(i * kLine, kLine));
  }
  for (std::size_t i = 0; i < ReadAhead::kPiecesMax; ++i) {
    EXPECT_TRUE(same(ahead.take(kLine), memory(i * kLine, kLine)));
  }
  EXPECT_TRUE(ahead.take(kLine).empty());
  ahead.clear();
  ahead.add(memory(0, kLine));
  ahead.clear();
  EXPECT_TRUE(ahead.take(kLine).empty());
}

TEST(ReadAhead, IsEachThreadsOwn) {
  ReadAhead::of_this_thread().clear();
  ReadAhead::of_this_thread().add(memory(0, kLine));
  std::thread([] { EXPECT_TRUE(ReadAhead::of_this_thread().take(kLine).empty()); }).join();
  EXPECT_TRUE(same(ReadAhead::of_this_thread().take(kLine), memory(0, kLine)));
}

}  // namespace
}  // namespace godwit::pages
