#pragma once
// Words that several configuration files share. Values; any thread; no failure.

#include <cstdint>
#include <string>

#include "base/log.h"

namespace godwit::config {

/// How written pages are found; kAuto takes the first that kernel and QEMU allow, in this order.
enum class Tracker : std::uint8_t { kAuto, kPagemapScan, kWriteProtectEvents, kHashes };

struct LogConfig {
  LogLevel level = LogLevel::kInfo;
};

struct MetricsConfig {
  std::string listen;  // "127.0.0.1:9464", "[::1]:9464": where Prometheus asks; empty: nowhere
};

struct TrackingConfig {
  Tracker tracker = Tracker::kAuto;
};

}  // namespace godwit::config
