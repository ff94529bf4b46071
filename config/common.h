#pragma once
// Words that several configuration files share. Values; any thread; no failure.

#include <cstdint>
#include <optional>

#include "base/log.h"
#include "pki/tls_files.h"

namespace godwit::config {

/// How written pages are found; kAuto takes the first that kernel and QEMU allow, in this order.
enum class Tracker : std::uint8_t { kAuto, kPagemapScan, kWriteProtectEvents, kHashes };

struct LogConfig {
  LogLevel level = LogLevel::kInfo;
};

/// How a gRPC connection that leaves the machine is protected; unix sockets are by their file modes. Loaded for such a
/// connection it has either `tls` or insecure = true.
struct SecurityConfig {
  std::optional<pki::TlsFiles> tls;
  bool insecure = false;
};

struct TrackingConfig {
  Tracker tracker = Tracker::kAuto;
};

}  // namespace godwit::config
