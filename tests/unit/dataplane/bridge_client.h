#pragma once
// A bridge for tests: speaks dataplane.proto over the local socket, one request at a time, and keeps the events that
// come meanwhile. Every wait has a limit and then fails the test by returning nothing.

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane.pb.h"

namespace godwit::tests {

namespace api = godwit::dataplane::v1;

class BridgeClient {
 public:
  /// Tries until something listens there; false after the limit.
  bool connect(const std::string& path);
  std::optional<api::Reply> ask(api::ToDataplane request, const std::vector<int>& descriptors = {});
  /// Sends without waiting for the answer; false: the socket did not take it.
  bool send_bytes(const std::string& bytes, const std::vector<int>& descriptors = {});
  std::optional<api::Reply> next_reply();
  /// The first event (kept or coming) for which `wanted` holds; those before it are dropped.
  std::optional<api::Event> wait_event(const std::function<bool(const api::Event&)>& wanted);
  void disconnect() { socket_.reset(); }

 private:
  std::optional<api::FromDataplane> receive();

  UniqueFd socket_;
  std::uint64_t next_id_ = 1;
  std::deque<api::Event> events_;
};

}  // namespace godwit::tests
