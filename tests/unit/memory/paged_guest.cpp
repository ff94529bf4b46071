#include "tests/unit/memory/paged_guest.h"

#include <unistd.h>

#include <algorithm>

namespace godwit::memory::test {

constexpr std::uint64_t kPage = pages::kPageSize;

PagedGuest::PagedGuest(TrackerKind kind, bool huge)
    : file("/dev/shm/godwit-test-missing-" + std::to_string(getpid())), kind_(kind), huge_(huge) {
  options.regions = {{4U << 20, huge}, {6U << 20, huge}};
}

PagedGuest::~PagedGuest() {
  stop_serving();
  pager.reset();
  tracker.reset();
  ram.reset();
  guest.reset();
  EXPECT_TRUE(MissingPages::remove(file));
}

std::optional<std::string> PagedGuest::cannot() const {
  const auto offered = trackers_offered();
  if (std::ranges::find(offered, kind_) == offered.end()) {
    return "this kernel does not offer " + std::string(memory::name_of(kind_));
  }
  return std::nullopt;
}

void PagedGuest::start() {
  if (huge_) {
    huge_pages_ = HugePages::add(8);
    ASSERT_TRUE(huge_pages_) << "the kernel gives no huge pages (vm.nr_hugepages)";
  }
  guest = GuestProcess::start(options);
  ASSERT_TRUE(guest);
  auto opened = GuestRam::open(guest->region_files());
  ASSERT_TRUE(opened) << opened.error().text;
  ram.emplace(std::move(*opened));
  hashes = std::make_shared<KnownHashes>(ram->page_count());
}

std::expected<void, Error> PagedGuest::start_tracker(bool continuing) {
  TrackerRequest wanted;
  wanted.ram = &*ram;
  wanted.hashes = hashes;
  wanted.userfaultfd = guest->userfaultfd();
  for (std::uint32_t i = 0; i < ranges.size(); ++i) {
    wanted.userfaultfds_by_range.push_back({guest->userfaultfd(i + 1), ranges[i]});
  }
  wanted.pagemap = guest->pagemap();
  wanted.has_balloon = balloon;
  wanted.learn_hashes = learn_hashes;
  wanted.continuing = continuing;
  auto chosen = choose_tracker(std::move(wanted), &kind_);
  if (!chosen) {
    return std::unexpected(chosen.error());
  }
  tracker = std::move(chosen->tracker);
  return tracker->arm();
}

PagerRequest PagedGuest::request() {
  PagerRequest wanted;
  wanted.ram = &*ram;
  wanted.tracker = tracker.get();
  wanted.sees_kernel_accesses = true;
  wanted.file = file;
  wanted.of.epoch = 7;
  wanted.of.qemu_pid = guest->pid();
  wanted.of.page_count = ram->page_count();
  wanted.lcores = 2;
  return wanted;
}

void PagedGuest::prepare(const std::function<bool(pages::PageNumber)>& is_missing) {
  pages::Bitmap missing(ram->page_count());
  pages::Bitmap zero(ram->page_count());
  const std::vector<std::byte> old(kPage, std::byte{0xee});
  for (pages::PageNumber page = 0; page < ram->page_count(); ++page) {
    const std::vector<std::byte> pattern = pattern_of(page);
    const bool is_zero = pages::is_zero_page(pages::PageBytes(std::span(pattern).first<kPage>()));
    (is_missing(page) ? missing.set(page) : is_zero ? zero.set(page) : void());
    // What is neither missing nor zero is reusable; the others hold something old.
    const PageWrite write{page, 0, is_missing(page) || is_zero ? old : pattern};
    ASSERT_TRUE(ram->write({&write, 1}));
    hashes->set(page, pages::hash_page(pages::PageBytes(std::span(pattern).first<kPage>())));
  }
  const auto armed = start_tracker();
  ASSERT_TRUE(armed) << armed.error().text;
  auto made = DemandPager::create(request());
  ASSERT_TRUE(made) << made.error().text;
  pager = std::move(*made);
  const auto taken = pager->add_missing(missing);
  ASSERT_TRUE(taken) << taken.error().text;
  const auto zeroed = pager->add_zero(zero);
  ASSERT_TRUE(zeroed) << zeroed.error().text;
  EXPECT_EQ(pager->missing(), missing);
}

void PagedGuest::arm() {
  const auto armed = pager->arm();
  ASSERT_TRUE(armed) << armed.error().text;
}

void PagedGuest::serve_once(std::uint32_t lcore) {
  std::vector<pages::PageNumber> asked;
  const auto read = pager->read_faults(asked);
  ASSERT_TRUE(read) << read.error().text;
  demanded.insert(demanded.end(), asked.begin(), asked.end());
  for (const pages::PageNumber page : asked) {
    place(lcore, page, 1);
  }
}

void PagedGuest::begin_serving() {
  stop_ = false;
  server_ = std::thread([this] {
    while (!stop_) {
      serve_once();
    }
  });
}

void PagedGuest::stop_serving() {
  stop_ = true;
  if (server_.joinable()) {
    server_.join();
  }
}

void PagedGuest::place(std::uint32_t lcore, pages::PageNumber first, std::uint64_t count) {
  constexpr std::uint64_t kBurst = 24;
  for (const pages::PageNumber end = first + count; first < end; first += kBurst) {
    std::vector<std::vector<std::byte>> contents;
    std::vector<PageWrite> writes;
    for (pages::PageNumber page = first; page < std::min(end, first + kBurst); ++page) {
      contents.push_back(pattern_of(page));
      writes.push_back({page, 0, contents.back()});
    }
    for (bool all = false; !all;) {
      const auto placed = pager->place(lcore, writes);
      ASSERT_TRUE(placed) << placed.error().text;
      all = *placed;
    }
  }
}

void PagedGuest::place_all(std::uint32_t lcore) {
  place(lcore, 0, ram->page_count());
  while (pager->missing_count() > 0) {
    std::this_thread::yield();
  }
}

pages::Bitmap PagedGuest::collect() {
  pages::Bitmap written(ram->page_count());
  const auto done = tracker->collect(written);
  EXPECT_TRUE(done) << done.error().text;
  return written;
}

}  // namespace godwit::memory::test
