// Which pages of the VM are hot: its scans, and the answer to whoever asks. In the VM's queue, as all of vm.h.

#include "qemu-bridge/agent/vm.h"

namespace godwit::bridge {

void Vm::look_at_accesses() {
  {
    const std::lock_guard lock(summary_mutex_);
    if (run_state_ != "running") {
      return;  // it accesses nothing
    }
  }
  // What the tracker knows belongs to a migration while there is one; and nothing must hold that up.
  if (over_ || !qmp_ || record_.migration || attached_.tracker() == dataplane::v1::TRACKER_AUTO) {
    return;
  }
  accesses_.look(record_.process.pid, record_.backends, services_.dataplane,
                 {uuid_, record_.ownership, record_.split.has_value()});
}

void Vm::heat(std::uint32_t cells, Reply reply) {
  run_command([this, cells] { return do_heat(cells); }, std::move(reply));
}

AgentResult Vm::do_heat(std::uint32_t cells) {
  dataplane::v1::ToDataplane request;
  request.mutable_get_heat()->set_vm_uuid(uuid_.to_bytes());
  request.mutable_get_heat()->set_cells(cells);
  auto answer = services_.dataplane.call(std::move(request));
  if (!answer) {
    return std::unexpected(answer.error());
  }
  controlplane::v1::AgentReply reply;
  *reply.mutable_heat() = std::move(*answer->mutable_heat());
  accesses_.describe(*reply.mutable_heat());
  return reply;
}

}  // namespace godwit::bridge
