// DemandPager: faults and removals, and what can be answered without another host.

#include "dataplane/memory/demand_pager.h"

namespace godwit::memory {
namespace {

alignas(pages::kPageSize) constexpr std::array<std::byte, pages::kPageSize> kZeros{};

}  // namespace

void DemandPager::on_missing_fault(std::uint64_t address) {
  const PageRange at = ram_.pages_at(address, 1);
  const std::lock_guard lock(faults_mutex_);
  if (at.count == 0) {
    failure_ = Error{ErrorCode::kBadArgument, "userfaultfd: a fault outside the guest's RAM"};
    return;
  }
  ++faults_;
  fresh_.push_back({unit_of(at.first).pages.first, now_ns()});
}

void DemandPager::on_memory_removed(QemuRange range) {
  const PageRange removed = ram_.pages_at(range.address, range.bytes);
  const std::lock_guard lock(faults_mutex_);
  removal_newest_ = removed;
  for (pages::PageNumber page = removed.first; page < removed.first + removed.count; ++page) {
    if (!missing_.clear(page)) {
      continue;
    }
    removed_ += 1;
    not_awaited(page);
    const Unit unit = unit_of(page);
    const bool whole = unit.pages.count == 1 || --lacking(unit.pages.first) == 0;
    if (whole) {
      // Whoever waits for it is answered from here.
      std::erase_if(waiting_, [&](const Waiting& waiting) {
        const bool its = waiting.first == unit.pages.first;
        if (its) {
          fresh_.push_back(waiting);
        }
        return its;
      });
    }
  }
}

void DemandPager::on_read_failed(Error error) {
  const std::lock_guard lock(faults_mutex_);
  failure_ = std::move(error);
}

std::expected<void, Error> DemandPager::read_faults(std::vector<pages::PageNumber>& demanded) {
  userfaults_->reader().poll();
  std::vector<Waiting> fresh;
  {
    const std::lock_guard lock(faults_mutex_);
    if (failure_) {
      return std::unexpected(*failure_);
    }
    fresh.swap(fresh_);
  }
  std::expected<void, Error> result;
  for (const Waiting& fault : fresh) {
    if (auto answered = answer(fault, demanded); !answered) {
      result = std::move(answered);  // and the others are answered all the same
    }
  }
  return result;
}

bool DemandPager::has_unanswered() const {
  const std::lock_guard lock(faults_mutex_);
  return !fresh_.empty();
}

std::expected<void, Error> DemandPager::answer(const Waiting& fault, std::vector<pages::PageNumber>& demanded) {
  const Unit unit = unit_of(fault.first);
  {
    const std::lock_guard lock(faults_mutex_);
    waiting_.push_back(fault);
  }
  bool any_missing = false;
  for (pages::PageNumber page = unit.pages.first; page < unit.pages.first + unit.pages.count; ++page) {
    if (missing_.test(page)) {
      // Asked first, then looked again: who places it meanwhile sees that somebody waits, or we see that it is here.
      const bool first = asked_.set(page);
      any_missing = any_missing || missing_.test(page);
      if (first && wants(page)) {
        demanded.push_back(page);
      }
    }
  }
  if (any_missing) {
    return {};
  }
  {
    const std::lock_guard lock(faults_mutex_);
    std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.first == fault.first; });
  }
  return answer_here(unit, false, lcores_.back());
}

std::expected<void, Error> DemandPager::answer_here(const Unit& unit, bool fresh, PerLcore& lcore) {
  const auto outcome = unit.pages.count == 1 ? fill_with_zeros(unit.pages.first, lcore) : show_huge(unit, fresh, lcore);
  if (!outcome || *outcome == Outcome::kAgain) {
    // Read once, so it would be lost: it is tried again by the next read_faults().
    const std::lock_guard lock(faults_mutex_);
    fresh_.push_back({unit.pages.first, now_ns()});
  }
  return outcome ? std::expected<void, Error>{} : std::unexpected(outcome.error());
}

std::expected<DemandPager::Outcome, Error> DemandPager::outcome_of(const Mapped& mapped, QemuRange range) {
  switch (mapped.error) {
    case 0:
      return Outcome::kDone;
    case EAGAIN:
      return Outcome::kAgain;
    case EEXIST:
      if (auto woken = userfaults_->wake(range); !woken) {
        return std::unexpected(woken.error());
      }
      return Outcome::kDone;
    case ENOENT:
      if (ending_) {
        return Outcome::kDone;  // nobody waits there any more: taking it off has woken all
      }
      break;
    default:
      break;
  }
  // A RAM file that was cut short has no place for the page: that is what to tell, not that an address is bad.
  if (auto whole = ram_.check_whole(); !whole) {
    return std::unexpected(whole.error());
  }
  return std::unexpected(mapping_error("placing pages", range, mapped.error));
}

/// Claimed meanwhile: else a page that is evicted now would become zero.
std::expected<DemandPager::Outcome, Error> DemandPager::fill_with_zeros(pages::PageNumber page, PerLcore& lcore) {
  if (!claimed_.set(page)) {
    return Outcome::kAgain;
  }
  if (missing_.test(page)) {
    static_cast<void>(release(page));
    return Outcome::kAgain;
  }
  auto outcome = with_room(1, [&]() -> std::expected<Outcome, Error> {
    const auto protect = place_protected(page);
    if (!protect) {
      return std::unexpected(protect.error());
    }
    const QemuRange range = ram_.qemu_range({page, 1});
    const Mapped mapped = userfaults_->copy(range, kZeros.data(), *protect);
    if (mapped.error == 0) {
      ++lcore.local;
      evicted_.clear(page);
    }
    return outcome_of(mapped, range);
  });
  claimed_.clear(page);
  return outcome;
}

/// Gives QEMU its entry of a huge page that lacks nothing.
std::expected<DemandPager::Outcome, Error> DemandPager::show_huge(const Unit& unit, bool fresh, PerLcore& lcore) {
  bool protect = protects_;
  if (protects_ && !fresh) {
    // One that was written before, and whose entry was dropped, must not be forgotten.
    const auto may = tracker_.may_protect(unit.pages);
    if (!may) {
      return std::unexpected(may.error());
    }
    protect = *may;
  }
  auto outcome = map_huge(unit, protect);
  if (!fresh && outcome && *outcome == Outcome::kDone) {
    lcore.local += unit.pages.count;
  }
  return outcome;
}

std::expected<DemandPager::Outcome, Error> DemandPager::map_huge(const Unit& unit, bool protect) {
  if (protect && !maps_protected_) {
    if (auto counted = tracker_.count_as_written(unit.pages); !counted) {
      return std::unexpected(counted.error());
    }
    protect = false;
  }
  const QemuRange range = ram_.qemu_range(unit.pages);
  Mapped mapped = userfaults_->map_cached(range, protect);
  if (mapped.error == EFAULT) {
    // Neither missing nor there: zeros, in a huge page that this write makes.
    const PageWrite zero{unit.pages.first, 0, kZeros};
    if (auto written = ram_.write({&zero, 1}); !written) {
      return std::unexpected(written.error());
    }
    mapped = userfaults_->map_cached(range, protect);
  }
  return outcome_of(mapped, range);
}

void DemandPager::finish_waiting(pages::PageNumber first, PerLcore& lcore) {
  const std::uint64_t now = now_ns();
  const std::lock_guard lock(faults_mutex_);
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    const bool its = waiting.first == first;
    if (its) {
      lcore.latency.observe(now - waiting.since_ns);
    }
    return its;
  });
}

}  // namespace godwit::memory
