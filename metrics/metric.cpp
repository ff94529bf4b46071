#include "metrics/metric.h"

#include <algorithm>

#include "base/check.h"

namespace godwit::metrics {

std::string_view to_string(Kind kind) {
  switch (kind) {
    case Kind::kCounter:
      return "counter";
    case Kind::kGauge:
      return "gauge";
    case Kind::kHistogram:
      break;
  }
  return "histogram";
}

void Histogram::observe(double value) {
  const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  ++counts_[static_cast<std::size_t>(bound - bounds_.begin())];
  sum_ += value;
}

Samples::Samples(MetricList metrics) {
  for (const Metric* metric : metrics) {
    families_.push_back({metric, {}});
  }
}

std::vector<Sample>& Samples::samples_of(const Metric& metric, std::size_t labels) {
  const auto family =
      std::find_if(families_.begin(), families_.end(), [&metric](const Family& f) { return f.metric == &metric; });
  GW_ASSERT(family != families_.end() && labels == label_names(metric).size());
  return family->samples;
}

void Samples::add(const Metric& metric, std::vector<std::string> label_values, double value) {
  GW_ASSERT(metric.kind != Kind::kHistogram);
  samples_of(metric, label_values.size()).push_back({std::move(label_values), value, {}});
}

void Samples::add(const Metric& metric, std::vector<std::string> label_values, const Histogram& histogram) {
  GW_ASSERT(metric.kind == Kind::kHistogram);
  samples_of(metric, label_values.size()).push_back({std::move(label_values), 0, histogram});
}

std::vector<std::string> label_names(const Metric& metric) {
  std::vector<std::string> names;
  for (std::string_view rest = metric.labels; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    names.emplace_back(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return names;
}

}  // namespace godwit::metrics
