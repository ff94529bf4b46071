// A fault on a missing page of tmpfs, answered from memory of this host by another thread that polls: what post-copy
// costs without a network. And what placing costs when nobody waits, page by page and in runs.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>

#include "perf/fault_pager.h"

namespace godwit::perf {
namespace {

std::expected<LocalPager, std::string> prepare(std::unique_ptr<FaultGuest>& guest, std::uint64_t page_count) {
  auto started = FaultGuest::start({.pages = page_count, .touches = page_count, .cpu = 1});
  if (!started) {
    return std::unexpected(started.error());
  }
  guest = std::move(*started);
  return LocalPager::make(*guest);
}

std::expected<void, std::string> measure_faults(std::uint64_t page_count, Result& result) {
  std::unique_ptr<FaultGuest> guest;
  auto paged = prepare(guest, page_count);
  if (!paged) {
    return std::unexpected(paged.error());
  }
  if (auto answered = paged->answer(*guest); !answered) {
    return answered;
  }
  if (guest->wrong()) {
    return std::unexpected("the guest read something else than was placed");
  }
  std::vector<std::uint64_t> times;
  for (const Touch& touch : guest->touches()) {
    times.push_back(touch.to_ns - touch.from_ns);
  }
  std::ranges::sort(times);
  const memory::LatencyFigures inside = paged->pager().stats().latency;
  result.row(times_head("fault, us"));
  report_times(
      "touch to content", "fault_local", [&](double share) { return percentile_ns(times, share); }, result);
  report_times(
      "of it, read to placed", "placed",
      [&](double share) { return share < 1 ? inside.percentile_ns(share) : inside.max_ns; }, result);
  return {};
}

/// Seconds to place all pages, `run` contiguous ones a call, from places that are not contiguous.
std::expected<double, std::string> measure_placing(std::uint64_t page_count, std::uint64_t run) {
  std::unique_ptr<FaultGuest> guest;
  auto paged = prepare(guest, page_count);
  if (!paged) {
    return std::unexpected(paged.error());
  }
  std::vector<memory::PageWrite> writes(run);
  const auto since = std::chrono::steady_clock::now();
  for (pages::PageNumber first = 0; first < page_count; first += run) {
    for (std::uint64_t i = 0; i < run; ++i) {
      // As from frames: pages that follow each other come from different buffers.
      writes[i] = paged->page((first + i) ^ 1);
      writes[i].page = first + i;
    }
    if (auto placed = paged->pager().place(0, writes); !placed) {
      return std::unexpected(placed.error().text);
    }
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const std::uint64_t page_count = options.quick ? 2048 : 65536;
  pin_to(0);
  if (auto measured = measure_faults(page_count, result); !measured) {
    return measured;
  }
  // In turns, so that a disturbance hits both.
  double us[2] = {};
  const std::uint64_t runs[2] = {1, 16};
  for (int turn = 0; turn < 4; ++turn) {
    const auto seconds = measure_placing(page_count, runs[turn % 2]);
    if (!seconds) {
      return std::unexpected(seconds.error());
    }
    us[turn % 2] += *seconds * 1e6 / static_cast<double>(page_count) / 2;
  }
  result.row({"nobody waits, us a page", fmt::format("{:.2f}", us[0]), "one a call"});
  result.row({"", fmt::format("{:.2f}", us[1]), "16 a call"});
  result.metric("place_single_us", us[0]);
  result.metric("place_run_us", us[1]);
  result.ratio("place_run_vs_single", us[0] / us[1]);
  return {};
}

const Registration kRegistration{"fault-local", "a fault on a missing page, answered from memory of this host", run};

}  // namespace
}  // namespace godwit::perf
