#pragma once
// gRPC's own log goes into ours: its words on a failed handshake become one line that a person understands, and what is
// said again within a minute is left out, because somebody without a certificate may try each second.

namespace godwit::controlplane {

/// Once, from main, after start_logging() and before gRPC is used.
void route_grpc_log();

}  // namespace godwit::controlplane
