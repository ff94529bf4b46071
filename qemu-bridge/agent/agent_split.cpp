// What the control plane asks of this host as the main host or a sub host of split VMs, and what the data plane says.
#include <spdlog/spdlog.h>

#include "qemu-bridge/agent/agent.h"
#include "qemu-bridge/agent/ram_files.h"

namespace godwit::bridge {

using controlplane::v1::ToAgent;

bool Agent::page_store_command(const ToAgent& message) {
  const auto run = [&](std::function<PageStores::Result()> command) {
    stores_queue_.post([this, command = std::move(command), reply = reply_to(message.id())] {
      reply(command());
      beat();
    });
    return true;
  };
  switch (message.message_case()) {
    case ToAgent::kPrepareStore:
      return run([this, command = message.prepare_store()] {
        const auto memory = host_memory(host_paths(config_, Id128{}), page_stores_.unfilled_bytes());
        return page_stores_.prepare(*dataplane_, command, memory.free_bytes);
      });
    case ToAgent::kStartStore:
      return run([this, command = message.start_store()] { return PageStores::start(*dataplane_, command); });
    case ToAgent::kDropStore:
      return run([this, command = message.drop_store()] { return page_stores_.drop(*dataplane_, command); });
    default:
      return false;
  }
}

bool Agent::split_command(const ToAgent& message) {
  const auto id = message.id();
  switch (message.message_case()) {
    case ToAgent::kSplitGuest:
      with_vm(vm_of(message.split_guest().vm_uuid()), message, "SplitGuest",
              [&](Vm& vm) { vm.split_guest(message.split_guest(), reply_to(id)); });
      return true;
    case ToAgent::kEndSplit:
      with_vm(vm_of(message.end_split().vm_uuid()), message, "EndSplit",
              [&](Vm& vm) { vm.end_split(message.end_split(), reply_to(id)); });
      return true;
    case ToAgent::kPrepareSub:
      with_vm(vm_of(message.prepare_sub().vm_uuid()), message, "PrepareSub",
              [&](Vm& vm) { vm.prepare_sub(message.prepare_sub(), reply_to(id)); });
      return true;
    case ToAgent::kStartSub:
      with_vm(vm_of(message.start_sub().vm_uuid()), message, "StartSub",
              [&](Vm& vm) { vm.start_sub(message.start_sub(), reply_to(id)); });
      return true;
    default:
      return false;
  }
}

/// The status tells the rest, and goes out at once.
void Agent::on_split_event(const dataplane::v1::Event& event) {
  if (event.has_gathered()) {
    if (const auto vm = vm_of(event.gathered().vm_uuid())) {
      vm->on_gathered();
    }
  } else if (event.has_guest_blocked()) {
    if (const auto vm = vm_of(event.guest_blocked().vm_uuid())) {
      vm->on_guest_blocked(event.guest_blocked().pages());
    }
  } else if (event.has_pages_lost()) {
    spdlog::error("data plane: {} pages of a VM are lost", event.pages_lost().pages());
  }
  beat();
}

}  // namespace godwit::bridge
