// Copying pages by each set of registers that this processor has: the copy is the page, the hash is hash_page()'s, and
// nothing beside the page is touched.

#include "dataplane/pages/page_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace godwit::pages {
namespace {

constexpr std::size_t kMargin = 64;
constexpr std::byte kUntouched{0xA5};

std::vector<std::byte> random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random()); });
  return bytes;
}

class PageCopiers : public testing::TestWithParam<PageCopier> {
 protected:
  void SetUp() override {
    if (GetParam() > best_page_copier()) {
      GTEST_SKIP() << "this processor has not the registers";
    }
  }
  /// `count` pages, `shift` bytes from where a line begins.
  static void check(std::size_t count, std::size_t shift, bool fetches_to, bool fetches_from) {
    const std::vector<std::byte> source = random_bytes(count * kPageSize + shift, static_cast<unsigned>(shift + count));
    std::vector<std::byte> target(count * (kPageSize + kMargin) + kMargin + shift, kUntouched);
    std::vector<PageCopy> copies;
    for (std::size_t i = 0; i < count; ++i) {
      std::byte* const to = target.data() + shift + kMargin + i * (kPageSize + kMargin);
      copies.push_back({.to = to,
                        .from = source.data() + shift + i * kPageSize,
                        .next_to = fetches_to ? target.data() : nullptr,
                        .next_from = fetches_from ? source.data() : nullptr});
    }
    std::vector<PageHash> hashes(count);
    copy_pages(copies, hashes, GetParam());
    std::vector<std::byte> expected(target.size(), kUntouched);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<const std::byte, kPageSize> page(source.data() + shift + i * kPageSize, kPageSize);
      std::ranges::copy(page, expected.begin() + (copies[i].to - target.data()));
      EXPECT_EQ(hashes[i], hash_page(page)) << "page " << i << " of " << count << ", shift " << shift;
    }
    EXPECT_TRUE(target == expected) << count << " pages, shift " << shift;
  }
};

TEST_P(PageCopiers, CopyAndHashPagesWhereverTheyLie) {
  for (const std::size_t shift : {0U, 1U, 8U, 14U, 63U}) {
    for (const std::size_t count : {1U, 2U, 3U}) {
      for (const bool fetches_to : {false, true}) {
        check(count, shift, fetches_to, false);
        check(count, shift, fetches_to, true);
      }
    }
  }
}

TEST_P(PageCopiers, SeeEveryByteOfAPage) {
  std::vector<std::byte> page = random_bytes(kPageSize, 7);
  std::vector<std::byte> to(kPageSize);
  const PageCopy copy{.to = to.data(), .from = page.data()};
  PageHash before = 0;
  copy_pages({&copy, 1}, {&before, 1}, GetParam());
  for (std::byte& byte : page) {
    byte ^= std::byte{1};
    PageHash hash = 0;
    copy_pages({&copy, 1}, {&hash, 1}, GetParam());
    ASSERT_NE(hash, before) << "byte " << &byte - page.data();
    byte ^= std::byte{1};
  }
}

std::string name_of(const testing::TestParamInfo<PageCopier>& copier) {
  switch (copier.param) {
    case PageCopier::kPlain:
      return "Plain";
    case PageCopier::kAvx2:
      return "Avx2";
    case PageCopier::kAvx512:
      break;
  }
  return "Avx512";
}

INSTANTIATE_TEST_SUITE_P(All, PageCopiers, testing::Values(PageCopier::kPlain, PageCopier::kAvx2, PageCopier::kAvx512),
                         name_of);

TEST(PageCopy, TakesTheBestOfThem) {
  const std::vector<std::byte> page = random_bytes(kPageSize, 8);
  std::vector<std::byte> to(kPageSize);
  const PageCopy copy{.to = to.data(), .from = page.data()};
  PageHash hash = 0;
  copy_pages({&copy, 1}, {&hash, 1});
  EXPECT_EQ(hash, hash_page(std::span<const std::byte, kPageSize>(page)));
  EXPECT_TRUE(to == page);
}

}  // namespace
}  // namespace godwit::pages
