// DemandPager: pages that arrive.

#include <cstring>
#include <thread>

#include "dataplane/memory/demand_pager.h"

namespace godwit::memory {
namespace {

/// QEMU changes its mappings for microseconds, unless its thread is not scheduled: then the page comes again.
constexpr int kTriesMax = 64;

}  // namespace

/// With removals kept out. A claim is given back when the page is in place, and so not missing any more, or when that
/// has failed: so each page is placed once.
bool DemandPager::claim(pages::PageNumber page, Only only) {
  if (!missing_.test(page) || !claimed_.set(page)) {
    return false;
  }
  if (!missing_.test(page)) {
    claimed_.clear(page);
    return false;
  }
  if (only == Only::kAwaited && !awaited_.test(page)) {
    static_cast<void>(release(page));  // it has been here, and was evicted: somebody else answers
    return false;
  }
  return true;
}

void DemandPager::not_awaited(pages::PageNumber page) {
  if (awaited_.clear(page)) {
    --awaited_count_;
  }
}

void DemandPager::give_back_claims(std::span<const PageWrite> run, Only only) {
  for (const PageWrite& write : run) {
    if (only == Only::kAwaited) {
      static_cast<void>(release(write.page));  // there may be no room, and who waits was told that somebody is at it
    } else {
      claimed_.clear(write.page);
    }
  }
}

/// How many of the first writes are of consecutive pages, of one unit or of one region of small pages, all claimed now.
std::size_t DemandPager::claim_run(std::span<const PageWrite> writes, Only only) {
  const Unit unit = unit_of(writes[0].page);
  const pages::PageNumber end =
      unit.pages.count > 1 ? unit.pages.first + unit.pages.count : unit.region->first_page + unit.region->page_count;
  std::size_t count = 0;
  while (count < writes.size() && count < kJoinedPagesMax && writes[count].page == writes[0].page + count &&
         writes[count].page < end && claim(writes[count].page, only)) {
    ++count;
  }
  return count;
}

std::expected<bool, Error> DemandPager::place(std::uint32_t lcore, std::span<const PageWrite> writes,
                                              std::vector<PageRange>* placed_here, Only only) {
  GW_ASSERT(lcore + 1 < lcores_.size());
  PerLcore& mine = lcores_[lcore];
  for (int tries = 0; !writes.empty();) {
    GW_ASSERT(writes[0].offset == 0 && writes[0].bytes.size() == pages::kPageSize);
    if (!wants(writes[0].page, only)) {
      ++mine.dropped;
      writes = writes.subspan(1);
      continue;
    }
    auto apart = userfaults_->reader().keep_removals_out();
    const auto run = writes.first(claim_run(writes, only));
    if (run.empty()) {
      continue;  // not wanted any more
    }
    const bool huge = unit_of(run[0].page).pages.count > 1;
    std::size_t placed = 0;
    const auto outcome = huge ? write_huge_run(run, mine, placed) : copy_run(run, mine, placed);
    give_back_claims(run.subspan(placed), only);
    if (placed_here != nullptr && placed > 0) {
      placed_here->push_back({run[0].page, placed});
    }
    if (!outcome) {
      return std::unexpected(outcome.error());
    }
    writes = writes.subspan(placed);
    if (*outcome == Outcome::kAgain) {
      // A guest within a budget is evicted from: once a removal was read, the page may have left again with other
      // content, and only the caller knows whether this is still its last.
      if (++tries == kTriesMax || room_ != nullptr) {
        return false;
      }
      apart = {};
      userfaults_->reader().poll();
      std::this_thread::yield();
    }
  }
  return true;
}

/// Whether the page is to count as unwritten when it is put in place. One that was evicted may have been written
/// before, and not collected since; where the tracker finds that by the protection, it must stay off.
std::expected<bool, Error> DemandPager::place_protected(pages::PageNumber page) {
  if (!protects_ || !evicted_.test(page)) {
    return protects_;
  }
  return tracker_.may_protect({page, 1});
}

std::expected<DemandPager::Outcome, Error> DemandPager::copy_run(std::span<const PageWrite> run, PerLcore& lcore,
                                                                 std::size_t& placed) {
  const std::byte* from = run[0].bytes.data();
  for (std::size_t i = 1; i < run.size(); ++i) {
    if (run[i].bytes.data() != from + i * pages::kPageSize) {
      for (std::size_t k = 0; k < run.size(); ++k) {
        std::memcpy(&lcore.joined[k * pages::kPageSize], run[k].bytes.data(), pages::kPageSize);
      }
      from = lcore.joined.data();
      break;
    }
  }
  return with_room(run.size(), [&] { return copy_pages(run, from, lcore, placed); });
}

/// `from`: the content of the run.
std::expected<DemandPager::Outcome, Error> DemandPager::copy_pages(std::span<const PageWrite> run,
                                                                   const std::byte* from, PerLcore& lcore,
                                                                   std::size_t& placed) {
  while (placed < run.size()) {
    const auto protect = place_protected(run[placed].page);
    std::size_t alike = 1;
    for (auto next = protect; placed + alike < run.size(); ++alike) {
      next = place_protected(run[placed + alike].page);
      if (!next || !protect || *next != *protect) {
        break;
      }
    }
    if (!protect) {
      return std::unexpected(protect.error());
    }
    const QemuRange range = ram_.qemu_range({run[placed].page, alike});
    const Mapped mapped = userfaults_->copy(range, from + placed * pages::kPageSize, *protect);
    std::uint64_t here = mapped.bytes / pages::kPageSize;
    // The next one is there already: a former process placed it, and wakes nobody any more.
    const QemuRange next{range.address + mapped.bytes, pages::kPageSize};
    const auto outcome = outcome_of(mapped, next);
    here += mapped.error == EEXIST ? 1U : 0U;
    for (; here > 0; --here, ++placed) {
      if (auto settled = settle(run[placed].page, lcore); !settled) {
        return std::unexpected(settled.error());
      }
    }
    if (!outcome || *outcome == Outcome::kAgain) {
      return outcome;
    }
  }
  return Outcome::kDone;
}

std::expected<DemandPager::Outcome, Error> DemandPager::write_huge_run(std::span<const PageWrite> run, PerLcore& lcore,
                                                                       std::size_t& placed) {
  if (auto written = ram_.write(run); !written) {
    return std::unexpected(written.error());
  }
  for (const PageWrite& write : run) {
    ++placed;
    if (auto settled = settle(write.page, lcore); !settled) {
      return std::unexpected(settled.error());
    }
  }
  return Outcome::kDone;
}

/// The page's content is in place: it is not missing any more, and who waits for it goes on.
std::expected<void, Error> DemandPager::settle(pages::PageNumber page, PerLcore& lcore) {
  evicted_.clear(page);
  not_awaited(page);
  missing_.clear(page);
  const bool asked = asked_.test(page);
  ++(asked ? lcore.demand : lcore.background);
  const Unit unit = unit_of(page);
  if (unit.pages.count > 1) {
    claimed_.clear(page);
    if (--lacking(unit.pages.first) > 0) {
      return {};
    }
    if (auto shown = answer_here(unit, true, lcore); !shown) {
      return shown;
    }
  }
  if (asked || unit.pages.count > 1) {
    finish_waiting(unit.pages.first, lcore);
  }
  if (unit.pages.count == 1) {
    claimed_.clear(page);  // last: who evicts it may have others waiting for it
  }
  return {};
}

std::expected<void, Error> DemandPager::place_zero(std::uint32_t lcore, PageRange pages, std::vector<PageRange>* placed,
                                                   Only only) {
  GW_ASSERT(lcore + 1 < lcores_.size());
  for (pages::PageNumber page = pages.first; page < pages.first + pages.count; ++page) {
    const auto apart = userfaults_->reader().keep_removals_out();
    if (claim(page, only)) {
      if (auto done = zero_page(page, lcores_[lcore]); !done) {
        return done;
      }
      if (placed == nullptr) {
        continue;
      }
      if (!placed->empty() && placed->back().first + placed->back().count == page) {
        ++placed->back().count;
      } else {
        placed->push_back({page, 1});
      }
    }
  }
  return {};
}

/// A hole on tmpfs, and zeros in a huge page that is held back, already are what is wanted.
std::expected<void, Error> DemandPager::zero_page(pages::PageNumber page, PerLcore& lcore) {
  not_awaited(page);
  missing_.clear(page);
  ++lcore.zero;
  const Unit unit = unit_of(page);
  const bool whole = unit.pages.count == 1 || --lacking(unit.pages.first) == 0;
  claimed_.clear(page);  // zeros are put in under a claim of their own
  if (!whole || !asked_.test(page)) {
    return {};  // zeros that nobody waits for need no memory yet
  }
  if (auto answered = answer_here(unit, true, lcore); !answered) {
    return answered;
  }
  finish_waiting(unit.pages.first, lcore);
  return {};
}

}  // namespace godwit::memory
