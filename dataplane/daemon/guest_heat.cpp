#include "dataplane/daemon/guest_heat.h"

#include <ctime>

namespace godwit::daemon {
namespace {

/// What the guest pays for the first write to a page after a scan. Measured: 0.9 to 1.5 us where the kernel marks by
/// itself, 10 us where a thread of ours answers the fault.
constexpr std::uint64_t kMarkedWriteNs = 1'500;
constexpr std::uint64_t kAnsweredWriteNs = 10'000;

std::uint64_t thread_time_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

/// Into the table too: no later scan finds these writes again.
std::expected<void, ApiError> collect_writes(Guest& guest) {
  pages::Bitmap written(guest.memory->page_count());
  const auto collected = guest.memory->collect_written(written);
  const pages::Generation generation = guest.epoch_in_doubt ? pages::kUnknownGeneration : guest.epoch_now;
  if (!collected) {
    guest.table.fill(pages::kUnknownGeneration);  // nobody knows what was written
    return std::unexpected(ApiError{api::Error::KERNEL, collected.error().text});
  }
  guest.table.set_written(written, generation);
  if (guest.memory->state() != nullptr) {
    guest.memory->state()->store(guest.table, guest.epoch_now);
  }
  guest.accesses.note(written);
  return {};
}

}  // namespace

std::string writes_refusal(const Guest& guest) {
  return guest.memory->tracker() == memory::TrackerKind::kHashes
             ? "tracker hashes would read all of its memory for each scan"
             : "";
}

std::expected<api::NoteAccessesResult, ApiError> note_accesses(Guest& guest, const Accesses& accesses,
                                                               LiveSplit* split) {
  const std::uint64_t began_ns = thread_time_ns();
  api::NoteAccessesResult result;
  const bool by_writes = accesses.source == api::ACCESS_WRITES;
  if (by_writes) {
    if (auto collected = collect_writes(guest); !collected) {
      return std::unexpected(collected.error());
    }
  } else {
    guest.accesses.note(accesses.first_page, accesses.accessed);
  }
  std::uint64_t cost_ns = 0;
  if (accesses.ends) {
    if (split != nullptr) {
      split->end_scan(guest.accesses.noted());
    }
    guest.accessed_pages = guest.accesses.end_scan();
    guest.access_source = accesses.source;
    result.set_pages(guest.accessed_pages);
    const bool answered = guest.memory->tracker() == memory::TrackerKind::kWriteProtectEvents;
    cost_ns += by_writes ? guest.accessed_pages * (answered ? kAnsweredWriteNs : kMarkedWriteNs) : 0;
  }
  cost_ns += thread_time_ns() - began_ns;
  result.set_cost_us(cost_ns / 1000);
  return result;
}

api::HeatMap heat_map(const Guest& guest, std::uint32_t cells) {
  api::HeatMap map;
  map.set_source(guest.access_source);
  map.set_scans(guest.accesses.scans());
  map.set_page_count(guest.accesses.page_count());
  map.set_pages_last_scan(guest.accessed_pages);
  const auto heat = pages::heat_cells(guest.accesses, cells);
  map.set_cells(heat.data(), heat.size());
  return map;
}

}  // namespace godwit::daemon
