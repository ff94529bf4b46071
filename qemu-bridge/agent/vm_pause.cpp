// A split VM of which somebody touches a page that no store can give now: paused until the page is here. Paused, not
// only waiting: else its other processors and its clock would go on, and the guest see a processor that hangs.
//
// A thread of QEMU's that waits in the fault does not let QEMU finish `stop` (below Linux 6.2, and under TCG): QEMU has
// stopped the clock and the other processors then, but answers no monitor until the page is here. So nobody waits for
// the answer, and nothing else is asked meanwhile. `cont` comes in order, after whatever is still being done.

#include <spdlog/spdlog.h>

#include "qemu-bridge/agent/vm.h"
#include "qemu-bridge/qmp/commands.h"

namespace godwit::bridge {
namespace {
constexpr std::chrono::milliseconds kPauseTime{200};
}  // namespace

void Vm::on_guest_blocked(std::uint64_t pages) {
  {
    const std::lock_guard lock(summary_mutex_);
    blocking_pages_ = pages;
  }
  queue_.post([this] { pause_or_go_on(); });
}

void Vm::pause_or_go_on() {
  std::optional<std::uint64_t> blocking = 0;
  if (record_.split && !record_.split->gathered) {
    const std::lock_guard lock(summary_mutex_);
    blocking = blocking_pages_;
  }
  if (over_ || !qmp_ || !blocking || (*blocking > 0) == record_.paused_for_pages) {
    return;
  }
  *blocking > 0 ? pause_for_pages() : go_on_with_pages();
}

void Vm::pause_for_pages() {
  if (record_.migration && (!pull_ || is_source())) {
    return;  // whose end has to come first; and then the next tick
  }
  {
    const std::lock_guard lock(summary_mutex_);
    if (run_state_ != "running") {
      return;  // and is not ours to continue
    }
  }
  record_.paused_for_pages = true;
  if (!save()) {
    record_.paused_for_pages = false;
    return;
  }
  spdlog::error("VM {}: paused until pages are here that somebody waits for (godwitctl vm show)",
                record_.definition.name);
  if (auto stopped = bridge::stop(*qmp_, kPauseTime); !stopped && stopped.error().code == QmpErrorCode::kCommand) {
    spdlog::error("VM {}: {}", record_.definition.name, stopped.error().text);
    record_.paused_for_pages = false;
    static_cast<void>(save());
    return;
  }
  {
    const std::lock_guard lock(summary_mutex_);
    run_state_ = "paused";  // QEMU may be able to say so only later
  }
  services_.on_change();
}

void Vm::go_on_with_pages() {
  if (auto continued = cont(*qmp_); !continued) {
    spdlog::error("VM {}: cannot be continued: {}", record_.definition.name, continued.error().text);
    return;  // the next tick tries again
  }
  spdlog::info("VM {}: the pages it waited for are here; it goes on", record_.definition.name);
  record_.paused_for_pages = false;
  static_cast<void>(save());  // if not, it is continued once more
}

}  // namespace godwit::bridge
