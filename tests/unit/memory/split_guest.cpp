#include "tests/unit/memory/split_guest.h"

#include <unistd.h>

#include <algorithm>

namespace godwit::memory::test {

constexpr std::size_t kPage = pages::kPageSize;

SplitGuest::SplitGuest(GuestRam& ram, WrittenTracker& tracker, SplitLimits limits)
    : missing_file("/dev/shm/godwit-test-split-missing-" + std::to_string(getpid())),
      leaving_file("/dev/shm/godwit-test-split-leaving-" + std::to_string(getpid())),
      ram_(ram),
      tracker_(tracker),
      limits_(limits) {}

SplitGuest::~SplitGuest() {
  stop();
  evictor.reset();
  pager.reset();
  leaving.reset();
  EXPECT_TRUE(MissingPages::remove(missing_file));
  EXPECT_TRUE(GuestStateFile::remove(leaving_file));
}

MissingOf SplitGuest::of() const {
  MissingOf of;
  of.epoch = 7;
  of.page_count = ram_.page_count();
  return of;
}

PagerRequest SplitGuest::pager_request() {
  PagerRequest request;
  request.ram = &ram_;
  request.tracker = &tracker_;
  request.sees_kernel_accesses = true;
  request.file = missing_file;
  request.of = of();
  request.room = room.get();
  return request;
}

std::expected<std::unique_ptr<Evictor>, Error> SplitGuest::make_evictor() {
  return Evictor::create({.ram = &ram_,
                          .tracker = &tracker_,
                          .pager = pager.get(),
                          .leaving = leaving.get(),
                          .policy = policy.get(),
                          .high_pages = limits_.high_pages,
                          .low_pages = limits_.low_pages});
}

void SplitGuest::start() {
  room = std::make_unique<ResidentRoom>(ram_, limits_.budget_pages);
  policy = std::make_unique<ColdestFirst>(ram_.page_count());
  auto made = DemandPager::create(pager_request());
  ASSERT_TRUE(made) << made.error().text;
  pager = std::move(*made);
  auto pipe = PinPipe::make();
  ASSERT_TRUE(pipe) << pipe.error().text;
  auto slots = LeavingPages::create(leaving_file, of(), limits_.slots, std::move(*pipe), 1);
  ASSERT_TRUE(slots) << slots.error().text;
  leaving = std::make_unique<LeavingPages>(std::move(*slots));
  const auto armed = pager->arm();
  ASSERT_TRUE(armed) << armed.error().text;
  auto evicting = make_evictor();
  ASSERT_TRUE(evicting) << evicting.error().text;
  evictor = std::move(*evicting);
}

EvictedBatch SplitGuest::evict_once() {
  const std::lock_guard lock(evicting_);
  auto batch = evictor->evict_batch();
  EXPECT_TRUE(batch) << batch.error().text;
  if (!batch) {
    return {.pages = {}, .zero_pages = {}, .somebody_waits = false, .nothing_left = true};
  }
  unconfirmed_.insert(unconfirmed_.end(), batch->pages.begin(), batch->pages.end());
  return std::move(*batch);
}

void SplitGuest::evict_all() {
  for (bool left = true; left;) {
    left = !evict_once().nothing_left;
    confirm_all();
  }
}

void SplitGuest::confirm_all() {
  for (const LeavingPage& page : std::exchange(unconfirmed_, {})) {
    {
      const std::lock_guard lock(store_mutex_);
      store_[page.page].assign(page.bytes.begin(), page.bytes.end());
    }
    leaving->forget(page.page, page.version);
  }
}

void SplitGuest::serve_once() {
  std::vector<pages::PageNumber> asked = std::exchange(again_, {});
  const auto read = pager->read_faults(asked);
  ASSERT_TRUE(read) << read.error().text;
  for (const pages::PageNumber page : asked) {
    if (!pager->wants(page)) {
      continue;
    }
    std::vector<std::byte> bytes(kPage);
    const auto version = leaving->find(page, std::span(bytes).first<kPage>());
    if (!version) {
      const std::lock_guard lock(store_mutex_);
      ASSERT_TRUE(store_.contains(page)) << "page " << page << " is nowhere";
      bytes = store_.at(page);
    }
    const PageWrite write{page, 0, bytes};
    const auto placed = pager->place(0, {&write, 1});
    ASSERT_TRUE(placed) << placed.error().text;
    if (!*placed) {
      again_.push_back(page);
      continue;
    }
    policy->note_placed(page);
    ++(version ? from_leaving : from_store);
    if (version) {
      leaving->forget(page, *version);
    }
  }
}

void SplitGuest::keep_evicting() {
  // Confirmed two batches late, so that pages are asked for while they are on their way.
  constexpr std::size_t kLate = 2 * LeavingPages::kBatchPagesMax;
  while (!stop_) {
    resident_most = std::max(resident_most, resident_pages());
    const auto wanted = evictor->wanted();
    ASSERT_TRUE(wanted) << wanted.error().text;
    if (!*wanted) {
      std::this_thread::yield();
      continue;
    }
    static_cast<void>(evict_once());
    if (unconfirmed_.size() > kLate) {
      confirm_all();
    }
  }
}

void SplitGuest::begin_serving() {
  stop_ = false;
  server_ = std::thread([this] {
    while (!stop_) {
      serve_once();
    }
  });
}

void SplitGuest::begin() {
  begin_serving();
  evicting_thread_ = std::thread([this] { keep_evicting(); });
}

void SplitGuest::stop() {
  stop_ = true;
  for (std::thread* thread : {&server_, &evicting_thread_}) {
    if (thread->joinable()) {
      thread->join();
    }
  }
}

std::vector<std::byte> SplitGuest::content(pages::PageNumber page) {
  const auto is_away = [&] {
    const auto away = pager->is_away(page);
    EXPECT_TRUE(away) << away.error().text;
    return away && *away;
  };
  std::vector<std::byte> bytes(kPage);
  bool found = false;
  if (is_away()) {
    found = leaving->find(page, std::span(bytes).first<kPage>()).has_value();
    const std::lock_guard lock(store_mutex_);
    if (const auto held = store_.find(page); !found && held != store_.end()) {
      bytes = held->second;
      found = true;
    }
  }
  // It may have come back meanwhile, and what was found be older.
  if (!is_away()) {
    found = ram_.read(page, 0, bytes).has_value();
  }
  EXPECT_TRUE(found) << "page " << page << " is nowhere";
  return bytes;
}

void SplitGuest::copy_written(std::vector<std::byte>& copied) {
  pages::Bitmap written(ram_.page_count());
  const auto collected = tracker_.collect(written);
  ASSERT_TRUE(collected) << collected.error().text;
  const std::lock_guard lock(evicting_);
  for (pages::PageNumber page = written.next_set(0); page < written.size(); page = written.next_set(page + 1)) {
    ++written_pages;
    std::ranges::copy(content(page), copied.begin() + static_cast<std::ptrdiff_t>(page * kPage));
  }
}

std::uint64_t SplitGuest::resident_pages() const {
  const auto bytes = ram_.resident_bytes();
  EXPECT_TRUE(bytes);
  return bytes ? *bytes / kPage : 0;
}

}  // namespace godwit::memory::test
