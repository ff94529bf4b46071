#include "controlplane/tls/grpc_log.h"

#include <grpc/support/log.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <mutex>
#include <string>
#include <string_view>

#include "base/log.h"

namespace godwit::controlplane {
namespace {

constexpr std::chrono::minutes kQuiet{1};

/// "error:0A000086:SSL routines::certificate verify failed" ends in the reason.
std::string line_of(std::string_view message) {
  if (!message.starts_with("Handshake failed with")) {
    return "gRPC: " + printable(message);
  }
  const auto last = message.rfind("::");
  std::string_view reason = last == std::string_view::npos ? message : message.substr(last + 2);
  while (reason.ends_with('.')) {
    reason.remove_suffix(1);
  }
  return "TLS handshake refused: " + printable(reason);
}

/// CertificateWatch says the same once, and in words for people.
bool is_about_our_files(std::string_view source_file) {
  return source_file.ends_with("grpc_tls_certificate_provider.cc") || source_file.ends_with("stat_posix.cc") ||
         source_file.ends_with("tls_security_connector.cc");
}

void take(gpr_log_func_args* arguments) {
  if (is_about_our_files(arguments->file)) {
    return;
  }
  static std::mutex mutex;
  static std::string last;
  static std::chrono::steady_clock::time_point last_time;
  std::string line = line_of(arguments->message);
  {
    const std::lock_guard lock(mutex);
    const auto now = std::chrono::steady_clock::now();
    if (line == last && now - last_time < kQuiet) {
      return;
    }
    last = line;
    last_time = now;
  }
  spdlog::warn("{}", line);
}

}  // namespace

void route_grpc_log() { gpr_set_log_function(&take); }

}  // namespace godwit::controlplane
