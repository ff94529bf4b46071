#include "dataplane/memory/guarded_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

#include "base/unique_fd.h"

namespace godwit::memory::test {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kBytes = 16 * kPage;

UniqueFd make_file() {
  UniqueFd file(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_EQ(ftruncate(file.get(), kBytes), 0);
  return file;
}

GuardedMapping map(const UniqueFd& file) {
  auto mapping = GuardedMapping::map(file.get(), kBytes);
  EXPECT_TRUE(mapping);
  std::fill_n(mapping->data(), kBytes, std::byte{7});
  return std::move(*mapping);
}

std::byte touch(const GuardedMapping& mapping, std::size_t at) {
  return *static_cast<volatile std::byte*>(mapping.data() + at);
}

TEST(GuardedMapping, AFileCutShortReadsAsZerosAndSaysSo) {
  const UniqueFd file = make_file();
  const GuardedMapping mapping = map(file);
  ASSERT_EQ(ftruncate(file.get(), 3 * kPage), 0);
  EXPECT_EQ(touch(mapping, 2 * kPage), std::byte{7});
  EXPECT_FALSE(mapping.lost()) << "what is read is still there";
  EXPECT_EQ(touch(mapping, 3 * kPage), std::byte{0});
  EXPECT_TRUE(mapping.lost());
  EXPECT_EQ(touch(mapping, 0), std::byte{0}) << "the whole mapping is given up";
}

TEST(GuardedMapping, AWriteGoesNowhereAndDoesNotGrowTheFile) {
  const UniqueFd file = make_file();
  const GuardedMapping mapping = map(file);
  ASSERT_EQ(ftruncate(file.get(), 0), 0);
  mapping.data()[5 * kPage] = std::byte{1};
  EXPECT_TRUE(mapping.lost());
  EXPECT_EQ(lseek(file.get(), 0, SEEK_END), 0);
}

TEST(GuardedMapping, StaysLostWhenTheFileGrowsAgain) {
  const UniqueFd file = make_file();
  const GuardedMapping mapping = map(file);
  ASSERT_EQ(ftruncate(file.get(), 0), 0);
  EXPECT_EQ(touch(mapping, 0), std::byte{0});
  ASSERT_EQ(ftruncate(file.get(), kBytes), 0);
  EXPECT_TRUE(mapping.lost());
}

TEST(GuardedMapping, OthersAreNotTouched) {
  const UniqueFd cut = make_file();
  const UniqueFd whole = make_file();
  const GuardedMapping before = map(whole);
  const GuardedMapping lost = map(cut);
  const GuardedMapping after = map(whole);
  ASSERT_EQ(ftruncate(cut.get(), 0), 0);
  EXPECT_EQ(touch(lost, 9 * kPage), std::byte{0});
  EXPECT_FALSE(before.lost() || after.lost());
  EXPECT_EQ(touch(before, kBytes - 1), std::byte{7});
  EXPECT_EQ(touch(after, kBytes - 1), std::byte{7});
}

TEST(GuardedMapping, ANewMappingInAnOldPlaceBeginsWhole) {
  const UniqueFd cut = make_file();
  {
    const GuardedMapping lost = map(cut);
    ASSERT_EQ(ftruncate(cut.get(), 0), 0);
    EXPECT_EQ(touch(lost, 0), std::byte{0});
  }
  const UniqueFd file = make_file();
  const GuardedMapping mapping = map(file);
  EXPECT_FALSE(mapping.lost());
  EXPECT_EQ(touch(mapping, 0), std::byte{7});
}

TEST(GuardedMapping, ManyThreadsMayMeetIt) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&wrong] {
      for (int i = 0; i < 40; ++i) {
        const UniqueFd file = make_file();
        const GuardedMapping cut = map(file);
        const GuardedMapping whole = map(make_file());
        EXPECT_EQ(ftruncate(file.get(), 0), 0);
        std::thread other([&] { touch(cut, 8 * kPage); });
        wrong +=
            touch(cut, 0) == std::byte{0} && cut.lost() && !whole.lost() && touch(whole, 0) == std::byte{7} ? 0 : 1;
        other.join();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
}

TEST(GuardedMappingDeathTest, ASigbusElsewhereStillKills) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto unguarded_access = [] {
    std::signal(SIGBUS, SIG_DFL);  // a sanitizer may have put its own there
    const UniqueFd guarded = make_file();
    const GuardedMapping mapping = map(guarded);
    const UniqueFd file = make_file();
    void* const plain = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, file.get(), 0);
    EXPECT_EQ(ftruncate(file.get(), 0), 0);
    static_cast<void>(*static_cast<volatile std::byte*>(plain));
  };
  EXPECT_EXIT(unguarded_access(), testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, SIG_DFL);
        const GuardedMapping mapping = map(make_file());
        std::raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace godwit::memory::test
