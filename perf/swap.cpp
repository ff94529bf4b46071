// A fault on a page that was evicted to a sub host's page store, over memif: with room for all that comes back, and
// within a budget, where each page that comes drives another one out. In the same run, by the same CPUs, the demand
// page of a post-copy.

#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "perf/fault_pager.h"
#include "perf/fault_run.h"
#include "perf/swap_end.h"

namespace godwit::perf {
namespace {

constexpr Duration kRunMax = milliseconds(60'000);

struct Settings {
  int runs = 3;  // of each kind
  std::uint64_t warm_up = 1000;
  std::uint64_t touches = 10'000;     // counted
  std::uint64_t budget_pages = 4096;  // the least that a data plane accepts
};

std::expected<Settings, std::string> parse(const Options& options) {
  Settings settings;
  if (options.quick) {
    settings = {.runs = 1, .warm_up = 50, .touches = 500};
  }
  CLI::App app("swap");
  app.add_option("--runs", settings.runs)->check(CLI::Range(1, 100));
  app.add_option("--touches", settings.touches)->check(CLI::Range(std::uint64_t{1}, kFaultPages / 2));
  app.add_option("--budget-pages", settings.budget_pages)->check(CLI::Range(std::uint64_t{4096}, kFaultPages / 4));
  try {
    app.parse(std::vector<std::string>(options.arguments.rbegin(), options.arguments.rend()));
  } catch (const CLI::Error& error) {
    return std::unexpected(std::string(error.what()) + "; options: --runs N --touches N --budget-pages N");
  }
  return settings;
}

struct Figures {
  FaultTimes demand, refetch, pressed;
  std::uint64_t evicted_pages = 0;  // while somebody waited for others
  double evict_all_s = 0;
};

std::expected<void, std::string> run_once(const Settings& settings, bool pressed,
                                          const std::array<std::string, 2>& cpus, Figures& figures) {
  // Before it counts, what has come back must have filled the budget.
  const std::uint64_t warm_up = settings.warm_up + (pressed ? settings.budget_pages : 0);
  const std::uint64_t touches = warm_up + settings.touches;
  const auto other_cpu = static_cast<unsigned>(std::stoul(cpus[0]));
  auto guest = FaultGuest::start(
      {.pages = kFaultPages, .touches = touches, .cpu = other_cpu, .goes_first = true, .writes = true});
  if (!guest) return std::unexpected(guest.error());
  const SharedMemory<SwapShared> memory;
  const TemporaryDirectory directory("/dev/shm");
  if (memory.get() == nullptr || !directory.made()) return std::unexpected("no shared memory or temporary directory");
  SwapShared& shared = *memory.get();
  Children children;
  SwapEndOptions end{.socket = directory.path() + "/memif.sock",
                     .directory = directory.path(),
                     .evictor_cpu = other_cpu,
                     .guest = guest->get(),
                     .pages = kFaultPages,
                     .budget_pages = pressed ? settings.budget_pages : 0};
  for (const bool is_store : {false, true}) {
    end.is_store = is_store;
    end.cpus = cpus[is_store ? 0 : 1];
    if (auto started = children.start([&end, &shared] { return run_swap_end(end, shared); }); !started) {
      return started;
    }
  }
  if (auto ended = wait_for_ends(children, kRunMax, shared.errors); !ended) return ended;
  if ((*guest)->wrong()) return std::unexpected("the guest read something else than it had written");
  (pressed ? figures.pressed : figures.refetch).add(**guest, warm_up, touches);
  figures.evict_all_s += shared.evict_all_s;
  figures.evicted_pages += shared.evicted_pages;
  return {};
}

void report(Figures& figures, const Settings& settings, Result& result) {
  result.row(times_head("fault, us"));
  report_faults("demand page of a post-copy", "swap_demand", figures.demand, result);
  report_faults("refetch, room for all", "swap_refetch", figures.refetch, result);
  report_faults("refetch within a budget", "swap_pressed", figures.pressed, result);
  const auto& metrics = result.metrics();
  result.ratio("refetch_vs_demand_p50", metrics.at("swap_refetch_p50_us") / metrics.at("swap_demand_p50_us"));
  result.ratio("pressed_vs_demand_p50", metrics.at("swap_pressed_p50_us") / metrics.at("swap_demand_p50_us"));
  const double out_per_s = 2.0 * settings.runs * static_cast<double>(kFaultPages) / figures.evict_all_s;
  result.metric("swap_evicted_to_store_per_s", out_per_s);
  result.metric("swap_pressed_evicted_pages", static_cast<double>(figures.evicted_pages));
  result.row({"all of it out to the store", fmt::format("{:.0f} pages/s", out_per_s)});
  result.row({"evicted while it ran within a budget", fmt::format("{} pages", figures.evicted_pages)});
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const auto settings = parse(options);
  if (!settings) return std::unexpected(settings.error());
  const auto cpus = two_cpus();
  if (!cpus) return std::unexpected(cpus.error());
  const Interruptible interruptible;
  Figures figures;
  // In turns, so that a disturbance hits all.
  for (int i = 0; i < settings->runs; ++i) {
    const std::uint64_t touches = settings->warm_up + settings->touches;
    const auto fault = run_fault({.touches = touches, .local_touches = 1, .cpus = *cpus});
    if (!fault) return std::unexpected(fault.error());
    figures.demand.add(*(*fault)->guest, settings->warm_up, touches);
    for (const bool pressed : {false, true}) {
      if (auto done = run_once(*settings, pressed, *cpus, figures); !done) return done;
    }
  }
  for (const FaultTimes* times : {&figures.demand, &figures.refetch, &figures.pressed}) {
    if (times->times_ns.empty()) return std::unexpected("no touch waited for its page");
  }
  if (figures.evicted_pages < settings->touches) return std::unexpected("nothing was evicted within the budget");
  report(figures, *settings, result);
  return {};
}

const Registration kRegistration{"swap", "a fault on a page that a page store holds, over memif", run,
                                 TakesArguments::kYes};

}  // namespace
}  // namespace godwit::perf
