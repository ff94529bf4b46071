#include "qemu-bridge/agent/control_session.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/log.h"
#include "controlplane/tls/credentials.h"
#include "controlplane/tls/failure_text.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::FromAgent;
using controlplane::v1::ToAgent;

constexpr std::chrono::milliseconds kBackoffMin{200};
constexpr std::chrono::milliseconds kBackoffMax{1000};  // a guest may stand still until the store answers
constexpr int kKeepaliveMs = 2000;
constexpr int kKeepaliveTimeoutMs = 3000;
constexpr int kConnectMs = 2000;  // TCP and the TLS handshake; a lost SYN is sent again after 1 s

/// One for each attempt: gRPC moves a handshake on only while a call waits for it, and a call does so on a fresh
/// channel only; on one that has failed it fails at once. The certificates are then those of this moment, too.
std::shared_ptr<grpc::Channel> make_channel(const std::string& target, const config::SecurityConfig& security) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectMs);  // that is what it limits
  // Or gRPC's own backoff, which is kept with the address, would come on top of ours.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(target, controlplane::channel_credentials(target, security), arguments);
}

}  // namespace

ControlSession::ControlSession(std::string target, config::SecurityConfig security, Handlers handlers)
    : target_(std::move(target)), security_(std::move(security)), handlers_(std::move(handlers)) {}

void ControlSession::start() {
  thread_ = std::thread([this] { run(); });
}

ControlSession::~ControlSession() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (context_ != nullptr) {
      context_->TryCancel();
    }
    changed_.notify_all();
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

bool ControlSession::registered() const {
  const std::lock_guard lock(mutex_);
  return registered_;
}

void ControlSession::send(FromAgent message, Delivery delivery) {
  const std::lock_guard lock(mutex_);
  if (!registered_ && delivery == Delivery::kThisStream) {
    return;
  }
  if (outgoing_.size() >= kKeptMax) {
    spdlog::warn("the control plane does not take our messages: the oldest of {} is dropped", outgoing_.size());
    outgoing_.pop_front();
  }
  outgoing_.push_back({std::move(message), delivery});
  changed_.notify_all();
}

void ControlSession::run() {
  auto backoff = kBackoffMin;
  std::string last_reason;
  while (true) {
    const auto stub = controlplane::v1::Agents::NewStub(make_channel(target_, security_));
    const std::string reason = run_stream(*stub);
    std::unique_lock lock(mutex_);
    const bool was_registered = std::exchange(registered_, false);
    std::erase_if(outgoing_, [](const Outgoing& out) { return out.delivery == Delivery::kThisStream; });
    if (stopping_) {
      return;
    }
    lock.unlock();
    if (was_registered || reason != last_reason) {
      spdlog::warn("control plane at {}: {}; trying on", target_, printable(reason));
      last_reason = reason;
    }
    if (was_registered) {
      backoff = kBackoffMin;
      handlers_.on_lost();
    }
    lock.lock();
    if (changed_.wait_for(lock, backoff, [&] { return stopping_; })) {
      return;
    }
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

/// One stream from its first message to its end; why it ended.
std::string ControlSession::run_stream(controlplane::v1::Agents::Stub& stub) {
  grpc::ClientContext context;
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      return {};
    }
    context_ = &context;
    number = stream_number_;
  }
  const auto stream = stub.Session(&context);
  FromAgent first;
  *first.mutable_register_() = handlers_.make_register();
  std::string refusal;
  std::thread writer;
  ToAgent message;
  if (stream->Write(first)) {
    while (stream->Read(&message)) {
      if (message.has_registered()) {
        if (!message.registered().accepted()) {
          refusal = "this host is not accepted: " + message.registered().reason();
          break;
        }
        {
          const std::lock_guard lock(mutex_);
          registered_ = true;
        }
        spdlog::info("registered with control plane at {} (cluster {})", target_,
                     printable(message.registered().cluster_name()));
        if (!writer.joinable()) {
          writer = std::thread([&] { write_loop(*stream, number); });
        }
      }
      handlers_.on_message(message);
    }
  }
  context.TryCancel();
  {
    const std::lock_guard lock(mutex_);
    ++stream_number_;
    context_ = nullptr;
    changed_.notify_all();
  }
  if (writer.joinable()) {
    writer.join();
  }
  const grpc::Status status = stream->Finish();
  if (!refusal.empty()) {
    return refusal;
  }
  spdlog::debug("control plane at {}: gRPC says: {}", target_, printable(status.error_message()));
  const std::string reason = status.error_code() == grpc::StatusCode::UNAVAILABLE
                                 ? controlplane::tls_failure_text(status.error_message(), target_, security_)
                                 : "";
  return reason.empty() ? "stream ended: " + status.error_message() : reason;
}

void ControlSession::write_loop(Stream& stream, std::uint64_t number) {
  while (true) {
    Outgoing next;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stream_number_ != number || !outgoing_.empty(); });
      if (stream_number_ != number) {
        return;
      }
      next = std::move(outgoing_.front());
      outgoing_.pop_front();
    }
    if (!stream.Write(next.message)) {
      const std::lock_guard lock(mutex_);
      if (next.delivery == Delivery::kKept) {
        outgoing_.push_front(std::move(next));
      }
      return;  // the reader meets the end of the stream
    }
  }
}

}  // namespace godwit::bridge
