#pragma once
// ControlSession: this host's stream to the control plane. Owns the channel and two threads: one that connects,
// registers and reads, and starts over for ever; one that writes. Threads: send() from any; the handlers run in the
// reading thread and must not block for long. Whatever is lost with a stream (replies, heartbeats, progress) is
// dropped; events that tell of a step done are kept, at most kKeptMax, and sent after the next registration.

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "config/common.h"
#include "controlplane.grpc.pb.h"

namespace godwit::bridge {

class ControlSession {
 public:
  static constexpr std::size_t kKeptMax = 1000;

  enum class Delivery { kThisStream, kKept };
  struct Handlers {
    std::function<controlplane::v1::Register()> make_register;
    std::function<void(const controlplane::v1::ToAgent&)> on_message;  // Registered is the first of a stream
    std::function<void()> on_lost;
  };

  /// `security` says how the connection is protected.
  ControlSession(std::string target, config::SecurityConfig security, Handlers handlers);
  ~ControlSession();
  /// Begins to connect; the handlers run from now on. What is sent before waits if it is kKept.
  void start();
  ControlSession(const ControlSession&) = delete;
  ControlSession& operator=(const ControlSession&) = delete;

  void send(controlplane::v1::FromAgent message, Delivery delivery);
  [[nodiscard]] bool registered() const;

 private:
  using Stream = grpc::ClientReaderWriter<controlplane::v1::FromAgent, controlplane::v1::ToAgent>;
  struct Outgoing {
    controlplane::v1::FromAgent message;
    Delivery delivery;
  };

  void run();
  std::string run_stream(controlplane::v1::Agents::Stub& stub);
  void write_loop(Stream& stream, std::uint64_t stream_number);

  const std::string target_;
  const config::SecurityConfig security_;
  const Handlers handlers_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Outgoing> outgoing_;
  grpc::ClientContext* context_ = nullptr;  // of the stream under way
  std::uint64_t stream_number_ = 0;         // raised when a stream ends
  bool registered_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace godwit::bridge
