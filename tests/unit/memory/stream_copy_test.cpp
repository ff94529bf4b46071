// Copies past the caches, by each set of registers that this processor has: what was to be copied is, wherever it lies
// and however long it is; nothing beside it is touched, whatever is fetched meanwhile.

#include "dataplane/memory/stream_copy.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <random>
#include <vector>

#include "dataplane/pages/page.h"
#include "dataplane/pages/read_ahead.h"

namespace godwit::memory {
namespace {

constexpr std::size_t kMargin = 64;  // a line
constexpr std::byte kUntouched{0xA5};

class Streamers : public testing::TestWithParam<Streamer> {
 protected:
  void SetUp() override {
    if (GetParam() > best_streamer()) {
      GTEST_SKIP() << "this processor has not the registers";
    }
  }
  static void check(std::size_t to_shift, std::size_t from_shift, std::size_t bytes) {
    std::minstd_rand random(static_cast<unsigned>(to_shift + from_shift + bytes));
    std::vector<std::byte> source(from_shift + bytes);
    std::generate(source.begin(), source.end(), [&] { return static_cast<std::byte>(random()); });
    std::vector<std::byte> memory(3 * kMargin + to_shift + bytes, kUntouched);
    // From where a line begins: operator new promises 16 bytes.
    const std::size_t at = 2 * kMargin - reinterpret_cast<std::uintptr_t>(memory.data()) % kMargin + to_shift;
    std::vector<std::byte> expected = memory;
    std::copy(source.begin() + static_cast<std::ptrdiff_t>(from_shift), source.end(),
              expected.begin() + static_cast<std::ptrdiff_t>(at));
    stream_copy(memory.data() + at, std::span(source).subspan(from_shift), GetParam());
    stream_fence();
    EXPECT_TRUE(memory == expected) << bytes << " bytes to " << to_shift << " from " << from_shift;
  }
};

TEST_P(Streamers, CopyWhateverItsPlaceAndLength) {
  for (const std::size_t to_shift : {0U, 1U, 16U, 48U, 64U}) {
    for (const std::size_t from_shift : {0U, 1U, 14U, 16U}) {
      for (const std::size_t bytes : {0U, 1U, 16U, 63U, 64U, 1408U, 1280U, 4096U}) {
        check(to_shift, from_shift, bytes);
      }
    }
  }
}

TEST_P(Streamers, TouchNothingOfWhatIsReadNext) {
  const std::vector<std::byte> next(3 * pages::kPageSize, kUntouched);
  void* const gone = mmap(nullptr, pages::kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(gone, MAP_FAILED);
  pages::ReadAhead& ahead = pages::ReadAhead::of_this_thread();
  ahead.clear();
  ahead.add(next);
  ahead.add({static_cast<const std::byte*>(gone), pages::kPageSize});
  for (int i = 0; i < 5; ++i) {
    check(0, 0, pages::kPageSize);
  }
  EXPECT_EQ(ahead.take(pages::kPageSize).empty(), GetParam() == Streamer::kAvx512) << "fetched, if it was";
  ahead.clear();
  munmap(gone, pages::kPageSize);
  EXPECT_TRUE(std::ranges::all_of(next, [](std::byte byte) { return byte == kUntouched; }));
}

std::string name_of(const testing::TestParamInfo<Streamer>& streamer) {
  return streamer.param == Streamer::kSse2 ? "Sse2" : "Avx512";
}

INSTANTIATE_TEST_SUITE_P(All, Streamers, testing::Values(Streamer::kSse2, Streamer::kAvx512), name_of);

}  // namespace
}  // namespace godwit::memory
