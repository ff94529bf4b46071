#include "qemu-bridge/agent/fault_ranges.h"

#include <algorithm>

namespace godwit::bridge {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kPagesPerHugePage = 512;

std::uint64_t divide_up(std::uint64_t dividend, std::uint64_t divisor) { return (dividend + divisor - 1) / divisor; }

/// The last page not behind `page` at which a range may begin.
std::uint64_t range_start_before(std::uint64_t page, std::span<const std::uint64_t> region_bytes) {
  std::uint64_t first = 0;
  for (const std::uint64_t bytes : region_bytes) {
    const std::uint64_t pages = bytes / kPageBytes;
    if (page < first + pages) {
      return first + (page - first) / kPagesPerHugePage * kPagesPerHugePage;
    }
    first += pages;
  }
  return first;
}

}  // namespace

std::vector<FaultDescriptor> fault_ranges(std::span<const std::uint64_t> region_bytes, std::uint32_t vcpus) {
  std::uint64_t pages = 0;
  for (const std::uint64_t bytes : region_bytes) {
    pages += bytes / kPageBytes;
  }
  const std::uint64_t wanted = std::max(divide_up(pages, kPagesPerUserfaultfd), divide_up(vcpus, kVcpusPerUserfaultfd));
  const std::uint64_t count = std::clamp<std::uint64_t>(wanted, 1, kUserfaultfdsMax);
  std::vector<FaultDescriptor> ranges;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t first = range_start_before(pages * i / count, region_bytes);
    if (ranges.empty() || first > ranges.back().first_page) {
      ranges.push_back({.first_page = first});
    }
  }
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    ranges[i].pages = (i + 1 < ranges.size() ? ranges[i + 1].first_page : pages) - ranges[i].first_page;
  }
  return ranges;
}

}  // namespace godwit::bridge
