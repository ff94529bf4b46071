// Shares with two threads: one is the lcore that owns the lanes, the other the home lcore.

#include "dataplane/transfer/share.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/simulation/transfer_model.h"
#include "tests/unit/transfer/fake_lane.h"

namespace godwit::transfer {
namespace {

using transport::Work;

constexpr std::uint64_t kPages = 8192;  // more than the rings between the threads hold
using Page = std::array<std::byte, pages::kPageSize>;

Page page_of(std::uint64_t value) {
  Page page{};
  std::memcpy(page.data(), &value, sizeof value);
  page.back() = std::byte{1};
  return page;
}

TEST(SourceShareThreads, EveryWorkIsReadAndAcknowledgedOnceAndInThatOrder) {
  simulation::ModelMemory memory(kPages);
  for (pages::PageNumber page = 0; page < kPages; ++page) {
    memory.fill(page, static_cast<std::byte>(page % 251 + 1));
  }
  SourceShare share(memory, {2, 4}, true);
  std::thread lcore([&share] {
    for (std::uint64_t done = 0; done < kPages;) {
      std::vector<Work> burst;
      Work work;
      for (const std::uint16_t lane : std::array<std::uint16_t, 2>{2, 4}) {
        while (burst.size() < 64 && share.next_work(lane, work)) {
          send_page(share, work.page);
          burst.push_back(work);
        }
      }
      for (const Work& sent : burst) {
        share.on_acknowledged(sent);
      }
      done += burst.size();
      do {
        std::this_thread::yield();
      } while (!share.flush());
    }
  });
  // Fetches slowly at first, so that reports have to wait for room.
  pages::Bitmap read(kPages);
  pages::Bitmap acknowledged(kPages);
  std::uint64_t wrong = 0;
  pages::PageNumber next = 0;
  for (std::uint64_t turn = 0; acknowledged.count() < kPages; ++turn) {
    for (const auto& feed : share.feeds()) {
      while (next < kPages && feed->works.push(Work{.page = next, .count = 1, .round = 1})) {
        ++next;
      }
    }
    SourceShare::Report report;
    for (int taken = 0; taken < (turn < 1000 ? 1 : 4096) && share.fetch(report); ++taken) {
      const pages::PageNumber page = report.work.page;
      pages::Bitmap& seen = report.acknowledged ? acknowledged : read;
      wrong += seen.test(page) ? 1U : 0U;
      seen.set(page);
      wrong += report.acknowledged && !read.test(page) ? 1U : 0U;
      wrong += !report.acknowledged && report.hash != pages::hash_page(memory.page(page)) ? 1U : 0U;
    }
    std::this_thread::yield();
  }
  lcore.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(read.count(), kPages);
  EXPECT_EQ(share.error(), nullptr);
}

TEST(SourceShare, TellsMemoryThatComparesContentOfAllThatLeaves) {
  simulation::ModelMemory memory(4, true);
  memory.rearm();
  SourceShare share(memory, {2}, false);
  EXPECT_TRUE(share.wants_hash(1, 1408)) << "of each part";
  EXPECT_TRUE(share.page_in_place(1, false).empty());
  share.note_sent(1, pages::zero_page_hash());
  EXPECT_FALSE(memory.written().test(1)) << "what the scan saw";
  memory.fill(1, std::byte{2});
  send_page(share, 1);
  memory.fill(1, std::byte{0});
  EXPECT_TRUE(memory.written().test(1)) << "what left is not what is there";

  simulation::ModelMemory marked(4);
  SourceShare verified(marked, {2}, true), plain(marked, {2}, false);
  EXPECT_TRUE(verified.wants_hash(1, 0));
  EXPECT_FALSE(verified.wants_hash(1, 1408));
  EXPECT_FALSE(plain.wants_hash(1, 0));
}

TEST(DestinationShareThreads, WhatIsFetchedIsPlaced) {
  simulation::ModelMemory memory(kPages);
  pages::GenerationTable table(kPages, 1);
  RoundGate gate;
  DestinationShare share(memory, nullptr, 1, table, gate);
  gate.begin(1);
  gate.open(1);
  std::thread lcore([&share] {
    for (pages::PageNumber page = 0; page < kPages; ++page) {
      const Page bytes = page_of(page + 1);  // lives until the flush, as a packet does
      if (page % 8 == 7) {
        share.on_zero_run(1, 1, page, 1);
      } else {
        share.on_page(1, 1, page, 0, bytes);
      }
      while (!share.flush()) {
        std::this_thread::yield();
      }
    }
  });
  std::uint64_t wrong = 0;
  std::uint64_t fetched = 0;
  while (fetched < kPages) {
    PlacedRun run;
    if (!share.fetch(run)) {
      std::this_thread::yield();
      continue;
    }
    fetched += run.count;
    for (pages::PageNumber page = run.first; page < run.first + run.count; ++page) {
      wrong += memory.page(page) == (run.zero ? Page{} : page_of(page + 1)) && run.zero == (page % 8 == 7) ? 0U : 1U;
      wrong += table.get(page) == pages::kUnknownGeneration ? 0U : 1U;
      table.set(page, 2);  // as the home lcore does
    }
  }
  lcore.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(share.partial_pages(), 0U);
}

TEST(DestinationShareThreads, AGateThatClosesEndsPlacingAndAnErrorIsSeenWhole) {
  simulation::ModelMemory memory(kPages);
  pages::GenerationTable table(kPages, 1);
  RoundGate gate;
  DestinationShare share(memory, nullptr, 1, table, gate);
  gate.begin(1);
  gate.open(1);
  std::atomic<bool> closed{false};
  std::thread lcore([&] {
    const Page bytes = page_of(1);
    pages::PageNumber page = 0;
    for (; !closed.load(std::memory_order_acquire) && page < kPages / 2; ++page) {
      share.on_page(1, 1, page, 0, bytes);
      share.flush();
    }
    while (!closed.load(std::memory_order_acquire)) {
      std::this_thread::yield();
    }
    share.on_page(1, 1, kPages - 1, 0, bytes);  // late: nothing is wanted any more
    share.on_page(1, 2, 0, 0, bytes);           // late as well: a closed gate takes no round
    share.flush();
  });
  PlacedRun run;
  while (!share.fetch(run)) {
    std::this_thread::yield();
  }
  gate.close();
  closed.store(true, std::memory_order_release);
  lcore.join();
  EXPECT_EQ(memory.page(kPages - 1), Page{});
  EXPECT_EQ(share.error(), nullptr);

  gate.begin(3);
  gate.open(3);
  std::thread hostile([&] {
    share.on_page(1, 4, 0, 0, page_of(1));
    share.flush();
  });
  while (share.error() == nullptr) {
    std::this_thread::yield();
  }
  EXPECT_EQ(share.error()->failure, Failure::kPeerProtocol);
  EXPECT_NE(share.error()->text.find("round 4"), std::string::npos) << share.error()->text;
  hostile.join();
}

}  // namespace
}  // namespace godwit::transfer
