#pragma once
// Who may do what, by the certificate of the connection: a host acts as itself, an operator as an operator, nobody as
// anything else. A unix socket's file mode has let its callers in already: they may do everything, and so may anybody
// where no certificates are asked for. Each refusal is logged. A value; any thread.

#include <grpcpp/server_context.h>

#include <expected>
#include <string>

namespace godwit::controlplane {

class Gate {
 public:
  /// `certificates`: TLS is spoken on everything but unix sockets.
  explicit Gate(bool certificates) : certificates_(certificates) {}

  [[nodiscard]] grpc::Status admit_operator(const grpc::CallbackServerContext& caller) const;
  /// The host's name that the caller may act under; "" = any.
  [[nodiscard]] std::expected<std::string, grpc::Status> admit_agent(const grpc::CallbackServerContext& caller) const;

 private:
  bool certificates_;
};

}  // namespace godwit::controlplane
