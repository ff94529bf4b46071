#include "qemu-bridge/agent/access_scans.h"

#include <spdlog/spdlog.h>

#include <chrono>

#include "base/log.h"

namespace godwit::bridge {
namespace {

Instant now() {
  return {std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
              .count()};
}

}  // namespace

void AccessScans::look(pid_t pid, std::span<const MemoryBackend> backends, DataplaneClient& dataplane,
                       const ScannedVm& vm) {
  if (config_.core_percent == 0) {
    return;
  }
  if (pid != pid_) {
    auto [source, reason] = choose_access_source(pid, backends);
    source_ = std::move(source);
    reason_ = std::move(reason);
    pid_ = pid;
    pace_.emplace(config_.core_percent, config_.period);
    spdlog::info("VM {}: which pages are hot is found by {}", vm.uuid.text(),
                 reason_.empty() ? "the module" : "writes: " + printable(reason_));
  }
  if (vm.split && !reason_.empty()) {
    return;  // what the tracker knows goes with the pages that come and go
  }
  const Instant began = now();
  if (!pace_->due(began)) {
    return;
  }
  const auto cost = source_->scan(dataplane, vm);
  pace_->note(began, cost.value_or(Duration{}));
  failure_ = cost ? "" : cost.error();
  if (!cost) {
    spdlog::debug("VM {}: no scan of its accesses: {}", vm.uuid.text(), printable(failure_));
  }
  if (source_->broken()) {
    spdlog::warn("VM {}: which pages are hot is found by writes from here on: {}", vm.uuid.text(), printable(failure_));
    reason_ = failure_;
    source_ = make_writes_source();
  }
}

void AccessScans::describe(dataplane::v1::HeatMap& map) const {
  map.set_period_us(pace_ ? static_cast<std::uint64_t>(pace_->period().us()) : 0);
  std::string reason = reason_;
  if (config_.core_percent == 0) {
    reason = "heat.core_percent = 0 in the configuration of the VM's bridge: no scans";
  } else if (!failure_.empty() && map.scans() == 0) {
    reason += (reason.empty() ? "" : "; ") + failure_;
  }
  map.set_source_reason(printable(reason));
}

}  // namespace godwit::bridge
