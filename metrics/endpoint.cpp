#include "metrics/endpoint.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <exception>
#include <limits>
#include <mutex>
#include <utility>

namespace godwit::metrics {
namespace {

prometheus::MetricType type_of(Kind kind) {
  switch (kind) {
    case Kind::kCounter:
      return prometheus::MetricType::Counter;
    case Kind::kGauge:
      return prometheus::MetricType::Gauge;
    case Kind::kHistogram:
      break;
  }
  return prometheus::MetricType::Histogram;
}

prometheus::ClientMetric::Histogram convert(const Histogram& histogram) {
  prometheus::ClientMetric::Histogram out;
  out.sample_sum = histogram.sum();
  for (std::size_t i = 0; i < histogram.counts().size(); ++i) {
    out.sample_count += histogram.counts()[i];
    const bool last = i == histogram.bounds().size();
    out.bucket.push_back({.cumulative_count = out.sample_count,
                          .upper_bound = last ? std::numeric_limits<double>::infinity() : histogram.bounds()[i]});
  }
  return out;
}

prometheus::ClientMetric convert(const Metric& metric, const std::vector<std::string>& labels, const Sample& sample) {
  prometheus::ClientMetric out;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    out.label.push_back({labels[i], sample.label_values[i]});
  }
  switch (metric.kind) {
    case Kind::kCounter:
      out.counter.value = sample.value;
      break;
    case Kind::kGauge:
      out.gauge.value = sample.value;
      break;
    case Kind::kHistogram:
      out.histogram = convert(*sample.histogram);
      break;
  }
  return out;
}

class Collector final : public prometheus::Collectable {
 public:
  explicit Collector(std::function<Samples()> read) : read_(std::move(read)) {}

  [[nodiscard]] std::vector<prometheus::MetricFamily> Collect() const override {
    const std::lock_guard lock(mutex_);
    std::vector<prometheus::MetricFamily> families;
    const Samples scrape = read_();
    for (const auto& [metric, samples] : scrape.families()) {
      prometheus::MetricFamily& family = families.emplace_back();
      family.name = metric->name;
      family.help = metric->help;
      family.type = type_of(metric->kind);
      const std::vector<std::string> labels = label_names(*metric);
      for (const Sample& sample : samples) {
        family.metric.push_back(convert(*metric, labels, sample));
      }
    }
    return families;
  }

 private:
  const std::function<Samples()> read_;
  mutable std::mutex mutex_;
};

class HttpEndpoint final : public Endpoint {
 public:
  HttpEndpoint(const std::string& listen, std::function<Samples()> read)
      : collector_(std::make_shared<Collector>(std::move(read))),
        // No document root: nothing but /metrics is there. Two threads, so that one idle connection does not lock
        // Prometheus out.
        exposer_(std::vector<std::string>{"listening_ports", listen, "num_threads", "2", "request_timeout_ms", "5000",
                                          "max_request_size", "8192", "enable_directory_listing", "no"}) {
    exposer_.RegisterCollectable(collector_);
  }

 private:
  std::shared_ptr<Collector> collector_;  // outlives the server's threads
  prometheus::Exposer exposer_;
};

}  // namespace

std::expected<std::unique_ptr<Endpoint>, std::string> Endpoint::open(const std::string& listen,
                                                                     std::function<Samples()> read) {
  if (listen.empty()) {
    return nullptr;
  }
  try {
    return std::make_unique<HttpEndpoint>(listen, std::move(read));
  } catch (const std::exception& error) {  // how prometheus-cpp refuses
    return std::unexpected("metrics: cannot listen on " + listen + ": " + error.what());
  }
}

}  // namespace godwit::metrics
