#pragma once
// The control plane with its doors open: store, coordinator, gRPC. Destruction ends all streams first; agents connect
// again to whoever comes next. Fails with one line for a person. Unix sockets speak plaintext, everything else mutual
// TLS, or plaintext when the configuration says insecure = true.

#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "config/controlplane_config.h"

namespace godwit::controlplane {

class Server {
 public:
  [[nodiscard]] static std::expected<std::unique_ptr<Server>, std::string> start(
      const config::ControlplaneConfig& config);
  virtual ~Server() = default;
};

}  // namespace godwit::controlplane
