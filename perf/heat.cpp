// Which pages a guest of half its memory has to fetch again, by our policy and by others, over recorded page traces.
// Ours knows what real sources give: an accessed bit a page for each scan period, and refaults.

#include <fmt/core.h>

#include <cmath>

#include "dataplane/memory/coldest_first.h"
#include "perf/benchmark.h"
#include "perf/page_trace.h"

namespace godwit::perf {
namespace {

constexpr const char* kTraces[] = {"compiler", "memcached", "scan"};
constexpr std::uint64_t kScans = 200;         // in each trace
constexpr std::uint64_t kBatchPagesMax = 64;  // as the evictor's

std::uint64_t refaults_ours(const PageTrace& trace, std::uint64_t budget, std::uint64_t scans) {
  pages::AccessHistory history(trace.pages);
  memory::ColdestFirst policy(history);
  pages::Bitmap here(trace.pages), accessed(trace.pages);
  std::uint64_t resident = 0, windows = 0;
  std::vector<bool> seen(trace.pages);
  std::vector<pages::PageNumber> out;
  const std::uint64_t period = std::max<std::uint64_t>(1, trace.windows.size() / scans);
  const std::uint64_t batch = std::max<std::uint64_t>(1, std::min(kBatchPagesMax, budget / 64));
  const auto touch = [&](std::uint32_t page) {
    accessed.set(page);
    if (here.test(page)) {
      return true;
    }
    if (seen[page]) {
      history.note(page);
    }
    seen[page] = true;
    if (resident >= budget) {
      out.clear();
      policy.choose(here, batch, out);
      for (const pages::PageNumber gone : out) {
        here.clear(gone);
      }
      resident -= out.size();
    }
    here.set(page);
    ++resident;
    return false;
  };
  return count_refaults(trace, touch, [&] {
    if (++windows % period == 0) {
      history.note(accessed);
      history.end_scan();
      accessed.clear_all();
    }
  });
}

double ratio(double ours, double other) { return (ours + 1) / (other + 1); }  // an optimum may be 0

std::expected<void, std::string> run(const Options& options, Result& result) {
  result.row({"trace", "pages", "ours", "LRU", "FIFO", "random", "optimum", "gap closed"});
  double log_lru = 0, log_fifo = 0;
  std::vector<PageTrace> traces;
  for (const std::string name : kTraces) {
    auto trace = load_page_trace(std::string(GODWIT_SOURCE_ROOT "/perf/traces/") + name + ".trace.gz");
    if (!trace) {
      return std::unexpected(trace.error());
    }
    if (options.quick) {
      trace->windows.resize(trace->windows.size() / 10);
    }
    const std::uint64_t budget = trace->pages / 2;
    const auto ours = static_cast<double>(refaults_ours(*trace, budget, kScans));
    const auto lru = static_cast<double>(refaults_lru(*trace, budget));
    const auto fifo = static_cast<double>(refaults_fifo(*trace, budget));
    const double random = refaults_random(*trace, budget);
    const auto optimum = static_cast<double>(refaults_optimum(*trace, budget));
    const double closed = random > optimum ? (random - ours) / (random - optimum) : 1;
    result.row({name, fmt::format("{}", trace->pages), fmt::format("{:.0f}", ours), fmt::format("{:.0f}", lru),
                fmt::format("{:.0f}", fifo), fmt::format("{:.0f}", random), fmt::format("{:.0f}", optimum),
                fmt::format("{:.0f} %", closed * 100)});
    result.metric("refaults." + name, ours);
    result.metric("gap_closed." + name, closed);
    result.ratio("vs_lru." + name, ratio(ours, lru));
    result.ratio("vs_fifo." + name, ratio(ours, fifo));
    log_lru += std::log(ratio(ours, lru));
    log_fifo += std::log(ratio(ours, fifo));
    traces.push_back(std::move(*trace));
  }
  result.ratio("refaults_vs_lru", std::exp(log_lru / std::size(kTraces)));
  result.ratio("refaults_vs_fifo", std::exp(log_fifo / std::size(kTraces)));
  for (const std::uint64_t scans : {50U, 100U, 200U, 400U, 800U}) {
    double log_ratio = 0;
    for (const PageTrace& trace : traces) {
      log_ratio += std::log(ratio(static_cast<double>(refaults_ours(trace, trace.pages / 2, scans)),
                                  static_cast<double>(refaults_lru(trace, trace.pages / 2))));
    }
    result.metric(fmt::format("sensitivity.scans_{}", scans), std::exp(log_ratio / static_cast<double>(traces.size())));
  }
  return {};
}

const Registration kRegistration{"heat", "refaults at half the memory: our ranking, LRU, FIFO, random, the optimum",
                                 run};

}  // namespace
}  // namespace godwit::perf
