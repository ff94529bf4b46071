#pragma once
// The journal: for each VM on this host one JSON file in <state_dir>/vms, replaced whole (base/atomic_file.h) before
// the effect that it announces. It says which QEMU is ours, whose its guest is, and how far a migration got.
// Thread: each record by its VM's queue; load() before they start. A file that cannot be understood is kept, renamed to
// *.broken, and reported: its QEMU is not touched.

#include <expected>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/uuid.h"
#include "config/vm_definition.h"
#include "dataplane.pb.h"
#include "qemu-bridge/agent/qemu_process.h"
#include "qemu-bridge/attach/ram_discovery.h"

namespace godwit::bridge {

enum class MigrationRole { kSource, kDestination };

/// How far a migration got here; written before the step that it names begins.
enum class MigrationPhase {
  kPreparing,
  kTransferring,
  kSwitching,  // source: QEMU's migrate may have been issued, the guest may be stopped
  kCommitted,  // told COMMITTED: source retires. (A destination resumes first: see destination_migration.h)
  kAborted,    // told ABORTED: source resumes, destination ends
  kPulling,    // told PULLING: source ends its QEMU once its memory serves without. Destination: the guest runs
};

struct MigrationRecord {
  Id128 id;
  MigrationRole role = MigrationRole::kSource;
  MigrationPhase phase = MigrationPhase::kPreparing;
  std::uint64_t ownership_after = 0;  // of the outcome, from kCommitted or kAborted on
  bool may_pull = false;              // not pre-copy: after the commit this memory may still be needed elsewhere
  std::uint32_t epoch_base = 0;       // destination: of this attempt; names what is missing (0: not known)
  // Source: kSwitching was reached. Else a guest that stands still was paused by somebody else, and stays so.
  bool switch_begun = false;
  bool keeps_stores = false;  // of a split VM only the main part moves
  // Destination: `cont` came to effect. Who stands still from then on was paused by somebody else, and stays so.
  bool continued = false;
};

/// One of several userfaultfds in QEMU, and the pages whose faults it serves.
struct FaultDescriptor {
  int in_qemu = -1;  // its number there
  std::uint64_t first_page = 0;
  std::uint64_t pages = 0;
  bool operator==(const FaultDescriptor&) const = default;
};

/// This host is the main host of a split VM; saved before the data plane is told.
struct SplitSub {
  Id128 store_id;
  std::uint32_t number = 0;
  std::string host;
  bool drain = false;  // what it holds goes to the others
  bool operator==(const SplitSub&) const = default;
};
struct SplitRecord {
  std::uint64_t budget_bytes = 0;
  std::vector<SplitSub> subs;
  bool gather = false;    // all of it is to come back
  bool gathered = false;  // and has
};

struct VmRecord {
  config::VmDefinition definition;
  Id128 image_id;
  std::uint64_t ownership = 0;
  std::uint32_t epoch = 0;
  std::string qmp_path;
  ProcessId process;                                             // pid -1: QEMU is not started yet
  bool ours = false;                                             // we started it, and may end it and remove its files
  int userfaultfd_in_qemu = -1;                                  // its number there; of several the first's
  bool userfaultfd_events = false;                               // injected so that it can raise events
  dataplane::v1::Tracker tracker = dataplane::v1::TRACKER_AUTO;  // asked for
  std::string machine_type;
  bool has_balloon = false;
  std::map<std::string, std::string> ram_files;  // by region: where a retained image has its RAM (HostPaths::ram_files)
  std::optional<MigrationRecord> migration;
  std::vector<FaultDescriptor> fault_descriptors = {};  // empty: one userfaultfd for all pages
  bool evictable = false;                               // attached so that it can be split
  bool pin_in_qemu = false;                             // QEMU keeps the pipe of evictions open
  std::optional<SplitRecord> split = std::nullopt;
  bool paused_for_pages = false;             // by us, until they are here
  std::vector<MemoryBackend> backends = {};  // in the order of the definition's regions; empty: not looked at yet
};

class Journal {
 public:
  explicit Journal(std::filesystem::path state_dir) : dir_(std::move(state_dir) / "vms") {}

  struct Loaded {
    std::vector<VmRecord> records;
    std::vector<std::string> problems;  // one line each
  };
  /// Creates the directory if need be.
  std::expected<Loaded, FileError> load();
  [[nodiscard]] std::expected<void, FileError> save(const VmRecord& record) const;
  [[nodiscard]] std::expected<void, FileError> remove(const Id128& uuid) const;

 private:
  [[nodiscard]] std::filesystem::path path_of(const Id128& uuid) const { return dir_ / (uuid.text() + ".json"); }
  std::filesystem::path dir_;
};

std::string to_text(const VmRecord& record);
std::expected<VmRecord, std::string> parse_record(const std::string& text);
std::string_view name_of(MigrationPhase phase);

}  // namespace godwit::bridge
