#include "dataplane/daemon/live_split.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace godwit::daemon {
namespace {

constexpr const char* kMissing = ".split-missing";
constexpr const char* kPlaces = ".split-places";
constexpr memory::GuestStateFile::Kind kPlacesKind{0x6777706c61636573, 1, "file of where pages are"};  // "gwplaces"
/// Faults that could not be answered when they were read raise no event again.
constexpr Duration kFaultsAgain = milliseconds(10);
constexpr Duration kUnansweredAgain = microseconds(200);
constexpr Duration kPublishEvery = milliseconds(100);
constexpr Duration kGatheredAgain = milliseconds(1000);
constexpr std::chrono::milliseconds kAtOnce(0);
constexpr std::chrono::milliseconds kNotWanted(-1);    // nothing is to be done now
constexpr std::chrono::milliseconds kLookAgain(1);     // whether there is room for a batch; after kNotWanted at first
constexpr std::chrono::milliseconds kLookSeldom(32);   // and at last: a guest that rests costs next to nothing
constexpr std::chrono::milliseconds kNothingLeft(20);  // everything that may go is out
/// To reach the low watermark, and until stores have what is on its way out: what they have not takes some of the room.
constexpr std::chrono::seconds kCalmDownMax(3);

}  // namespace

std::string LiveSplit::file(const char* ending) const {
  return directory_ + "/" + Id128(std::bit_cast<std::array<std::uint8_t, 16>>(of_.vm_uuid)).text() + ending;
}

bool LiveSplit::left_behind(const std::string& directory, const Id128& vm) {
  struct stat status {};
  return stat((directory + "/" + vm.text() + kMissing).c_str(), &status) == 0;
}

void LiveSplit::remove_files(const std::string& directory, const Id128& vm) {
  for (const char* ending : {kMissing, kLeaving, kPlaces}) {
    static_cast<void>(memory::GuestStateFile::remove(directory + "/" + vm.text() + ending));
  }
}

LiveSplit::LiveSplit(LiveGuest& guest, std::string directory, const memory::MissingOf& of, std::uint32_t lcores)
    : guest_(guest),
      directory_(std::move(directory)),
      of_(of),
      request_(guest.pager_request()),
      room_(guest.ram(), 0),
      policy_(guest.page_count()) {
  request_.sees_kernel_accesses = true;
  request_.file = file(kMissing);
  request_.of = of;
  request_.room = &room_;
  request_.lcores = lcores;
}

LiveSplit::~LiveSplit() { stop_evicting(); }

std::expected<std::shared_ptr<LiveSplit>, memory::Error> LiveSplit::create(LiveGuest& guest,
                                                                           const std::string& directory,
                                                                           const memory::MissingOf& of,
                                                                           memory::PinPipe pipe) {
  std::shared_ptr<LiveSplit> made(new LiveSplit(guest, directory, of, 1));
  auto opened = made->open_rest(true, std::move(pipe));
  if (opened) {
    opened = made->open_pager(true);
  }
  if (opened) {
    opened = made->pager_->arm();
  }
  if (!opened) {
    return std::unexpected(opened.error());
  }
  return made;
}

std::expected<std::shared_ptr<LiveSplit>, memory::Error> LiveSplit::take_over(LiveGuest& guest,
                                                                              const std::string& directory,
                                                                              const memory::MissingOf& of,
                                                                              std::uint32_t lcores) {
  std::shared_ptr<LiveSplit> made(new LiveSplit(guest, directory, of, lcores));
  if (auto opened = made->open_pager(false); !opened) {
    return std::unexpected(opened.error());
  }
  return made;
}

std::expected<std::shared_ptr<LiveSplit>, memory::Error> LiveSplit::arrive(LiveGuest& guest,
                                                                           const std::string& directory,
                                                                           const memory::MissingOf& of,
                                                                           std::uint64_t budget_pages,
                                                                           std::uint32_t lcores) {
  std::shared_ptr<LiveSplit> made(new LiveSplit(guest, directory, of, lcores));
  made->room_.set_budget(kNoBudget);
  made->arrival_budget_pages_ = budget_pages;
  made->noted_ = pages::Bitmap(of.page_count);
  auto opened = made->open_places(true);
  if (opened) {
    opened = made->open_pager(true);
  }
  if (!opened) {
    return std::unexpected(opened.error());
  }
  return made;
}

std::expected<void, memory::Error> LiveSplit::open_pager(bool fresh) {
  auto pager = fresh ? memory::DemandPager::create(request_) : memory::DemandPager::take_over(request_);
  if (!pager) {
    return std::unexpected(pager.error());
  }
  pager_ = std::move(*pager);
  return {};
}

std::expected<void, memory::Error> LiveSplit::open_places(bool fresh) {
  const std::size_t bytes = split::PageCopies::bytes(of_.page_count);
  auto places = fresh ? memory::GuestStateFile::create(file(kPlaces), kPlacesKind, of_, bytes)
                      : memory::GuestStateFile::adopt(file(kPlaces), kPlacesKind, of_, bytes);
  if (!places) {
    return std::unexpected(places.error());
  }
  places_ = std::make_unique<memory::GuestStateFile>(std::move(*places));
  return {};
}

std::expected<void, memory::Error> LiveSplit::open_rest(bool fresh, memory::PinPipe pipe) {
  auto leaving = fresh ? memory::LeavingPages::create(file(kLeaving), of_, kSlots, std::move(pipe), 1)
                       : memory::LeavingPages::adopt(file(kLeaving), of_, kSlots, std::move(pipe), pager_->missing());
  if (!leaving) {
    return std::unexpected(leaving.error());
  }
  if (!places_) {
    auto opened = open_places(fresh);
    if (!opened && !fresh) {
      spdlog::warn("VM {}: {}: where its pages are is found out again from what its sub hosts hold",
                   Id128(std::bit_cast<std::array<std::uint8_t, 16>>(of_.vm_uuid)).text(), opened.error().text);
      copies_ = split::Copies::kLost;
      opened = open_places(true);
    }
    if (!opened) {
      return opened;
    }
  }
  if (copies_ == split::Copies::kKept) {
    places_->let_take_over();
  }
  leaving_ = std::make_unique<memory::LeavingPages>(std::move(*leaving));
  return {};
}

std::expected<void, memory::Error> LiveSplit::continue_with(memory::PinPipe pipe) {
  return open_rest(false, std::move(pipe));
}

void LiveSplit::begin(Inbox& lcore, SplitTold told) {
  GW_ASSERT(!begun() && complete());
  lcore_ = &lcore;
  told_ = std::move(told);
  main_ = std::make_unique<split::MainHost>(*this, split::PageCopies(places_->body(), of_.page_count),
                                            pager_->missing(), *this, copies_, [this] { places_->let_take_over(); });
  thread_ = std::jthread([this](const std::stop_token& stop) { keep_evicting(stop); });
  begun_.store(true, std::memory_order_release);
}

std::expected<void, memory::Error> LiveSplit::set_limits(const SplitLimits& limits) {
  const std::scoped_lock lock(evicting_, mutex_);
  if (evictor_) {
    evictor_->set_marks(limits.high_pages, limits.low_pages);
  } else if (auto made = make_evictor(limits); !made) {
    return made;
  }
  limits_ = limits;
  room_.set_budget(room_for(limits));
  changed_.notify_all();
  return {};
}

/// With a budget below what is resident, for each page that leaves one may come: who touches what has left waits for a
/// page's room, not until all is within the budget.
std::uint64_t LiveSplit::room_for(const SplitLimits& limits) const {
  if (limits.gather) {
    return kNoBudget;
  }
  const std::uint64_t resident = resident_pages();
  return resident > limits.budget_pages ? resident + limits.budget_pages - limits.high_pages : limits.budget_pages;
}

/// 0 where nobody can tell: who needs to know it hears of that from the evictor.
std::uint64_t LiveSplit::resident_pages() const {
  const auto resident = request_.ram->resident_bytes();
  return resident ? *resident / pages::kPageSize : 0;
}

std::expected<void, memory::Error> LiveSplit::make_evictor(const SplitLimits& limits) {
  memory::VictimPolicy* policy = &policy_;
  if (limits.order == memory::EvictionOrder::kHighestFirst) {
    policy = &by_address_;
  }
  auto evictor = memory::Evictor::create({.ram = request_.ram,
                                          .tracker = request_.tracker,
                                          .pager = pager_.get(),
                                          .leaving = leaving_.get(),
                                          .policy = policy,
                                          .high_pages = limits.high_pages,
                                          .low_pages = limits.low_pages});
  if (!evictor) {
    return std::unexpected(evictor.error());
  }
  evictor_ = std::move(*evictor);
  return {};
}

std::expected<void, memory::Error> LiveSplit::end() {
  stop_evicting();
  if (auto ended = pager_->end(); !ended) {
    return ended;
  }
  // What was placed here without being written shows in no scan.
  if (auto refreshed = guest_.refresh_present(); !refreshed) {
    return std::unexpected(memory::Error{memory::ErrorCode::kKernel, refreshed.error().text});
  }
  return {};
}

// ---- the evictor's thread ----

void LiveSplit::stop_evicting() {
  if (thread_.joinable()) {
    thread_.request_stop();
    thread_.join();
  }
}

void LiveSplit::keep_evicting(const std::stop_token& stop) {
  std::chrono::milliseconds quiet = kLookAgain;
  while (!stop.stop_requested()) {
    if (rest_due()) {
      calm_down(stop);
      bring_to_rest();
    }
    auto wait = evict_once();
    quiet = wait == kNotWanted ? std::min(quiet * 2, kLookSeldom) : kLookAgain;
    wait = wait == kNotWanted ? quiet : wait;
    if (wait != kAtOnce) {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, stop, wait, [this] { return room_wanted_.exchange(false); });
    }
  }
}

/// When it is to be tried again.
std::chrono::milliseconds LiveSplit::evict_once() {
  const std::lock_guard evicting(evicting_);
  {
    const std::lock_guard lock(mutex_);
    if (!evictor_ || limits_.gather || held_ || !problem_.empty()) {
      return kNotWanted;
    }
    if (std::exchange(lift_apart_, false)) {
      evictor_->any_may_leave();
    }
    if (room_.budget_pages() > limits_.budget_pages) {
      room_.set_budget(std::min(room_.budget_pages(), room_for(limits_)));
    }
  }
  const auto wanted = evictor_->wanted();
  if (!wanted || !*wanted) {
    if (!wanted) {
      fail(wanted.error().text);
    }
    return kNotWanted;
  }
  auto batch = evictor_->evict_batch();
  if (!batch) {
    fail(batch.error().text);
    return kNotWanted;
  }
  if (batch->pages.empty() && !batch->somebody_waits) {
    return batch->nothing_left ? kNothingLeft : batch->zero_pages.empty() ? kLookAgain : kAtOnce;
  }
  std::vector<pages::PageNumber> out;
  for (const memory::LeavingPage& page : batch->pages) {
    out.push_back(page.page);
  }
  // It wakes the lcore too, for whoever waits.
  lcore_->post([this, out = std::move(out)] { main_->evicted(out); });
  return kAtOnce;
}

/// Makes room, as none is made while it is held.
void LiveSplit::calm_down(const std::stop_token& stop) {
  const auto until = std::chrono::steady_clock::now() + kCalmDownMax;
  const auto goes_on = [&] { return !stop.stop_requested() && std::chrono::steady_clock::now() < until; };
  {
    const std::lock_guard evicting(evicting_);
    evictor_->go_down();
  }
  for (auto wait = evict_once(); (wait == kAtOnce || wait == kLookAgain) && goes_on(); wait = evict_once()) {
    std::this_thread::sleep_for(wait);
  }
  while (leaving_->free() < kSlots && goes_on()) {
    std::this_thread::sleep_for(kLookAgain);
  }
}

void LiveSplit::fail(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (problem_.empty()) {
    problem_ = why;
  }
}

// ---- the home lcore ----

bool LiveSplit::poll_faults(Instant now) {
  const std::size_t before = demanded_.size();
  if (const auto read = pager_->read_faults(demanded_); !read && read.error().code != memory::ErrorCode::kNoMemory) {
    fail(read.error().text);
  }
  const auto own = std::stable_partition(demanded_.begin() + static_cast<std::ptrdiff_t>(before), demanded_.end(),
                                         [this](pages::PageNumber page) { return !pager_->is_awaited(page); });
  awaited_faults_.insert(awaited_faults_.end(), own, demanded_.end());
  bool busy = demanded_.size() != before;
  demanded_.erase(own, demanded_.end());
  const bool asks_source = asks_source_.load(std::memory_order_acquire);
  if (!asks_source) {
    leave_to_stores();
  }
  if (!begun()) {
    if (asks_source) {
      ask_source(before);
    }
    return busy;
  }
  main_->demand(demanded_);
  demanded_.clear();
  busy = main_->turn(now) || busy;
  if (!main_->failure().empty()) {
    fail(main_->failure());
  }
  if (held_then_ && main_->at_rest()) {
    std::exchange(held_then_, nullptr)();
  }
  if (narrow_) {
    widen_room(now);
  }
  publish(now);
  return busy;
}

/// It arrives, and no store serves it: the source gives these pages too, or the stores do once they can.
void LiveSplit::ask_source(std::size_t from) {
  pages::Bitmap asked(of_.page_count);
  for (std::size_t i = from; i < demanded_.size(); ++i) {
    asked.set(demanded_[i]);
    awaited_faults_.push_back(demanded_[i]);
    early_.push_back(demanded_[i]);
  }
  pager_->await(asked);
}

/// From the commit on: the source may be another process by the next word, which does not know what it has not.
void LiveSplit::leave_to_stores() {
  for (const pages::PageNumber page : early_) {
    pager_->stop_awaiting(page);
    awaited_here_.push_back({page, 1});  // for the migration
  }
  early_.clear();
}

void LiveSplit::take_awaited(std::vector<pages::PageNumber>& faults, std::vector<transfer::PageRun>& here) {
  faults.insert(faults.end(), awaited_faults_.begin(), awaited_faults_.end());
  here.insert(here.end(), awaited_here_.begin(), awaited_here_.end());
  awaited_faults_.clear();
  awaited_here_.clear();
}

void LiveSplit::publish(Instant now) {
  if (now < publish_at_) {
    return;
  }
  publish_at_ = now + kPublishEvery;
  tell_figures();
  const bool gather = limits().gather;
  main_->gather(gather);
  if (gather && now >= gathered_at_ && main_->all_here()) {
    gathered_at_ = now + kGatheredAgain;
    told_.gathered();
  }
}

void LiveSplit::tell_figures() {
  const std::lock_guard lock(mutex_);
  figures_.main = main_->stats();
  figures_.leaving_pages = kSlots - leaving_->free();
  figures_.subs.clear();
  for (const split::SubId sub : main_->subs()) {
    figures_.subs[sub] = main_->sub_stats(sub);
  }
}

Instant LiveSplit::deadline(Instant polled_at) const {
  const Instant faults = polled_at + (pager_->has_unanswered() ? kUnansweredAgain : kFaultsAgain);
  return begun() ? std::min(faults, main_->deadline()) : faults;
}

std::expected<split::MainMemory::Placed, std::string> LiveSplit::place(pages::PageNumber page, pages::PageBytes bytes) {
  const memory::PageWrite write{page, 0, bytes};
  const bool awaited = pager_->is_awaited(page);
  placed_.clear();
  const auto placed = pager_->place(0, {&write, 1}, &placed_);
  if (!placed_.empty()) {
    policy_.note_placed(page);
    if (awaited) {
      awaited_here_.push_back({page, 1});
    }
    return Placed::kPlaced;
  }
  if (!placed && placed.error().code != memory::ErrorCode::kNoMemory) {
    return std::unexpected(placed.error().text);
  }
  if (placed && *placed) {
    return Placed::kNotWanted;
  }
  want_room();
  return Placed::kAgain;
}

void LiveSplit::want_room() {
  if (!room_wanted_.exchange(true)) {
    changed_.notify_all();  // the evictor may be looking seldom
  }
}

std::vector<split::Entry> LiveSplit::all_leaving() const {
  std::vector<split::Entry> all;
  for (const memory::LeavingPage& page : leaving_->all()) {
    all.push_back({.page = page.page, .version = page.version});
  }
  return all;
}

// ---- any thread ----

SplitLimits LiveSplit::limits() const {
  const std::lock_guard lock(mutex_);
  return limits_;
}

std::string LiveSplit::problem() const {
  const std::lock_guard lock(mutex_);
  return !problem_.empty() || !figures_.main.rebuilding
             ? problem_
             : "where its pages are is found out again, once all of its sub hosts have said what they hold";
}

SplitFigures LiveSplit::figures() const {
  const std::lock_guard lock(mutex_);
  SplitFigures figures = figures_;
  figures.pager = pager_->stats();
  if (evictor_) {
    figures.evictor = evictor_->stats();
  }
  return figures;
}

}  // namespace godwit::daemon
