#include "perf/benchmark.h"

#include <algorithm>
#include <chrono>

namespace godwit::perf {

std::map<std::string, Benchmark>& registry() {
  static std::map<std::string, Benchmark> benchmarks;
  return benchmarks;
}

std::vector<double> interleaved(int repetitions, const std::vector<std::function<void()>>& functions) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::vector<double>> times(functions.size());
  for (const auto& function : functions) function();
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    for (std::size_t i = 0; i < functions.size(); ++i) {
      const auto begin = Clock::now();
      functions[i]();
      times[i].push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
  }
  std::vector<double> medians;
  for (auto& each : times) {
    const auto middle = each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2);
    std::nth_element(each.begin(), middle, each.end());
    medians.push_back(*middle);
  }
  return medians;
}

}  // namespace godwit::perf
