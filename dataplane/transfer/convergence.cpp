#include "dataplane/transfer/convergence.h"

#include <algorithm>

#include "dataplane/pages/page.h"

namespace godwit::transfer {
namespace {
constexpr std::uint64_t kMeasurePagesMin = 256;  // fewer say more about round trips than about the link
constexpr std::uint64_t kPageBits = 8 * (pages::kPageSize + 64);  // with its share of headers
constexpr Duration kZeroPageTime{200};                            // giving its memory back at the destination
constexpr std::uint64_t kMegabyte = 1'000'000;

std::uint64_t per_second(std::uint64_t amount, Duration took) {
  const auto us = static_cast<std::uint64_t>(std::max<std::int64_t>(took.us(), 1));
  return amount > UINT64_MAX / 1'000'000 ? amount / us * 1'000'000 : amount * 1'000'000 / us;
}
}  // namespace

void Convergence::round_moved(std::uint64_t pages, Duration took) {
  if (pages >= kMeasurePagesMin) {
    link_bps_ = std::max<std::uint64_t>(per_second(pages * kPageBits, took), 1'000'000);
  }
}

void Convergence::scan_found(std::uint64_t pages, Duration since_last, Duration scan_took) {
  written_pages_per_s_ = per_second(pages, since_last);
  scan_time_ = scan_took;
}

Duration Convergence::time_for(std::uint64_t content_pages, std::uint64_t zero_pages, Duration rtt) const {
  const std::uint64_t us = content_pages * kPageBits / std::max<std::uint64_t>(link_bps_ / 1'000'000, 1);
  return microseconds(static_cast<std::int64_t>(us)) + kZeroPageTime * static_cast<std::int64_t>(zero_pages) +
         scan_time_ * 2 + rtt * 2;
}

std::string Convergence::explain(std::uint64_t content_pages, Duration estimate, Duration limit) const {
  const auto text = [](std::uint64_t n) { return std::to_string(n); };
  return "the guest writes " + text(written_pages_per_s_ * pages::kPageSize / kMegabyte) + " MB/s, the link moves " +
         text(link_bps_ / 8 / kMegabyte) + " MB/s, the rest of " + text(content_pages * pages::kPageSize / kMegabyte) +
         " MB would take " + std::to_string(estimate.us() / 1000) + " ms of downtime, the limit is " +
         std::to_string(limit.us() / 1000) + " ms";
}

}  // namespace godwit::transfer
