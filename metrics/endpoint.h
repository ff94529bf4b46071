#pragma once
// The HTTP endpoint that Prometheus asks: GET /metrics at one address, in threads of its own, which sleep until
// somebody asks. Owns its socket and threads. `read` is called in them, one call at a time, never after the destructor
// has returned. Who may connect may ask: there is neither TLS nor a password, requests are hostile, and the server
// (civetweb, inside prometheus-cpp) is given little room and time for each. Its end takes up to 2 s. Failure: open()
// says what was refused; later, a bad request is answered with an HTTP error.

#include <expected>
#include <functional>
#include <memory>
#include <string>

#include "metrics/metric.h"

namespace godwit::metrics {

class Endpoint {
 public:
  /// `listen`: "127.0.0.1:9464" or "[::1]:9464"; empty: nowhere, and there is no endpoint.
  static std::expected<std::unique_ptr<Endpoint>, std::string> open(const std::string& listen,
                                                                    std::function<Samples()> read);
  virtual ~Endpoint() = default;
};

}  // namespace godwit::metrics
