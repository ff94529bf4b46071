#include "controlplane/service/hosts.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"

namespace godwit::controlplane {
namespace {

constexpr std::size_t kHostNameLengthMax = 64;

/// Copies what is well formed; a VM or image without a proper id can be meant by nobody.
template <typename List>
std::vector<api::RunningVm> checked_vms(const List& vms, const std::string& host) {
  std::vector<api::RunningVm> checked;
  for (const auto& vm : vms) {
    if (Id128::from_bytes(vm.uuid()) && (vm.migration_id().empty() || Id128::from_bytes(vm.migration_id()))) {
      checked.push_back(vm);
    } else {
      spdlog::warn("{} names a VM with a malformed id; ignored", host);
    }
  }
  return checked;
}

template <typename List>
std::vector<dpapi::Image> checked_images(const List& images, const std::string& host) {
  std::vector<dpapi::Image> checked;
  for (const auto& image : images) {
    if (Id128::from_bytes(image.id().vm_uuid()) && Id128::from_bytes(image.id().image_id())) {
      checked.push_back(image);
    } else {
      spdlog::warn("{} names an image with a malformed id; ignored", host);
    }
  }
  return checked;
}

template <typename List>
std::vector<api::HeldStore> checked_stores(const List& stores, const std::string& host) {
  std::vector<api::HeldStore> checked;
  for (const auto& store : stores) {
    if (Id128::from_bytes(store.status().store_id())) {
      checked.push_back(store);
    } else {
      spdlog::warn("{} names a page store with a malformed id; ignored", host);
    }
  }
  return checked;
}

}  // namespace

std::int64_t unix_us_now() {
  using std::chrono::microseconds, std::chrono::system_clock, std::chrono::duration_cast;
  return duration_cast<microseconds>(system_clock::now().time_since_epoch()).count();
}

std::optional<std::string> register_mistake(const api::Register& message) {
  const std::string& name = message.host().name();
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  };
  if (name.empty() || name.size() > kHostNameLengthMax || !std::all_of(name.begin(), name.end(), allowed)) {
    return "the host's name must be 1 to 64 letters, digits, '-', '_' or '.'";
  }
  return std::nullopt;
}

void Hosts::remember(const HostRecord& record) {
  Host& host = hosts_[record.name];
  host.view.info = record.last.host();
  host.view.images = checked_images(record.last.images(), record.name);
  host.last_seen_unix_us = record.last_seen_unix_us;
}

Hosts::Host& Hosts::connect(const api::Register& message, SessionId session, std::shared_ptr<AgentLink> link) {
  const std::string& name = message.host().name();
  Host& host = hosts_[name];
  host.view = {.connected = true,
               .info = message.host(),
               .vms = checked_vms(message.vms(), name),
               .images = checked_images(message.images(), name),
               .stores = checked_stores(message.stores(), name)};
  host.last_seen_unix_us = unix_us_now();
  host.session = session;
  host.link = std::move(link);
  return host;
}

void Hosts::refresh(Host& host, const api::Heartbeat& message) {
  const std::string name = host.view.info.name();
  host.view.info = message.host();
  host.view.info.set_name(name);
  host.view.vms = checked_vms(message.vms(), name);
  host.view.images = checked_images(message.images(), name);
  host.view.stores = checked_stores(message.stores(), name);
  host.last_seen_unix_us = unix_us_now();
}

bool Hosts::disconnect(const std::string& name, SessionId session) {
  Host* host = find(name);
  if (host == nullptr || host->session != session) {
    return false;
  }
  host->session = 0;
  host->view.connected = false;
  host->link.reset();
  // One at a time: a handler may make new requests, which fail at once, or end others.
  for (;;) {
    const auto lost = std::find_if(pending_.begin(), pending_.end(),
                                   [&](const auto& pending) { return pending.second.session == session; });
    if (lost == pending_.end()) {
      return true;
    }
    finish(lost, std::unexpected(ServiceError{
                     ServiceError::Code::kHostGone,
                     fmt::format("{} was lost before it answered: its bridge, or the network to it", name)}));
  }
}

void Hosts::request(const std::string& name, api::ToAgent message, Duration timeout, Handler handler) {
  Host* host = find(name);
  if (host == nullptr || host->session == 0) {
    handler(std::unexpected(ServiceError{ServiceError::Code::kHostGone, fmt::format("{} is not connected", name)}));
    return;
  }
  const std::uint64_t id = ++last_request_;
  message.set_id(id);
  const Timers::Id timer = timers_.schedule(timeout, [this, id] {
    if (const auto late = pending_.find(id); late != pending_.end()) {
      const std::string text = fmt::format("{} did not answer in time", late->second.host);
      finish(late, std::unexpected(ServiceError{ServiceError::Code::kTimeout, text}));
    }
  });
  pending_.emplace(id, Pending{name, host->session, timer, std::move(handler)});
  host->link->send(std::move(message));
}

void Hosts::tell(const std::string& name, api::ToAgent message) {
  if (Host* host = find(name); host != nullptr && host->session != 0) {
    host->link->send(std::move(message));
  }
}

void Hosts::replied(const std::string& name, SessionId session, const api::AgentReply& reply) {
  const auto pending = pending_.find(reply.id());
  if (pending == pending_.end() || pending->second.session != session) {
    spdlog::debug("{} answers request {}, which nobody waits for", name, reply.id());
    return;
  }
  if (reply.error().code() != dpapi::Error::NONE) {
    ServiceError error{ServiceError::Code::kRefused, fmt::format("{}: {}", name, printable(reply.error().text()))};
    // Nothing is there to be done: the caller may want to know that.
    if (reply.error().code() == dpapi::Error::NO_SUCH_VM || reply.error().code() == dpapi::Error::NO_SUCH_MIGRATION ||
        reply.error().code() == dpapi::Error::NO_SUCH_STORE) {
      error.code = ServiceError::Code::kNotFound;
    }
    finish(pending, std::unexpected(std::move(error)));
    return;
  }
  finish(pending, reply);
}

void Hosts::finish(std::unordered_map<std::uint64_t, Pending>::iterator pending,
                   std::expected<api::AgentReply, ServiceError> result) {
  Pending ended = std::move(pending->second);
  pending_.erase(pending);
  timers_.cancel(ended.timer);
  ended.handler(std::move(result));
}

Hosts::Host* Hosts::find(const std::string& name) {
  const auto found = hosts_.find(name);
  return found == hosts_.end() ? nullptr : &found->second;
}

const api::RunningVm* Hosts::running(const Host& host, const Id128& vm_uuid) {
  const std::string uuid = vm_uuid.to_bytes();
  const auto found =
      std::find_if(host.view.vms.begin(), host.view.vms.end(), [&](const auto& vm) { return vm.uuid() == uuid; });
  return found == host.view.vms.end() ? nullptr : &*found;
}

}  // namespace godwit::controlplane
