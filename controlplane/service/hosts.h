#pragma once
// The hosts as their agents report them, and the requests that wait for an agent's answer. Thread: the coordinator's
// lock is held in every call, and handlers run under it. A request always ends in exactly one call of its handler: the
// reply, or an error when the host is not connected, is lost or does not answer in time; the handler may run before
// request() returns. What agents send is checked here, once; what is malformed is dropped and logged.

#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "controlplane/planner/planner.h"
#include "controlplane/service/agent_link.h"
#include "controlplane/service/service_error.h"
#include "controlplane/service/timers.h"

namespace godwit::controlplane {

using SessionId = std::uint64_t;  // of one stream of one agent; never used twice

class Hosts {
 public:
  /// The agent's reply without error, or why there is none.
  using Handler = std::function<void(std::expected<api::AgentReply, ServiceError>)>;

  struct Host {
    HostView view;
    std::int64_t last_seen_unix_us = 0;
    SessionId session = 0;  // 0 = not connected
    std::shared_ptr<AgentLink> link;
  };

  explicit Hosts(Timers& timers) : timers_(timers) {}

  void remember(const HostRecord& record);

  /// The host of this name is connected by `session` from now on.
  Host& connect(const api::Register& message, SessionId session, std::shared_ptr<AgentLink> link);
  void refresh(Host& host, const api::Heartbeat& message);
  /// Not connected any more; its unanswered requests fail. Nothing if another session has replaced this one.
  bool disconnect(const std::string& name, SessionId session);

  void request(const std::string& name, api::ToAgent message, Duration timeout, Handler handler);
  /// Without an answer; dropped when the host is not connected.
  void tell(const std::string& name, api::ToAgent message);
  void replied(const std::string& name, SessionId session, const api::AgentReply& reply);

  [[nodiscard]] Host* find(const std::string& name);
  [[nodiscard]] const std::map<std::string, Host>& all() const { return hosts_; }
  /// What the host says of this VM, if it names it.
  [[nodiscard]] static const api::RunningVm* running(const Host& host, const Id128& vm_uuid);

 private:
  struct Pending {
    std::string host;
    SessionId session;
    Timers::Id timer;
    Handler handler;
  };

  void finish(std::unordered_map<std::uint64_t, Pending>::iterator pending,
              std::expected<api::AgentReply, ServiceError> result);

  Timers& timers_;
  std::map<std::string, Host> hosts_;
  std::unordered_map<std::uint64_t, Pending> pending_;
  std::uint64_t last_request_ = 0;
};

/// Why a Register is not accepted, if so.
[[nodiscard]] std::optional<std::string> register_mistake(const api::Register& message);

[[nodiscard]] std::int64_t unix_us_now();

}  // namespace godwit::controlplane
