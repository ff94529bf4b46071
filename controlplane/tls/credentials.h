#pragma once
// How a gRPC connection is protected, by configuration: a unix socket by its file mode; everything else by mutual TLS,
// or not at all where insecure = true was said. Files are read again each second, so that renewed ones are used from
// the next handshake on; one that cannot be read leaves the last good one in use. Any thread; credentials may be
// shared.

#include <memory>
#include <string>

#include "config/common.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace godwit::controlplane {

/// For every address but unix sockets. Clients without a certificate of our CA do not get through the handshake; what
/// the others may do is for Gate to say. The configuration must have been loaded, so that it has one or the other.
[[nodiscard]] std::shared_ptr<grpc::ServerCredentials> server_credentials(const config::SecurityConfig& security);

/// For a control plane at `target`. Who answers must have a certificate of our CA that names it as the control plane
/// and covers the host of `target`.
[[nodiscard]] std::shared_ptr<grpc::ChannelCredentials> channel_credentials(const std::string& target,
                                                                            const config::SecurityConfig& security);

/// Does it name this machine's loopback, or a unix socket?
[[nodiscard]] bool stays_on_machine(const std::string& target);

}  // namespace godwit::controlplane
