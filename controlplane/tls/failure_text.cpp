#include "controlplane/tls/failure_text.h"

#include <fmt/format.h>

#include "controlplane/tls/credentials.h"

namespace godwit::controlplane {
namespace {

bool has(std::string_view message, std::string_view part) { return message.find(part) != std::string_view::npos; }

/// Not one that was there and broke.
bool never_came_to_be(std::string_view message) {
  return message.starts_with("failed to connect") || message.starts_with("connections to");
}

/// The connection was made, and ended without a word: what a server does after a handshake that it does not like.
bool was_closed(std::string_view message) {
  return has(message, "Socket closed") || has(message, "Connection reset") || has(message, "Broken pipe") ||
         has(message, "endpoint closed") || has(message, "End of TCP stream") || has(message, "connection closed");
}

}  // namespace

std::string tls_failure_text(std::string_view message, const std::string& target,
                             const config::SecurityConfig& security) {
  if (config::is_unix_target(target) || !never_came_to_be(message)) {
    return {};
  }
  if (!security.tls) {
    return was_closed(message) ? "it closed the connection: it may ask for certificates, and we have insecure = true"
                               : "";
  }
  if (const auto ours = message.find(kOurWords); ours != std::string_view::npos) {
    return std::string(message.substr(ours + kOurWords.size()));
  }
  const std::string file = security.tls->certificate.string();
  const auto certificate = pki::load_certificate(security.tls->certificate);
  if (!certificate) {
    return "our own certificate cannot be read: " + certificate.error().text;
  }
  const std::int64_t now_unix_s = pki::unix_s_now();
  const auto expiry = pki::expiry_at(certificate->validity(), now_unix_s);
  // "handshaker shutdown" is a connection that took too long.
  const bool handshake = was_closed(message) || (has(message, "andshake") && !has(message, "handshaker shutdown"));
  if (handshake && (expiry == pki::Expiry::kExpired || expiry == pki::Expiry::kNotYet)) {
    return fmt::format("our own certificate {} {}", file, pki::expiry_text(certificate->validity(), now_unix_s));
  }
  if (has(message, "wrong version number")) {
    return "it does not speak TLS: it runs with insecure = true";
  }
  if (has(message, "certificate verify failed")) {
    return fmt::format("its certificate is not signed by our CA ({}), or has expired", security.tls->ca.string());
  }
  return handshake ? fmt::format("it ended the handshake: it may not accept our certificate {}; its log says why", file)
                   : "";
}

}  // namespace godwit::controlplane
