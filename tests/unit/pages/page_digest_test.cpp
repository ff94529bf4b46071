#include "dataplane/pages/page_digest.h"

#include <gtest/gtest.h>

#include <array>
#include <map>

#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

TEST(ZeroPage, OneSetBitAnywhereIsSeen) {
  alignas(64) std::array<std::byte, kPageSize> page{};
  EXPECT_TRUE(is_zero_page(page));
  EXPECT_EQ(hash_page(page), zero_page_hash());
  for (std::size_t i = 0; i < kPageSize; ++i) {
    page[i] = std::byte{1};
    ASSERT_FALSE(is_zero_page(page)) << i;
    ASSERT_NE(hash_page(page), zero_page_hash()) << i;
    page[i] = std::byte{0};
  }
}

TEST(ZeroPage, FragmentsOfAnyLengthAndAlignment) {
  std::array<std::byte, 300> bytes{};
  EXPECT_TRUE(is_zero({}));
  for (std::size_t first = 0; first < 70; ++first) {
    for (std::size_t count = 1; first + count < bytes.size(); count += 13) {
      const std::span<const std::byte> part(bytes.data() + first, count);
      ASSERT_TRUE(is_zero(part));
      bytes[first + count] = std::byte{1};  // the neighbour's
      ASSERT_TRUE(is_zero(part));
      bytes[first + count] = std::byte{0};
      bytes[first + count - 1] = std::byte{0x80};
      ASSERT_FALSE(is_zero(part));
      bytes[first + count - 1] = std::byte{0};
    }
  }
}

TEST(PageDigest, SubtractionUndoesAdditionAcrossTheCarry) {
  PageDigest digest{~std::uint64_t{0}, 5};
  const PageDigest one{1, 0};
  digest += one;
  EXPECT_EQ(digest, (PageDigest{0, 6}));
  digest -= one;
  EXPECT_EQ(digest, (PageDigest{~std::uint64_t{0}, 5}));
}

TEST(PageDigest, TermDependsOnPlaceAndContent) {
  EXPECT_NE(digest_term(1, 2), digest_term(2, 1));
  EXPECT_NE(digest_term(1, 2), digest_term(1, 3));
  EXPECT_NE(digest_term(0, 0), PageDigest{});
}

TEST(PageHashes, DigestIsThatOfTheKnownPagesWhateverTheHistory) {
  Random random(1);
  PageHashes hashes(500);
  std::map<PageNumber, PageHash> model;
  for (int step = 0; step < 5000; ++step) {
    const PageNumber page = below(random, 500);
    switch (below(random, 8)) {
      case 0:
        hashes.forget(page);
        model.erase(page);
        break;
      case 1: {
        const std::uint64_t count = below(random, std::min<std::uint64_t>(10, 501 - page));
        hashes.set_zero(page, count);
        for (std::uint64_t i = 0; i < count; ++i) model[page + i] = zero_page_hash();
        break;
      }
      default: {
        const PageHash hash = below(random, 4);
        hashes.set(page, hash);
        model[page] = hash;
      }
    }
    PageDigest expected;
    for (const auto& [known, hash] : model) expected += digest_term(known, hash);
    ASSERT_EQ(hashes.digest(), expected);
    ASSERT_EQ(hashes.known_count(), model.size());
  }
  for (PageNumber page = 0; page < 500; ++page) ASSERT_EQ(hashes.known(page), model.contains(page));
  Bitmap some(500);
  some.set_range(100, 300);
  hashes.forget(some);
  PageDigest rest;
  for (const auto& [known, hash] : model) {
    ASSERT_EQ(hashes.known(known), !some.test(known));
    if (!some.test(known)) rest += digest_term(known, hash);
  }
  EXPECT_EQ(hashes.digest(), rest);
  hashes.forget_all();
  EXPECT_EQ(hashes.digest(), PageDigest{});
  EXPECT_EQ(hashes.known_count(), 0U);
}

TEST(PageHashes, MismatchesAreFoundByChunkAndByPage) {
  constexpr std::uint64_t kSize = 3 * kDigestChunkPages + 100;
  PageHashes here(kSize);
  for (PageNumber page = 0; page < kSize; ++page) here.set(page, page * 31);
  PageHashes there = here;
  EXPECT_FALSE(here.mismatching_chunks(there.chunk_digests()).any());

  there.set(5, 1);                          // other content
  there.forget(kDigestChunkPages * 2 + 7);  // known to one side
  there.set(kSize - 1, 2);
  Bitmap chunks(4);
  chunks.set(0);
  chunks.set(2);
  chunks.set(3);
  EXPECT_EQ(here.mismatching_chunks(there.chunk_digests()), chunks);
  Bitmap expected(kSize);
  expected.set(5);
  expected.set(kDigestChunkPages * 2 + 7);
  expected.set(kSize - 1);
  Bitmap found(kSize);
  here.find_mismatches(there, found);
  EXPECT_EQ(found, expected);
  EXPECT_NE(here.digest(), there.digest());
}

TEST(PageHashes, SwappedPagesAreAMismatch) {
  PageHashes here(2);
  PageHashes there(2);
  here.set(0, 11);
  here.set(1, 22);
  there.set(0, 22);
  there.set(1, 11);
  EXPECT_NE(here.digest(), there.digest());
}

TEST(PageHashes, APeerWithFewerChunksMismatchesThere) {
  const PageHashes here(2 * kDigestChunkPages);
  const std::vector<PageDigest> peer(1);
  Bitmap expected(2);
  expected.set(1);
  EXPECT_EQ(here.mismatching_chunks(peer), expected);
}

}  // namespace
}  // namespace godwit::pages
