// Every metric that a daemon exports is in a table of docs/operating.md, with its type and labels, and the other way
// round; and the names follow Prometheus' conventions.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <string>

#include "controlplane/service/metrics.h"
#include "dataplane/daemon/metrics.h"
#include "qemu-bridge/agent/metrics.h"

namespace godwit {
namespace {

/// Name: "type labels".
using Rows = std::map<std::string, std::string>;

Rows documented() {
  static const std::regex kRow(R"(^\| `(godwit_[a-z_]+)` \| (\w+) \| ([^|]*) \| .+)");
  std::ifstream file(std::string(GODWIT_SOURCE_DIR) + "/docs/operating.md");
  Rows rows;
  for (std::string line; std::getline(file, line);) {
    std::smatch match;
    if (std::regex_match(line, match, kRow)) {
      EXPECT_TRUE(rows.emplace(match[1], match[2].str() + " " + match[3].str()).second) << match[1] << " twice";
    }
  }
  return rows;
}

Rows exported() {
  Rows rows;
  for (const metrics::MetricList list : {daemon::metric_list(), bridge::metric_list(), controlplane::metric_list()}) {
    for (const metrics::Metric* metric : list) {
      std::string labels;
      for (const std::string& label : metrics::label_names(*metric)) {
        labels += (labels.empty() ? "`" : ", `") + label + "`";
      }
      const std::string row = std::string(to_string(metric->kind)) + " " + labels;
      EXPECT_TRUE(rows.emplace(metric->name, row).second) << metric->name << " twice";
      EXPECT_FALSE(metric->help.empty()) << metric->name;
    }
  }
  return rows;
}

TEST(Metrics, DocumentAndCodeKnowTheSame) { EXPECT_EQ(documented(), exported()); }

TEST(Metrics, NamesFollowConventions) {
  static const std::regex kName("godwit_(dataplane|bridge|controlplane)_[a-z]+(_[a-z]+)*");
  for (const auto& [name, row] : exported()) {
    EXPECT_TRUE(std::regex_match(name, kName)) << name;
    EXPECT_EQ(name.ends_with("_total"), row.starts_with("counter ")) << name;
    for (const char* unit : {"_ms", "_us", "_ns", "_kb", "_mib", "_bits"}) {
      EXPECT_EQ(name.find(unit + std::string("_")), std::string::npos) << name << ": base units only";
      EXPECT_FALSE(name.ends_with(unit)) << name << ": base units only";
    }
  }
}

}  // namespace
}  // namespace godwit
