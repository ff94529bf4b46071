#pragma once
// An agent for tests: a real gRPC stream to the control plane under test, and nothing behind it. Tests take the
// commands that arrive, in order, and answer as they like. Waits end with a test failure after kPatience.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/uuid.h"
#include "controlplane.grpc.pb.h"

namespace godwit::controlplane::testing {

namespace api = godwit::controlplane::v1;
namespace dpapi = godwit::dataplane::v1;

inline constexpr std::chrono::seconds kPatience{20};

class FakeAgent {
 public:
  FakeAgent(const std::string& server, const std::string& host)
      : FakeAgent(grpc::CreateChannel(server, grpc::InsecureChannelCredentials()), host) {}
  FakeAgent(const std::shared_ptr<grpc::Channel>& channel, const std::string& host)
      : stub_(api::Agents::NewStub(channel)) {
    info.set_name(host);
    info.set_dataplane_up(true);
    info.set_memory_total_bytes(8ULL << 30);
    info.set_memory_free_bytes(4ULL << 30);
    info.add_trackers(dpapi::TRACKER_PAGEMAP_SCAN);
  }
  ~FakeAgent() { disconnect(); }

  /// What Register and each Heartbeat say. The info is to be changed before connect() only.
  api::HostInfo info;
  void set_vms(std::vector<api::RunningVm> vms) {
    const std::lock_guard lock(mutex_);
    vms_ = std::move(vms);
  }
  void set_images(std::vector<dpapi::Image> images) {
    const std::lock_guard lock(mutex_);
    images_ = std::move(images);
  }

  void set_stores(std::vector<api::HeldStore> stores) {
    const std::lock_guard lock(mutex_);
    stores_ = std::move(stores);
  }

  api::Registered connect() {
    context_ = std::make_unique<grpc::ClientContext>();
    context_->set_wait_for_ready(true);
    stream_ = stub_->Session(context_.get());
    connected_ = true;
    reader_ = std::thread([this, stream = stream_.get()] {
      for (api::ToAgent message; stream->Read(&message);) {
        const std::lock_guard lock(mutex_);
        if (!ignored_.contains(message.message_case())) {
          received_.push_back(message);
          arrived_.notify_all();
        }
      }
      const std::lock_guard lock(mutex_);
      connected_ = false;
      arrived_.notify_all();
    });
    api::FromAgent message;
    fill(*message.mutable_register_());
    write(message);
    const api::Registered registered = expect(api::ToAgent::kRegistered).registered();
    beating_ = true;
    heart_ = std::thread([this] {
      std::unique_lock lock(mutex_);
      while (beating_) {
        heart_stop_.wait_for(lock, std::chrono::milliseconds(100));
        if (beating_) {
          lock.unlock();
          report();
          lock.lock();
        }
      }
    });
    return registered;
  }

  /// As if the bridge were killed.
  void disconnect() {
    if (!stream_) {
      return;
    }
    stop_reports();
    context_->TryCancel();
    reader_.join();
    stream_->Finish();
    stream_.reset();
    received_.clear();
  }

  /// No Heartbeat any more; the stream stays.
  void stop_reports() {
    {
      const std::lock_guard lock(mutex_);
      beating_ = false;
      heart_stop_.notify_all();
    }
    if (heart_.joinable()) {
      heart_.join();
    }
  }

  void report() {
    api::FromAgent message;
    fill(*message.mutable_heartbeat());
    write(message);
  }

  /// The next message that is not an answer to Register or of another kind; others before it are a failure.
  api::ToAgent expect(api::ToAgent::MessageCase kind) {
    std::unique_lock lock(mutex_);
    (void)arrived_.wait_for(lock, kPatience, [&] { return !received_.empty() || !connected_; });
    if (received_.empty()) {
      ADD_FAILURE() << info.name() << " waits in vain for message " << kind;
      return {};
    }
    api::ToAgent message = received_.front();
    received_.pop_front();
    EXPECT_EQ(message.message_case(), kind) << info.name() << " got " << message.ShortDebugString();
    return message;
  }
  /// What is told with each report until that shows it; from now on nobody reads it.
  void ignore(api::ToAgent::MessageCase kind) {
    const std::lock_guard lock(mutex_);
    ignored_.insert(kind);
    std::erase_if(received_, [&](const auto& message) { return message.message_case() == kind; });
  }
  [[nodiscard]] bool wait_until_cut_off() {
    std::unique_lock lock(mutex_);
    return arrived_.wait_for(lock, kPatience, [&] { return !connected_; });
  }
  [[nodiscard]] bool connected() {
    const std::lock_guard lock(mutex_);
    return connected_;
  }
  [[nodiscard]] std::size_t unread() {
    const std::lock_guard lock(mutex_);
    return received_.size();
  }

  void reply(const api::ToAgent& to, api::AgentReply reply = {}) {
    reply.set_id(to.id());
    api::FromAgent message;
    *message.mutable_reply() = std::move(reply);
    write(message);
  }
  void refuse(const api::ToAgent& to, dpapi::Error::Code code, const std::string& text) {
    api::AgentReply answer;
    answer.mutable_error()->set_code(code);
    answer.mutable_error()->set_text(text);
    reply(to, answer);
  }
  void event(const std::string& migration_id, api::MigrationEvent::Kind kind, const api::MigrationEvent& facts = {}) {
    api::FromAgent message;
    *message.mutable_event() = facts;
    message.mutable_event()->set_migration_id(migration_id);
    message.mutable_event()->set_kind(kind);
    write(message);
  }
  void ask_outcome(const std::string& migration_id) {
    api::FromAgent message;
    message.mutable_ask_outcome()->set_migration_id(migration_id);
    write(message);
  }
  void write(const api::FromAgent& message) {
    const std::lock_guard lock(write_mutex_);
    stream_->Write(message);  // a stream that is cut off shows in the reader
  }

 private:
  template <typename Message>
  void fill(Message& message) {
    const std::lock_guard lock(mutex_);
    *message.mutable_host() = info;
    for (const auto& vm : vms_) {
      *message.add_vms() = vm;
    }
    for (const auto& image : images_) {
      *message.add_images() = image;
    }
    for (const auto& store : stores_) {
      *message.add_stores() = store;
    }
  }

  std::vector<api::RunningVm> vms_;
  std::vector<dpapi::Image> images_;
  std::vector<api::HeldStore> stores_;
  std::unique_ptr<api::Agents::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<api::FromAgent, api::ToAgent>> stream_;
  std::thread reader_, heart_;
  std::mutex mutex_, write_mutex_;
  std::condition_variable arrived_, heart_stop_;
  std::deque<api::ToAgent> received_;
  std::set<api::ToAgent::MessageCase> ignored_;
  bool connected_ = false;
  bool beating_ = false;
};

}  // namespace godwit::controlplane::testing
