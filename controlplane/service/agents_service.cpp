#include "controlplane/service/agents_service.h"

#include <spdlog/spdlog.h>

#include <deque>
#include <memory>
#include <mutex>

namespace godwit::controlplane {
namespace {

constexpr std::size_t kQueueMax = 1024;

/// Owns itself until gRPC is done with it; the coordinator shares it as the agent's link.
class AgentStream final : public grpc::ServerBidiReactor<api::FromAgent, api::ToAgent>,
                          public AgentLink,
                          public std::enable_shared_from_this<AgentStream> {
 public:
  AgentStream(Coordinator& coordinator, grpc::CallbackServerContext* context)
      : coordinator_(coordinator), context_(context) {}

  void start(std::string certified_host) {
    self_ = shared_from_this();
    session_ = coordinator_.session_opened(self_, std::move(certified_host));
    StartRead(&incoming_);
  }

  void send(api::ToAgent message) override {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) {
        return;
      }
      if (writing_) {
        queue_.push_back(std::move(message));
        if (queue_.size() > kQueueMax) {
          closing_ = true;
          context_->TryCancel();
        }
        return;
      }
      writing_ = true;
      outgoing_ = std::move(message);
    }
    StartWrite(&outgoing_);
  }

  void close() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      if (writing_ || finished_) {
        return;  // a Finish must not overtake a write: OnWriteDone does it
      }
      finished_ = true;
    }
    Finish(grpc::Status::OK);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      coordinator_.session_closed(session_);
      return;
    }
    coordinator_.received(session_, incoming_);
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      if (!ok) {
        queue_.clear();
        closing_ = true;
      }
      if (!queue_.empty()) {
        outgoing_ = std::move(queue_.front());
        queue_.pop_front();
      } else {
        writing_ = false;
        if (!closing_ || finished_) {
          return;
        }
        finished_ = true;
      }
    }
    if (finished_) {
      Finish(grpc::Status::OK);
    } else {
      StartWrite(&outgoing_);
    }
  }

  void OnCancel() override { coordinator_.session_closed(session_); }

  void OnDone() override {
    coordinator_.session_closed(session_);
    self_.reset();
  }

 private:
  Coordinator& coordinator_;
  grpc::CallbackServerContext* context_;
  SessionId session_ = 0;
  api::FromAgent incoming_;
  std::shared_ptr<AgentStream> self_;

  std::mutex mutex_;  // nothing is called with it held but TryCancel
  std::deque<api::ToAgent> queue_;
  api::ToAgent outgoing_;
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
};

/// Ends a stream before it begins.
class RefusedStream final : public grpc::ServerBidiReactor<api::FromAgent, api::ToAgent> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerBidiReactor<api::FromAgent, api::ToAgent>* AgentsService::Session(grpc::CallbackServerContext* context) {
  auto host = gate_.admit_agent(*context);
  if (!host) {
    return new RefusedStream(host.error());  // owns itself
  }
  const auto stream = std::make_shared<AgentStream>(coordinator_, context);
  stream->start(std::move(*host));
  return stream.get();
}

}  // namespace godwit::controlplane
