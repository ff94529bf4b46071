#pragma once
// What a daemon shows to Prometheus, as values: each metric is described once, as a constant, and a scrape is a Samples
// of all of them. Names, units and labels follow Prometheus' conventions: base units in the name, counters end in
// _total, few values a label. One thread an object; no failure: naming a metric that is not of the list, or other
// labels than it has, is our own mistake.

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace godwit::metrics {

enum class Kind : std::uint8_t { kCounter, kGauge, kHistogram };
[[nodiscard]] std::string_view to_string(Kind kind);

/// A constant: Samples know it by its address.
struct Metric {
  std::string_view name;
  Kind kind = Kind::kCounter;
  std::string_view labels;  // "lane,direction"; empty: none
  std::string_view help;
};
using MetricList = std::span<const Metric* const>;

/// Counts observations by the least of the ascending bounds that they do not exceed. Never falls.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void observe(double value);
  [[nodiscard]] const std::vector<double>& bounds() const { return bounds_; }
  /// One a bound, and the last for what exceeds all.
  [[nodiscard]] const std::vector<std::uint64_t>& counts() const { return counts_; }
  [[nodiscard]] double sum() const { return sum_; }

 private:
  std::vector<double> bounds_;
  std::vector<std::uint64_t> counts_;
  double sum_ = 0;
};

struct Sample {
  std::vector<std::string> label_values;  // in the order of the metric's labels
  double value = 0;
  std::optional<Histogram> histogram;  // kHistogram
};

class Samples {
 public:
  explicit Samples(MetricList metrics);

  void add(const Metric& metric, std::vector<std::string> label_values, double value);
  void add(const Metric& metric, std::vector<std::string> label_values, std::uint64_t value) {
    add(metric, std::move(label_values), static_cast<double>(value));
  }
  void add(const Metric& metric, std::vector<std::string> label_values, const Histogram& histogram);

  struct Family {
    const Metric* metric;
    std::vector<Sample> samples;
  };
  [[nodiscard]] const std::vector<Family>& families() const { return families_; }

 private:
  std::vector<Sample>& samples_of(const Metric& metric, std::size_t labels);

  std::vector<Family> families_;
};

/// "lane,direction" as its names.
[[nodiscard]] std::vector<std::string> label_names(const Metric& metric);

}  // namespace godwit::metrics
