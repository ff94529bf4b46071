#pragma once
// Words that several configuration files share. Values; any thread; no failure.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/log.h"
#include "pki/tls_files.h"

namespace godwit::config {

/// How written pages are found; kAuto takes the first that kernel and QEMU allow, in this order.
enum class Tracker : std::uint8_t { kAuto, kPagemapScan, kWriteProtectEvents, kHashes };

/// As files, command lines and tables have them, in the enum's order.
inline constexpr std::array<std::string_view, 4> kTrackerNames{"auto", "pagemap-scan", "write-protect-events",
                                                               "hashes"};

/// Of the enum's number, which the APIs carry; "unknown" for any other.
[[nodiscard]] constexpr std::string_view tracker_name(int number) {
  return number >= 0 && static_cast<std::size_t>(number) < kTrackerNames.size()
             ? kTrackerNames[static_cast<std::size_t>(number)]
             : "unknown";
}

/// A gRPC target "unix:/path": protected by its file mode.
[[nodiscard]] constexpr bool is_unix_target(std::string_view target) { return target.starts_with("unix:"); }

struct LogConfig {
  LogLevel level = LogLevel::kInfo;
};

struct MetricsConfig {
  std::string listen;  // "127.0.0.1:9464", "[::1]:9464": where Prometheus asks; empty: nowhere
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
