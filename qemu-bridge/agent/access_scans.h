#pragma once
// The scans for one VM's access history: when, by which source, and what is told of them. Used by the VM's queue;
// blocks for the time of a scan. Failure: the next scan is tried a period later; a source that has failed for good is
// replaced by writes. Units: base/scan_pace.h.

#include <optional>

#include "base/scan_pace.h"
#include "config/bridge_config.h"
#include "qemu-bridge/agent/access_source.h"

namespace godwit::bridge {

class AccessScans {
 public:
  explicit AccessScans(const config::HeatConfig& config) : config_(config) {}

  /// Scans if that is wanted and due. QEMU of this pid runs, the data plane has its memory, no migration is under way.
  void look(pid_t pid, std::span<const MemoryBackend> backends, DataplaneClient& dataplane, const ScannedVm& vm);
  /// What the bridge knows of it.
  void describe(dataplane::v1::HeatMap& map) const;

 private:
  const config::HeatConfig config_;
  std::optional<ScanPace> pace_;
  pid_t pid_ = -1;  // whose source it is
  std::unique_ptr<AccessSource> source_;
  std::string reason_;   // why not the module
  std::string failure_;  // of the last scan
};

}  // namespace godwit::bridge
