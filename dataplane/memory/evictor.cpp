#include "dataplane/memory/evictor.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "dataplane/pages/page_digest.h"

namespace godwit::memory {
namespace {

// Of /proc/PID/pagemap and /proc/kpageflags (Documentation/admin-guide/mm/pagemap.rst).
constexpr std::uint64_t kPagemapFrame = (std::uint64_t{1} << 55) - 1;
constexpr std::uint64_t kPagemapPresent = std::uint64_t{1} << 63;
constexpr std::uint64_t kCompoundHead = std::uint64_t{1} << 15;
constexpr std::uint64_t kCompoundTail = std::uint64_t{1} << 16;
constexpr std::uint64_t kTransparentHuge = std::uint64_t{1} << 22;
/// Candidates that the policy is asked for again, when none of its choice could be held.
constexpr int kTriesMax = 8;

std::expected<void, Error> read_words(int file, std::uint64_t index, std::span<std::uint64_t> words, const char* name) {
  if (pread(file, words.data(), words.size_bytes(), static_cast<off_t>(index * sizeof(std::uint64_t))) !=
      static_cast<ssize_t>(words.size_bytes())) {
    return std::unexpected(kernel_error("read", name, errno));
  }
  return {};
}

Error unsupported(const std::string& why) { return {ErrorCode::kUnsupported, "no eviction: " + why}; }

}  // namespace

std::expected<std::unique_ptr<Evictor>, Error> Evictor::create(const EvictorRequest& request) {
  GW_ASSERT(request.ram != nullptr && request.tracker != nullptr && request.pager != nullptr);
  GW_ASSERT(request.leaving != nullptr && request.policy != nullptr && request.low_pages <= request.high_pages);
  if (request.ram->any_huge()) {
    return std::unexpected(unsupported("guest RAM on hugetlbfs is not taken apart"));
  }
  if (!request.tracker->protects()) {
    return std::unexpected(unsupported("a tracker that compares hashes would take what is away for written"));
  }
  UniqueFd own_pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  UniqueFd page_flags(open("/proc/kpageflags", O_RDONLY | O_CLOEXEC));
  if (!own_pagemap.valid() || !page_flags.valid()) {
    return std::unexpected(
        unsupported("/proc/kpageflags cannot be opened, without which huge pages of tmpfs would lose their content"));
  }
  return std::unique_ptr<Evictor>(new Evictor(request, std::move(own_pagemap), std::move(page_flags)));
}

Evictor::Evictor(const EvictorRequest& request, UniqueFd own_pagemap, UniqueFd page_flags)
    : with_(request),
      own_pagemap_(std::move(own_pagemap)),
      page_flags_(std::move(page_flags)),
      here_(request.ram->page_count()) {}

void Evictor::set_marks(std::uint64_t high_pages, std::uint64_t low_pages) {
  GW_ASSERT(low_pages <= high_pages);
  with_.high_pages = high_pages;
  with_.low_pages = low_pages;
  evicting_ = false;
  here_.clear_all();
  chosen_ahead_.clear();
}

std::expected<pages::Bitmap, Error> Evictor::set_apart(std::uint64_t stay_pages) {
  any_may_leave();
  if (auto looked = look(); !looked) {
    return std::unexpected(looked.error());
  }
  pages::Bitmap apart = with_.pager->missing();
  const std::uint64_t here_pages = here_.count();
  std::uint64_t left = here_pages - std::min(here_pages, stay_pages);
  std::vector<pages::PageNumber> victims;
  for (int empty = 0; left > 0 && empty < 2;) {
    victims.clear();
    with_.policy->choose(here_, left, victims);
    empty = victims.empty() ? empty + 1 : 0;  // the first time it may want to look anew
    for (const pages::PageNumber page : victims) {
      here_.clear(page);
      apart.set(page);
      chosen_ahead_.push_back(page);
    }
    left -= victims.size();
  }
  here_.clear_all();
  may_leave_ = apart;
  return apart;
}

void Evictor::any_may_leave() {
  may_leave_.reset();
  chosen_ahead_.clear();
  here_.clear_all();
}

/// Which pages are candidates.
std::expected<void, Error> Evictor::look() {
  if (auto found = with_.ram->find_present(here_); !found) {
    return found;
  }
  here_.and_not(with_.pager->missing());
  if (may_leave_) {
    here_ &= *may_leave_;
  }
  return {};
}

void Evictor::choose_victims(std::uint64_t count, std::vector<pages::PageNumber>& victims) {
  victims.clear();
  for (; !chosen_ahead_.empty() && victims.size() < count; chosen_ahead_.pop_front()) {
    victims.push_back(chosen_ahead_.front());
  }
  if (victims.empty()) {
    with_.policy->choose(here_, count, victims);
  }
}

std::expected<bool, Error> Evictor::wanted() {
  const auto resident = with_.ram->resident_bytes();
  if (!resident) {
    return std::unexpected(resident.error());
  }
  const std::uint64_t pages = *resident / pages::kPageSize;
  evicting_ = pages > (evicting_ ? with_.low_pages : with_.high_pages);
  return evicting_;
}

std::expected<EvictedBatch, Error> Evictor::evict_batch() {
  EvictedBatch out;
  const auto removals_wait = with_.pager->keep_removals_out();
  if (auto chosen = choose(out); !chosen) {
    return std::unexpected(chosen.error());
  }
  if (batch_.empty()) {
    return out;
  }
  fates_.assign(batch_.size(), Fate::kStays);
  with_.leaving->begin(batch_);
  std::expected<void, Error> done;
  const auto pinned = with_.leaving->pin(*with_.ram);
  if (!pinned) {
    done = std::unexpected(pinned.error());
  } else {
    done = take_out(*pinned);
    if (auto read = with_.leaving->read_pinned(*pinned); !read) {
      // Nobody has the content of what was taken: it stays held and missing, so that nothing else is taken for it.
      return std::unexpected(Error{ErrorCode::kLost, read.error().text});
    }
  }
  settle(out);
  return done ? std::expected<EvictedBatch, Error>(std::move(out)) : std::unexpected(done.error());
}

/// Fills the batch with pages that are held and in memory, in order.
std::expected<void, Error> Evictor::choose(EvictedBatch& out) {
  batch_.clear();
  const std::uint64_t count = std::min(LeavingPages::kBatchPagesMax, with_.leaving->free());
  if (count == 0) {
    return {};
  }
  std::vector<pages::PageNumber> victims;
  bool refreshed = false;
  for (int tries = 0; tries < kTriesMax && batch_.empty(); ++tries) {
    choose_victims(count, victims);
    if (victims.empty()) {
      if (auto looked = look(); !looked) {
        return looked;
      }
      if (!here_.any() || refreshed) {
        break;
      }
      refreshed = true;
      continue;
    }
    std::ranges::sort(victims);
    for (const pages::PageNumber page : victims) {
      GW_ASSERT(batch_.empty() || batch_.back() != page);
      here_.clear(page);
      if (with_.pager->hold(page)) {
        batch_.push_back(page);
      } else {
        ++busy_;
      }
    }
    keep_resident();
  }
  out.nothing_left = batch_.empty();
  return {};
}

/// From that place on, consecutive pages of one region.
std::size_t Evictor::run_length(std::size_t place, std::size_t end) const {
  const Region& region = with_.ram->region_of(batch_[place]);
  std::size_t count = 1;
  while (place + count < end && batch_[place + count] == batch_[place] + count &&
         batch_[place + count] < region.first_page + region.page_count) {
    ++count;
  }
  return count;
}

/// To pin a hole would allocate it.
void Evictor::keep_resident() {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < batch_.size();) {
    const pages::PageNumber first = batch_[i];
    const std::size_t count = run_length(i, batch_.size());
    std::array<unsigned char, LeavingPages::kBatchPagesMax> in_memory{};
    // An error leaves all of it out: not in memory.
    static_cast<void>(mincore(with_.ram->mapped(first).data(), count * pages::kPageSize, in_memory.data()));
    for (std::size_t k = 0; k < count; ++k) {
      if ((in_memory[k] & 1) != 0) {
        batch_[kept++] = first + k;
      } else {
        ++busy_;
        static_cast<void>(with_.pager->release(first + k));  // a hole: nobody waits for it here
      }
    }
    i += count;
  }
  batch_.resize(kept);
}

/// Of this run of the batch, which is pinned: what is no part of a larger folio may be taken.
std::expected<void, Error> Evictor::choose_small(std::size_t place, std::size_t count) {
  std::array<std::uint64_t, LeavingPages::kBatchPagesMax> entries;
  std::array<std::uint64_t, LeavingPages::kBatchPagesMax> flags;
  const auto address = reinterpret_cast<std::uintptr_t>(with_.ram->mapped(batch_[place]).data());
  if (auto read = read_words(own_pagemap_.get(), address / pages::kPageSize, std::span(entries).first(count),
                             "/proc/self/pagemap");
      !read) {
    return read;
  }
  const auto frame_of = [&](std::size_t i) { return entries[i] & kPagemapFrame; };
  for (std::size_t i = 0; i < count;) {
    std::size_t together = 1;
    if ((entries[i] & kPagemapPresent) != 0) {
      if (frame_of(i) == 0) {
        return std::unexpected(unsupported("/proc/self/pagemap tells no page frames (CAP_SYS_ADMIN)"));
      }
      while (i + together < count && (entries[i + together] & kPagemapPresent) != 0 &&
             frame_of(i + together) == frame_of(i) + together) {
        ++together;
      }
      if (auto read = read_words(page_flags_.get(), frame_of(i), std::span(flags).first(together), "/proc/kpageflags");
          !read) {
        return read;
      }
    } else {
      flags[0] = kTransparentHuge;  // what is pinned is not what is there now: not this time
    }
    for (std::size_t k = 0; k < together; ++k) {
      const bool huge = (flags[k] & (kCompoundHead | kCompoundTail | kTransparentHuge)) != 0;
      fates_[place + i + k] = huge ? Fate::kStays : Fate::kTaken;
      huge_ += huge ? 1 : 0;
    }
    i += together;
  }
  return {};
}

/// Of the first `pinned` pages of the batch.
std::expected<void, Error> Evictor::take_out(std::uint32_t pinned) {
  if (with_.ram->damaged()) {
    return with_.ram->check_whole();  // what is pinned may be zeros in place of a mapping that was lost
  }
  for (std::size_t i = 0; i < pinned;) {
    const std::size_t count = run_length(i, pinned);
    if (auto chosen = choose_small(i, count); !chosen) {
      std::ranges::fill(fates_, Fate::kStays);
      return chosen;
    }
    i += count;
  }
  for (std::size_t i = 0; i < pinned;) {
    if (fates_[i] == Fate::kStays) {
      ++i;
      continue;
    }
    const std::size_t run = run_length(i, pinned);
    std::size_t count = 1;
    while (count < run && fates_[i + count] == Fate::kTaken) {
      ++count;
    }
    if (auto punched = punch({batch_[i], count}); !punched) {
      // Which of them have left after all? In doubt the pin has the content.
      for (std::size_t k = i; k < pinned; ++k) {
        const auto left = k < i + count ? with_.ram->is_hole({batch_[k], 1}) : std::expected<bool, Error>(false);
        fates_[k] = left && !*left ? Fate::kStays : Fate::kTaken;
      }
      return punched;
    }
    i += count;
  }
  return {};
}

std::expected<void, Error> Evictor::punch(PageRange pages) {
  with_.pager->make_missing(pages);
  auto punched = with_.ram->punch(pages.first, pages.count);
  if (!punched) {
    return punched;
  }
  const auto gone = with_.ram->is_hole(pages);
  if (!gone) {
    return std::unexpected(gone.error());
  }
  if (!*gone) {
    return std::unexpected(
        Error{ErrorCode::kLost, "region '" + with_.ram->region_of(pages.first).name +
                                    "': a page that was evicted stayed in its file and is zero now"});
  }
  return {};
}

void Evictor::settle(EvictedBatch& out) {
  std::array<bool, LeavingPages::kBatchPagesMax> leaves{};
  for (std::uint32_t i = 0; i < batch_.size(); ++i) {
    if (fates_[i] == Fate::kTaken && pages::is_zero_page(with_.leaving->content(i))) {
      fates_[i] = Fate::kZero;
      out.zero_pages.push_back(batch_[i]);
    }
    leaves[i] = fates_[i] == Fate::kTaken;
    if (!leaves[i]) {
      with_.pager->make_not_missing(batch_[i]);
    }
    evicted_ += fates_[i] != Fate::kStays ? 1 : 0;
  }
  zero_ += out.zero_pages.size();
  ++batches_;
  // Before they are released: who is asked for one from then on finds it.
  with_.leaving->finish(std::span(leaves).first(batch_.size()), out.pages);
  for (const pages::PageNumber page : batch_) {
    out.somebody_waits = with_.pager->release(page) || out.somebody_waits;
  }
}

EvictorStats Evictor::stats() const {
  return {
      .batches = batches_, .evicted_pages = evicted_, .zero_pages = zero_, .busy_pages = busy_, .huge_pages = huge_};
}

}  // namespace godwit::memory
