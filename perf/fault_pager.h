#pragma once
// What answers the faults of a FaultGuest: its RAM and tracker as a data plane has them, and for `fault-local` a pager
// whose pages come from this process.
//
// Owner: one benchmark, which keeps the guest longer. Thread: any one. Failure: one line.

#include <cstddef>
#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/memory/demand_pager.h"
#include "perf/benchmark.h"
#include "perf/fault_guest.h"

namespace godwit::perf {

struct TrackedRam {
  std::unique_ptr<memory::GuestRam> ram;
  std::shared_ptr<memory::KnownHashes> hashes;
  std::unique_ptr<memory::WrittenTracker> tracker;  // the first that this kernel can do; not armed
};
/// Once for each guest.
std::expected<TrackedRam, std::string> track(const FaultGuest& guest);
std::expected<std::unique_ptr<memory::GuestRam>, std::string> map_ram(const FaultGuest& guest);

/// Where the missing pages of a guest are noted; nobody takes them over, so it can be removed at once.
std::string missing_file();

/// Arms tracker and pager; these pages are missing.
std::expected<std::unique_ptr<memory::DemandPager>, std::string> page_guest(const TrackedRam& tracked,
                                                                            const pages::Bitmap& missing);

/// A guest of which all pages are missing, and the pages elsewhere in this process.
class LocalPager {
 public:
  static std::expected<LocalPager, std::string> make(const FaultGuest& guest);
  [[nodiscard]] std::uint64_t page_count() const { return tracked_.ram->page_count(); }
  [[nodiscard]] memory::DemandPager& pager() { return *pager_; }
  [[nodiscard]] memory::PageWrite page(pages::PageNumber page) const;
  /// Lets the guest begin, and answers until it is done.
  std::expected<void, std::string> answer(FaultGuest& guest);

 private:
  TrackedRam tracked_;
  std::unique_ptr<memory::DemandPager> pager_;
  std::vector<std::byte> source_;
};

/// Puts a row into the table, and metrics {key}_{p50,p90,p99,p99_9,max}_us. `percentile_ns` takes a share, 1: the
/// longest.
void report_times(const std::string& name, const std::string& key,
                  const std::function<std::uint64_t(double share)>& percentile_ns, Result& result);
/// The row above.
std::vector<std::string> times_head(const std::string& name);

}  // namespace godwit::perf
