#pragma once
// Why a connection to the control plane did not come to be, in one line for a person: gRPC's own words name calls and
// sockets, not certificates. Blocks on our certificate's file; any thread.

#include <string>
#include <string_view>

#include "config/common.h"

namespace godwit::controlplane {

/// Before what our verifier says, in gRPC's message.
inline constexpr std::string_view kOurWords = "godwit: ";

/// `message` is what gRPC says of an UNAVAILABLE; "" when that has nothing to do with certificates.
[[nodiscard]] std::string tls_failure_text(std::string_view message, const std::string& target,
                                           const config::SecurityConfig& security);

}  // namespace godwit::controlplane
