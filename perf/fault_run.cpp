#include "perf/fault_run.h"

#include <fmt/core.h>

#include <algorithm>

#include "perf/fault_pager.h"

namespace godwit::perf {
namespace {

constexpr Duration kRunMax = milliseconds(60'000);

/// What came is the source's.
std::expected<void, std::string> compare(const FaultGuest& guest, const FaultGuest& source) {
  const auto here = map_ram(guest);
  const auto there = map_ram(source);
  if (!here || !there) return std::unexpected(!here ? here.error() : there.error());
  for (pages::PageNumber page = 0; page < guest.touches().size(); ++page) {
    if (guest.touches()[page].from_ns != 0 && !std::ranges::equal((*here)->mapped(page), (*there)->mapped(page))) {
      return std::unexpected(fmt::format("page {} of the guest is not the source's", page));
    }
  }
  return {};
}

}  // namespace

std::expected<std::unique_ptr<FaultRun>, std::string> run_fault(const FaultRunOptions& options) {
  // Guests have the source's CPU, which has nothing to do while they run: perf/README.md.
  FaultGuestOptions of_guest{.pages = kFaultPages,
                             .touches = options.local_touches,
                             .cpu = static_cast<unsigned>(std::stoul(options.cpus[0])),
                             .goes_first = true};
  auto local = FaultGuest::start(of_guest);
  of_guest.touches = options.touches;
  auto guest = FaultGuest::start(of_guest);
  auto source = FaultGuest::start(of_guest);
  for (const auto* started : {&local, &guest, &source}) {
    if (!*started) return std::unexpected(started->error());
  }
  auto run = std::make_unique<FaultRun>();
  run->local = std::move(*local);
  run->guest = std::move(*guest);
  const TemporaryDirectory directory;
  if (run->shared.get() == nullptr || !directory.made()) {
    return std::unexpected("no shared memory or temporary directory");
  }
  FaultShared& shared = *run->shared.get();
  Children children;
  FaultEndOptions end{.socket = directory.path() + "/memif.sock",
                      .local = run->local.get(),
                      .background = options.background,
                      .cipher = options.cipher};
  for (const bool is_source : {false, true}) {
    end.is_source = is_source;
    end.cpus = options.cpus[is_source ? 0 : 1];
    end.guest = is_source ? source->get() : run->guest.get();
    if (auto started = children.start([&end, &shared] { return run_fault_end(end, shared); }); !started) {
      return std::unexpected(started.error());
    }
  }
  if (auto ended = wait_for_ends(children, kRunMax, shared.errors); !ended) return std::unexpected(ended.error());
  if (run->local->wrong() || run->guest->wrong()) {
    return std::unexpected("a guest read something else than there was to place");
  }
  if (auto equal = compare(*run->guest, **source); !equal) return std::unexpected(equal.error());
  return run;
}

void FaultTimes::add(const FaultGuest& guest, std::uint64_t first, std::uint64_t end) {
  const auto touches = guest.touches();
  const std::uint64_t from_ns = touches[FaultGuest::page_of_touch(first, touches.size())].from_ns;
  std::uint64_t to_ns = from_ns;
  for (std::uint64_t i = first; i < end; ++i) {
    const Touch& touch = touches[FaultGuest::page_of_touch(i, touches.size())];
    if (touch.waited) {
      times_ns.push_back(touch.to_ns - touch.from_ns);
      to_ns = touch.to_ns;
    }
  }
  span_ns += to_ns - from_ns;
}

void report_faults(const std::string& name, const std::string& key, FaultTimes& faults, Result& result) {
  std::ranges::sort(faults.times_ns);
  report_times(
      name, key, [&](double share) { return percentile_ns(faults.times_ns, share); }, result);
  result.metric(key + "_per_s",
                static_cast<double>(faults.times_ns.size()) * 1e9 / static_cast<double>(faults.span_ns));
}

}  // namespace godwit::perf
