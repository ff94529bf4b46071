#include "dataplane/memserver/page_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <tuple>

#include "dataplane/memserver/cold_pages.h"

namespace godwit::memserver::test {
namespace {

constexpr std::uint64_t kBudget = 16U << 20;
constexpr memory::Id kVm{std::byte{1}};

using Page = std::vector<std::byte>;

/// Of its own for each seed: as good as random, or such that deflate makes it small.
Page page_of(std::uint64_t seed, bool compressible = false) {
  Page page(pages::kPageSize);
  std::mt19937_64 random(seed);
  for (std::size_t at = 0; at < page.size(); at += 8) {
    const std::uint64_t word = compressible && at % 64 != 0 ? seed : random();
    std::memcpy(&page[at], &word, sizeof word);
  }
  return page;
}
pages::PageBytes bytes(const Page& page) { return std::span(page).first<pages::kPageSize>(); }

class PageStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    auto store = PageStore::create(options_);
    ASSERT_TRUE(store) << store.error().text;
    store_.emplace(std::move(*store));
    vm_ = store_->add_vm(kVm).value();
  }
  void TearDown() override {
    store_.reset();
    unlink(options_.records_file.c_str());
    unlink(options_.pages_file.c_str());
  }
  std::expected<void, memory::Error> restart() {
    store_.reset();
    auto store = PageStore::open(options_);
    if (!store) {
      return std::unexpected(store.error());
    }
    store_.emplace(std::move(*store));
    return {};
  }
  Put put(std::uint32_t page, Version version, const Page& content) {
    return store_->put({vm_, 0, page}, version, bytes(content));
  }
  /// Empty: not held.
  Page get(std::uint32_t page) {
    Page content(pages::kPageSize);
    const auto got = store_->get({vm_, 0, page}, std::span(content).first<pages::kPageSize>());
    EXPECT_TRUE(got) << got.error().text;
    return got && *got ? content : Page{};
  }
  void damage(const std::string& path, std::uint64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int was = file.get();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(was ^ 0x55));
  }

  StoreOptions options_{.records_file = "/dev/shm/godwit-test-records-" + std::to_string(getpid()),
                        .pages_file = "/dev/shm/godwit-test-pages-" + std::to_string(getpid()),
                        .budget_bytes = kBudget,
                        .boot_id = {}};
  std::optional<PageStore> store_;
  VmNumber vm_ = 0;
};

TEST_F(PageStoreTest, HoldsTheNewestVersion) {
  EXPECT_EQ(put(5, 10, page_of(1)), Put::kHeld);
  EXPECT_EQ(put(5, 12, page_of(2)), Put::kHeld);
  EXPECT_EQ(put(5, 11, page_of(3)), Put::kOlder);
  EXPECT_EQ(put(5, 12, page_of(4)), Put::kHeld) << "asked twice: the same answer, and nothing written";
  EXPECT_EQ(get(5), page_of(2));
  store_->remove({vm_, 0, 5}, 11);
  EXPECT_EQ(get(5), page_of(2)) << "a late removal of an older one";
  store_->remove({vm_, 0, 5}, 12);
  EXPECT_EQ(get(5), Page{});
  EXPECT_EQ(store_->stats().pages, 0U);
  EXPECT_EQ(put(6, 0, page_of(1)), Put::kInvalid);
  EXPECT_EQ(put(6, kVersionMax + 1, page_of(1)), Put::kInvalid);
  EXPECT_EQ(store_->put({7, 0, 6}, 1, bytes(page_of(1))), Put::kInvalid) << "a VM that nobody has entered";
}

TEST_F(PageStoreTest, OverheadIsBelowOnePercentAndTheBudgetIsKept) {
  std::uint32_t held = 0;
  while (put(held, 1, page_of(held)) == Put::kHeld) {
    ++held;
    const StoreStats now = store_->stats();
    ASSERT_LE(now.resident_bytes + now.index_bytes, kBudget);
  }
  const StoreStats stats = store_->stats();
  EXPECT_EQ(held, stats.pages_max);
  const std::uint64_t content = std::uint64_t{held} * pages::kPageSize;
  const std::uint64_t fixed = 64U << 10;  // the head, whatever the store's size
  const std::uint64_t overhead = stats.resident_bytes + stats.index_bytes - content - fixed;
  RecordProperty("overhead_bytes_a_page", std::to_string(static_cast<double>(overhead) / held));
  EXPECT_LE(overhead * 100, content) << overhead / held << " bytes a page";
  // Full: refused, and what is held stays, but for what needs no page.
  EXPECT_EQ(put(3, 2, page_of(99)), Put::kFull);
  EXPECT_EQ(get(3), page_of(3));
  EXPECT_EQ(put(3, 2, Page(pages::kPageSize)), Put::kHeld);
  EXPECT_EQ(get(3), Page(pages::kPageSize));
  EXPECT_EQ(put(held, 1, page_of(held)), Put::kHeld) << "the page that 3 does not need any more";
  EXPECT_EQ(put(held + 1, 1, page_of(held)), Put::kFull);
}

TEST_F(PageStoreTest, PagesOfZerosCostNoPage) {
  const std::uint64_t before = store_->stats().resident_bytes;
  for (std::uint32_t page = 0; page < 1000; ++page) {
    ASSERT_EQ(put(page, 1, Page(pages::kPageSize)), Put::kHeld);
  }
  EXPECT_LE(store_->stats().resident_bytes - before, 64U << 10);
  EXPECT_EQ(store_->stats().zero_pages, 1000U);
  ASSERT_TRUE(restart());
  EXPECT_EQ(get(999), Page(pages::kPageSize));
  std::uint64_t listed = 0;
  store_->for_each(vm_, [&](const PageKey&, Version version, bool zero) { listed += version == 1 && zero ? 1 : 0; });
  EXPECT_EQ(listed, 1000U);
}

TEST_F(PageStoreTest, ColdPagesAreCompressedAndReadTheSame) {
  constexpr std::uint32_t kPages = 200;
  for (std::uint32_t page = 0; page < kPages; ++page) {
    ASSERT_EQ(put(page, 1, page_of(page, page % 2 == 0)), Put::kHeld);
  }
  EXPECT_EQ(store_->compress_cold(kPages), 0U) << "put just now";
  EXPECT_EQ(get(0), page_of(0, true));
  EXPECT_EQ(store_->compress_cold(kPages), kPages / 2 - 1) << "half of them, but for the one that was read";
  EXPECT_EQ(store_->stats().compressed_pages, kPages / 2 - 1);
  ASSERT_TRUE(restart());
  EXPECT_EQ(store_->stats().compressed_pages, kPages / 2 - 1);
  for (std::uint32_t page = 0; page < kPages; ++page) {
    ASSERT_EQ(get(page), page_of(page, page % 2 == 0)) << page;
  }
  // And it makes room: a full store takes more.
  std::uint32_t next = kPages;
  while (put(next, 1, page_of(next, true)) == Put::kHeld) {
    ++next;
  }
  while (store_->compress_cold(100) == 0) {
  }
  EXPECT_EQ(put(next, 1, page_of(next)), Put::kHeld);
}

TEST_F(PageStoreTest, WhatIsColdIsCompressedOnceLittleRoomIsLeft) {
  ColdPages cold(*store_);
  Instant now{};
  const auto work = [&] {
    for (int turns = 0; cold.deadline() != kNever && turns < 100'000; ++turns) {
      now = std::max(now, cold.deadline());
      cold.turn(now);
    }
  };
  const auto max = static_cast<std::uint32_t>(store_->stats().pages_max);
  std::uint32_t next = 0;
  while (next < max / 2) {
    ASSERT_EQ(put(next, 1, page_of(next, true)), Put::kHeld);
    ++next;
  }
  work();
  EXPECT_EQ(store_->stats().compressed_pages, 0U) << "half of it is free";
  while (next < max * 7 / 8) {
    ASSERT_EQ(put(next, 1, page_of(next, true)), Put::kHeld);
    ++next;
  }
  work();
  EXPECT_GT(store_->stats().compressed_pages, 0U);
  EXPECT_EQ(cold.deadline(), kNever) << "enough is free again";
  while (put(next, 1, page_of(next, true)) == Put::kHeld) {
    work();
    ++next;
  }
  EXPECT_GT(next, max) << "more pages than fit as they are";
  for (std::uint32_t page = 0; page < next; ++page) {
    ASSERT_EQ(get(page), page_of(page, true)) << page;
  }
}

TEST_F(PageStoreTest, WhereNothingCanBeCompressedNobodyLooksForIt) {
  ColdPages cold(*store_);
  std::uint32_t next = 0;
  while (next < store_->stats().pages_max * 7 / 8) {
    ASSERT_EQ(put(next, 1, page_of(next)), Put::kHeld);
    ++next;
  }
  Instant now{};
  int turns = 0;
  const auto work = [&] {
    for (turns = 0; cold.deadline() != kNever && turns < 100'000; ++turns) {
      now = std::max(now, cold.deadline());
      cold.turn(now);
    }
  };
  work();
  EXPECT_GE(turns, static_cast<int>(next / ColdPages::kRecordsAtOnce));
  EXPECT_EQ(cold.deadline(), kNever) << "an idle host sleeps";
  ASSERT_EQ(put(next, 1, page_of(next, true)), Put::kHeld);
  EXPECT_NE(cold.deadline(), kNever) << "this one it does not know";
  work();
  EXPECT_EQ(store_->stats().compressed_pages, 1U);
  EXPECT_EQ(cold.deadline(), kNever);
}

TEST_F(PageStoreTest, ADroppedVmGivesItsMemoryBack) {
  const VmNumber other = store_->add_vm({std::byte{2}}).value();
  ASSERT_NE(other, vm_);
  EXPECT_EQ(store_->add_vm({std::byte{2}}), other);
  ASSERT_EQ(store_->put({other, 3, 8}, 1, bytes(page_of(8))), Put::kHeld);
  const std::uint64_t before = store_->stats().resident_bytes;
  for (std::uint32_t page = 0; page < 2000; ++page) {
    ASSERT_EQ(put(page, 1, page_of(page)), Put::kHeld);
  }
  store_->drop_vm(vm_);
  EXPECT_LE(store_->stats().resident_bytes, before + (128U << 10));
  EXPECT_EQ(store_->stats().pages, 1U);
  EXPECT_FALSE(store_->find_vm(kVm));
  Page content(pages::kPageSize);
  EXPECT_EQ(store_->get({other, 3, 8}, std::span(content).first<pages::kPageSize>()), 1U);
  EXPECT_EQ(content, page_of(8));
}

TEST_F(PageStoreTest, RandomWorkAgreesWithAMapThroughRestarts) {
  std::mt19937_64 random(11);
  std::map<std::uint32_t, std::pair<Version, Page>> model;
  for (int step = 0; step < 20000; ++step) {
    const auto page = static_cast<std::uint32_t>(random() % 600);
    const Version version = 1 + random() % 1000;
    const bool newer = !model.contains(page) || model[page].first < version;
    switch (random() % 8) {
      case 0:
        store_->remove({vm_, 0, page}, version);
        if (model.contains(page) && model[page].first <= version) {
          model.erase(page);
        }
        break;
      case 1:
        store_->compress_cold(20);
        break;
      case 2:
        ASSERT_EQ(get(page), model.contains(page) ? model[page].second : Page{}) << step;
        break;
      default: {
        const Page content = random() % 4 == 0 ? Page(pages::kPageSize) : page_of(random(), random() % 2 == 0);
        ASSERT_NE(put(page, version, content), Put::kFull);
        if (newer) {
          model[page] = {version, content};
        }
      }
    }
    if (step % 1000 == 999) {
      const auto back = restart();
      ASSERT_TRUE(back) << back.error().text;
      ASSERT_EQ(store_->stats().pages, model.size());
    }
  }
  for (const auto& [page, held] : model) {
    ASSERT_EQ(get(page), held.second) << page;
  }
}

TEST_F(PageStoreTest, KilledAtAnyMomentWhatWasConfirmedIsThere) {
  // What the child has had confirmed, in memory that both see.
  constexpr std::uint32_t kPages = 300;
  struct Shared {
    std::atomic<std::uint64_t> confirmed[kPages];  // version
    std::atomic<std::uint64_t> puts;
  };
  auto* const shared =
      static_cast<Shared*>(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(shared, MAP_FAILED);
  store_.reset();
  Version version = 1;
  for (int kill_after = 0; kill_after < 40; ++kill_after) {
    const std::uint64_t puts_before = shared->puts;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      if (!restart()) {
        _exit(1);
      }
      std::mt19937_64 random(static_cast<std::uint64_t>(kill_after));
      for (;; ++version) {
        const auto page = static_cast<std::uint32_t>(random() % kPages);
        if (put(page, version, page_of(version, true)) == Put::kHeld) {
          shared->confirmed[page] = version;
          ++shared->puts;
        }
        store_->compress_cold(2);
      }
    }
    int status = 0;
    while (shared->puts < puts_before + 100 + static_cast<std::uint64_t>(kill_after) &&
           waitpid(child, &status, WNOHANG) == 0) {
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child could not open the store";
    const auto back = restart();
    ASSERT_TRUE(back) << back.error().text;
    for (std::uint32_t page = 0; page < kPages; ++page) {
      Page content(pages::kPageSize);
      const auto got = store_->get({vm_, 0, page}, std::span(content).first<pages::kPageSize>());
      ASSERT_TRUE(got) << got.error().text;
      ASSERT_GE(got->value_or(0), shared->confirmed[page]) << page;
      if (*got) {
        ASSERT_EQ(content, page_of(**got, true)) << "content and version of page " << page << " belong together";
        version = std::max(version, **got + 1);
      }
    }
    store_.reset();
  }
  munmap(shared, sizeof(Shared));
}

TEST_F(PageStoreTest, WhatCannotBeBelievedIsRefused) {
  constexpr std::uint64_t kRecordsAt = 64U << 10;
  ASSERT_EQ(put(1, 1, page_of(1)), Put::kHeld);
  EXPECT_FALSE(PageStore::open(options_)) << "another one has it";
  StoreOptions other = options_;
  other.budget_bytes *= 2;
  store_.reset();
  EXPECT_FALSE(PageStore::open(other));
  other = options_;
  other.boot_id[3] = std::byte{1};
  EXPECT_FALSE(PageStore::open(other));
  for (const std::uint64_t offset : {std::uint64_t{3}, kRecordsAt, kRecordsAt + 8, kRecordsAt + 17}) {
    damage(options_.records_file, offset);
    const auto refused = PageStore::open(options_);
    ASSERT_FALSE(refused) << offset;
    EXPECT_EQ(refused.error().code, memory::ErrorCode::kBadArgument);
    damage(options_.records_file, offset);
  }
  damage(options_.pages_file, 5);
  ASSERT_TRUE(restart());
  Page content(pages::kPageSize);
  const auto got = store_->get({vm_, 0, 1}, std::span(content).first<pages::kPageSize>());
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, memory::ErrorCode::kLost);
  other = options_;
  other.budget_bytes = 100000;
  EXPECT_FALSE(PageStore::create(other)) << "a budget that holds no chunk";
  other.pages_file = "/proc/godwit-test";
  EXPECT_FALSE(PageStore::create(other));
}

TEST_F(PageStoreTest, RecordsOfOnePlaceAreRefused) {
  ASSERT_EQ(put(1, 1, page_of(1)), Put::kHeld);
  store_.reset();
  // The record once more, of the same unit and key: of another chunk of records, so that nothing hides it.
  std::fstream file(options_.records_file, std::ios::in | std::ios::out | std::ios::binary);
  char record[24];
  file.seekg(64 << 10);
  file.read(record, sizeof record);
  file.seekp((64 << 10) + 24 * 100);
  file.write(record, sizeof record);
  file.close();
  const auto refused = restart();
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().text.find("place of another"), std::string::npos) << refused.error().text;
}

}  // namespace
}  // namespace godwit::memserver::test
