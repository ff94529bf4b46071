// Which pages a guest of half its memory has to fetch again, by our policy and by others, over recorded page traces.
// Ours knows what real sources give: an accessed bit a page for each scan period, and refaults.

#include <fmt/core.h>

#include <cmath>

#include "dataplane/memory/coldest_first.h"
#include "perf/benchmark.h"
#include "perf/page_trace.h"

namespace godwit::perf {
namespace {

constexpr std::uint64_t kScans = 200;         // in each trace
constexpr std::uint64_t kBatchPagesMax = 64;  // as the evictor's

struct Recorded {
  const char* name;
  bool held_out;  // recorded when the ranking was finished, and never looked at before
};
constexpr Recorded kTraces[] = {{"compiler", false},  {"compiler-debug", false}, {"join", false},
                                {"memcached", false}, {"memcached-flat", false}, {"perl", false},
                                {"python", false},    {"scan", false},           {"shop", false},
                                {"sort", false},      {"graph", true},           {"shop-2", true},
                                {"sort-field", true}};

/// Asked as the evictor asks: what is in memory is looked up when the policy wants it fresh.
class Memory {
 public:
  Memory(std::uint32_t pages, std::uint64_t budget)
      : policy_(pages), resident_(pages), looked_up_(pages), accessed_(pages), seen_(pages), budget_(budget) {}

  bool touch(std::uint32_t page) {
    accessed_.set(page);
    if (resident_.test(page)) {
      return true;
    }
    if (count_ >= budget_) {
      evict(std::clamp<std::uint64_t>(budget_ / 64, 1, kBatchPagesMax));
    }
    if (seen_.test(page)) {
      policy_.note_placed(page);  // of a first touch nobody is told
    }
    seen_.set(page);
    resident_.set(page);
    ++count_;
    return false;
  }
  void end_scan() {
    policy_.end_scan(accessed_);
    accessed_.clear_all();
  }

 private:
  void evict(std::uint64_t batch) {
    std::vector<pages::PageNumber> out;
    policy_.choose(looked_up_, batch, out);
    if (out.empty()) {
      looked_up_ = resident_;
      policy_.choose(looked_up_, batch, out);
    }
    for (const pages::PageNumber page : out) {
      looked_up_.clear(page);
      resident_.clear(page);
    }
    count_ -= out.size();
  }

  memory::ColdestFirst policy_;
  pages::Bitmap resident_, looked_up_, accessed_, seen_;
  const std::uint64_t budget_;
  std::uint64_t count_ = 0;
};

/// `scans` = 0: none.
std::uint64_t refaults_ours(const PageTrace& trace, std::uint64_t budget, std::uint64_t scans) {
  Memory memory(trace.pages, budget);
  const std::uint64_t period = scans == 0 ? UINT64_MAX : std::max<std::uint64_t>(1, trace.windows.size() / scans);
  std::uint64_t windows = 0;
  return count_refaults(
      trace, [&](std::uint32_t page) { return memory.touch(page); },
      [&] {
        if (++windows % period == 0) {
          memory.end_scan();
        }
      });
}

double ratio(double ours, double other) { return (ours + 1) / (other + 1); }  // an optimum may be 0

struct Means {
  double log_lru = 0, log_fifo = 0, traces = 0;
};

/// A row of the table, and what it adds to the means.
void replay(const Recorded& recorded, const PageTrace& trace, Result& result, Means& means) {
  const std::uint64_t budget = trace.pages / 2;
  const auto ours = static_cast<double>(refaults_ours(trace, budget, kScans));
  const auto lru = static_cast<double>(refaults_lru(trace, budget));
  const auto fifo = static_cast<double>(refaults_fifo(trace, budget));
  const double random = refaults_random(trace, budget);
  const auto optimum = static_cast<double>(refaults_optimum(trace, budget));
  const double closed = random > optimum ? (random - ours) / (random - optimum) : 1;
  const std::string name = recorded.name;
  std::vector<std::string> row{name + (recorded.held_out ? " (held out)" : ""), fmt::format("{}", trace.pages)};
  for (const double refaults : {ours, lru, fifo, random, optimum}) {
    row.push_back(fmt::format("{:.0f}", refaults));
  }
  row.push_back(fmt::format("{:.2f}", ratio(ours, lru)));
  row.push_back(fmt::format("{:.0f} %", closed * 100));
  for (const std::uint64_t scans : {0U, 50U, 100U, 400U}) {
    const double other = ratio(static_cast<double>(refaults_ours(trace, budget, scans)), lru);
    row.push_back(fmt::format("{:.2f}", other));
    result.metric(fmt::format("vs_lru_with_scans.{}.{}", scans, name), other);
  }
  result.row(std::move(row));
  result.metric("refaults." + name, ours);
  result.metric("gap_closed." + name, closed);
  result.ratio("vs_lru." + name, ratio(ours, lru));
  result.ratio("vs_fifo." + name, ratio(ours, fifo));
  means.log_lru += std::log(ratio(ours, lru));
  means.log_fifo += std::log(ratio(ours, fifo));
  ++means.traces;
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  result.row({"trace", "pages", "ours", "LRU", "FIFO", "random", "optimum", "vs LRU", "gap closed", "no scans", "50",
              "100", "400"});
  Means all, held_out;
  for (const Recorded& recorded : kTraces) {
    auto trace = load_page_trace(std::string(GODWIT_SOURCE_ROOT "/perf/traces/") + recorded.name + ".trace.gz");
    if (!trace) {
      return std::unexpected(trace.error());
    }
    if (options.quick) {
      trace->windows.resize(trace->windows.size() / 10);
    }
    replay(recorded, *trace, result, recorded.held_out ? held_out : all);
  }
  for (Means* means : {&all, &held_out}) {
    const std::string suffix = means == &held_out ? "_held_out" : "";
    result.ratio("refaults_vs_lru" + suffix, std::exp(means->log_lru / means->traces));
    result.ratio("refaults_vs_fifo" + suffix, std::exp(means->log_fifo / means->traces));
  }
  return {};
}

const Registration kRegistration{"heat", "refaults at half the memory: our ranking, LRU, FIFO, random, the optimum",
                                 run};

}  // namespace
}  // namespace godwit::perf
