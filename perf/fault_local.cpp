// A fault on a missing page of tmpfs, answered from memory of this host by another thread that polls: what post-copy
// costs without a network. And what placing costs when nobody waits, page by page and in runs.

#include <fmt/core.h>

#include <chrono>

#include "perf/benchmark.h"
#include "perf/paged_guest.h"

namespace godwit::perf {
namespace {

std::expected<void, std::string> measure_faults(std::uint64_t page_count, Result& result) {
  auto paged = start_paged_guest(page_count, Pages::kMissing);
  if (!paged) {
    return std::unexpected(paged.error());
  }
  paged->guest->begin();
  std::vector<pages::PageNumber> asked;
  while (!paged->guest->done()) {
    asked.clear();
    if (auto read = paged->pager->read_faults(asked); !read) {
      return std::unexpected(read.error().text);
    }
    for (const pages::PageNumber page : asked) {
      const memory::PageWrite write = paged->page(page);
      if (auto placed = paged->pager->place(0, {&write, 1}); !placed) {
        return std::unexpected(placed.error().text);
      }
    }
  }
  const std::vector<std::uint64_t> times = paged->guest->times_ns();
  if (times.empty()) {
    return std::unexpected("the guest read something else than was placed");
  }
  const memory::LatencyFigures inside = paged->pager->stats().latency;
  result.row({"fault, us", "p50", "p90", "p99", "p99.9", "max"});
  const auto add = [&](const std::string& name, const std::string& key, auto percentile, std::uint64_t max_ns) {
    std::vector<std::string> cells{name};
    for (const auto& [word, share] : {std::pair("p50", 0.5), {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}}) {
      const double us = static_cast<double>(percentile(share)) / 1e3;
      result.metric(fmt::format("{}_{}_us", key, word), us);
      cells.push_back(fmt::format("{:.1f}", us));
    }
    cells.push_back(fmt::format("{:.1f}", static_cast<double>(max_ns) / 1e3));
    result.row(std::move(cells));
  };
  add(
      "touch to content", "fault_local", [&](double share) { return percentile_ns(times, share); }, times.back());
  add(
      "of it, read to placed", "placed", [&](double share) { return inside.percentile_ns(share); }, inside.max_ns);
  return {};
}

/// Seconds to place all pages, `run` contiguous ones a call, from places that are not contiguous.
std::expected<double, std::string> measure_placing(std::uint64_t page_count, std::uint64_t run) {
  auto paged = start_paged_guest(page_count, Pages::kMissing);
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
    if (auto placed = paged->pager->place(0, writes); !placed) {
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
