#pragma once
// The frame of godwit-perf: a benchmark is one file that registers a function; it measures, and fills a Result.
//
// Compare within one run only: call interleaved() with all the rivals, and form ratios of their medians; absolute
// figures depend on the machine. Thread: main. Times in seconds, rates in units of the key's last word. A benchmark
// that cannot run here returns why.
//
//   namespace { std::expected<void, std::string> run(const Options& options, Result& result) { ... } }
//   static const Registration kRegistration{"name", "what it measures", run};

#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace godwit::perf {

struct Options {
  bool quick = false;     // small inputs, few repetitions: does it work at all (tests)
  std::string json_path;  // where the figures go; main writes them, except for what a launcher replaces it by
  std::vector<std::string> arguments;  // what main does not know, for the benchmark
};

/// What a benchmark found. Keys with dots become nested objects in the JSON: "size_vs_best.random_10".
class Result {
 public:
  void metric(const std::string& key, double value) { metrics_[key] = value; }
  void ratio(const std::string& key, double value) { ratios_[key] = value; }
  void environment(const std::string& key, std::string value) { environment_[key] = std::move(value); }
  /// A row of the table for people; the first row is the head.
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

  [[nodiscard]] const std::map<std::string, double>& metrics() const { return metrics_; }
  [[nodiscard]] const std::map<std::string, double>& ratios() const { return ratios_; }
  [[nodiscard]] const std::map<std::string, std::string>& environment() const { return environment_; }
  [[nodiscard]] const std::vector<std::vector<std::string>>& rows() const { return rows_; }

 private:
  std::map<std::string, double> metrics_, ratios_;
  std::map<std::string, std::string> environment_;
  std::vector<std::vector<std::string>> rows_;
};

using Run = std::expected<void, std::string> (*)(const Options&, Result&);

enum class TakesArguments : bool { kNo, kYes };

struct Benchmark {
  std::string name;
  std::string summary;
  Run run;
  TakesArguments takes_arguments = TakesArguments::kNo;
};

/// All that registered, by name.
[[nodiscard]] std::map<std::string, Benchmark>& registry();

struct Registration {
  Registration(const char* name, const char* summary, Run run, TakesArguments takes_arguments = TakesArguments::kNo) {
    registry().emplace(name, Benchmark{name, summary, run, takes_arguments});
  }
};

/// Runs each function once to warm up, then all in turn `repetitions` times, so that a disturbance hits all alike.
/// Returns the median time of each in seconds.
[[nodiscard]] std::vector<double> interleaved(int repetitions, const std::vector<std::function<void()>>& functions);

/// Keeps a value computed and the compiler ignorant of what for.
template <class T>
void consume(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

}  // namespace godwit::perf
