// A fault on a missing page of tmpfs, answered from another process's memory over memif by what two data planes run;
// without other load, and beside the background stream. In the same run, by the same CPUs in the same company, the same
// fault answered from local memory.

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <map>

#include "perf/fault_pager.h"
#include "perf/fault_run.h"
#include "perf/processes.h"

namespace godwit::perf {
namespace {

const std::map<std::string, transport::Cipher> kCiphers{{"none", transport::Cipher::kNone},
                                                        {"aes-128-gcm", transport::Cipher::kAes128Gcm},
                                                        {"aes-256-gcm", transport::Cipher::kAes256Gcm}};

struct Settings {
  int runs = 3;  // of each kind
  /// Touches of each run that are not counted: caches, clocks, and jobs that post-copy begins with.
  std::uint64_t warm_up = 1000;
  std::uint64_t pages = 65'536;    // of a guest, all missing
  std::uint64_t touches = 10'000;  // counted, where nothing comes unasked
  transport::Cipher cipher = transport::Cipher::kNone;
};

std::expected<Settings, std::string> parse(const Options& options) {
  Settings settings;
  if (options.quick) {
    settings = {.runs = 1, .warm_up = 50, .touches = 500};
  }
  CLI::App app("fault");
  std::string cipher = "none";
  app.add_option("--cipher", cipher)->check(CLI::IsMember(kCiphers));
  app.add_option("--runs", settings.runs)->check(CLI::Range(1, 100));
  app.add_option("--touches", settings.touches)->check(CLI::Range(std::uint64_t{1}, kFaultPages - settings.warm_up));
  try {
    app.parse(std::vector<std::string>(options.arguments.rbegin(), options.arguments.rend()));
  } catch (const CLI::Error& error) {
    return std::unexpected(std::string(error.what()) +
                           "; options: --cipher none|aes-128-gcm|aes-256-gcm --runs N --touches N");
  }
  settings.cipher = kCiphers.at(cipher);
  return settings;
}

/// From one step to the next, of faults for which the page was asked for.
struct Way {
  static constexpr std::array<std::pair<const char*, const char*>, 6> kNames{
      {{"touch to fault read", "read"},
       {"to request sent", "asked"},
       {"to page read by the source", "answered"},
       {"to page arrived", "arrived"},
       {"to page placed", "placed"},
       {"to content seen", "seen"}}};
  std::array<std::vector<std::uint64_t>, kNames.size()> times_ns;

  void add(const FaultGuest& guest, const FaultShared& shared, std::uint64_t first, std::uint64_t end) {
    for (std::uint64_t i = first; i < end; ++i) {
      const pages::PageNumber page = FaultGuest::page_of_touch(i, guest.touches().size());
      const Touch& touch = guest.touches()[page];
      const FaultSteps& steps = shared.steps[page];
      const std::array at{touch.from_ns,    steps.read_ns,   steps.asked_ns, steps.answered_ns,
                          steps.arrived_ns, steps.placed_ns, touch.to_ns};
      // Woken on another CPU, the guest may have gone on before the lcore has noted that the page is placed.
      const bool asked = touch.waited && steps.read_ns != 0 && steps.answered_ns >= steps.read_ns;
      for (std::size_t step = 0; asked && step < times_ns.size(); ++step) {
        times_ns[step].push_back(at[step + 1] > at[step] ? at[step + 1] - at[step] : 0);
      }
    }
  }
};

struct Figures {
  FaultTimes local, memif, loaded;
  Way way, way_loaded;
  std::uint64_t background_pages = 0, background_ns = 0;
};

std::expected<void, std::string> run_once(const Settings& settings, bool background,
                                          const std::array<std::string, 2>& cpus, Figures& figures) {
  const std::uint64_t touches = background ? kFaultPages : settings.touches + settings.warm_up;
  const std::uint64_t local_touches = settings.touches + settings.warm_up;
  const auto done = run_fault({.touches = touches,
                               .local_touches = local_touches,
                               .background = background,
                               .cipher = settings.cipher,
                               .cpus = cpus});
  if (!done) return std::unexpected(done.error());
  const FaultRun& run = **done;
  const FaultShared& shared = *run.shared.get();
  figures.local.add(*run.local, settings.warm_up, local_touches);
  (background ? figures.loaded : figures.memif).add(*run.guest, settings.warm_up, touches);
  (background ? figures.way_loaded : figures.way).add(*run.guest, shared, settings.warm_up, touches);
  if (background) {
    figures.background_pages += shared.placed_pages;
    figures.background_ns += shared.last_placed_ns - shared.first_placed_ns;
  }
  return {};
}

void report_way(const std::string& name, const std::string& key, Way& way, Result& result) {
  result.row(times_head(name));
  for (std::size_t step = 0; step < Way::kNames.size(); ++step) {
    auto& times = way.times_ns[step];
    if (times.empty()) return;
    std::ranges::sort(times);
    report_times(
        Way::kNames[step].first, fmt::format("{}_{}", key, Way::kNames[step].second),
        [&](double share) { return percentile_ns(times, share); }, result);
  }
}

void report(Figures& figures, Result& result) {
  result.row(times_head("fault, us"));
  report_faults("from local memory", "fault_local", figures.local, result);
  report_faults("over memif", "fault_memif", figures.memif, result);
  report_faults("beside the background", "fault_loaded", figures.loaded, result);
  report_way("over memif, step by step", "step", figures.way, result);
  report_way("beside the background", "step_loaded", figures.way_loaded, result);
  const double gbps =
      static_cast<double>(figures.background_pages * pages::kPageSize * 8) / static_cast<double>(figures.background_ns);
  result.metric("background_gbps", gbps);
  const auto per_s = [&](const char* key) { return fmt::format("{:.0f}", result.metrics().at(key)); };
  result.row({"faults a second", per_s("fault_local_per_s"), per_s("fault_memif_per_s"), per_s("fault_loaded_per_s")});
  result.row({"the background", fmt::format("{:.2f} Gbit/s", gbps)});
  const auto ratio = [&](const std::string& name, const std::string& over, const std::string& under) {
    result.ratio(name, result.metrics().at(over) / result.metrics().at(under));
  };
  ratio("p50_vs_local", "fault_memif_p50_us", "fault_local_p50_us");
  ratio("p99_vs_local", "fault_memif_p99_us", "fault_local_p99_us");
  ratio("loaded_p50_vs_local", "fault_loaded_p50_us", "fault_local_p50_us");
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
    for (const bool background : {false, true}) {
      if (auto done = run_once(*settings, background, *cpus, figures); !done) return done;
    }
  }
  for (const auto& [name, faults] :
       {std::pair("local memory", &figures.local), {"memif", &figures.memif}, {"memif under load", &figures.loaded}}) {
    if (faults->times_ns.empty()) return std::unexpected(fmt::format("no touch waited for its page: {}", name));
  }
  report(figures, result);
  return {};
}

const Registration kRegistration{"fault", "a fault on a missing page, answered over memif", run, TakesArguments::kYes};

}  // namespace
}  // namespace godwit::perf
