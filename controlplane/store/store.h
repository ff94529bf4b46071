#pragma once
// What the cluster must never forget: VMs with their owner, migrations with their state, hosts as last seen. Behind an
// interface, so that a cluster which outgrows one machine can bring its own store. Thread: any; calls are serialized
// inside. Every change is durable when the call returns. A change that others may race for is a compare-and-swap, which
// tells whether it won. On an error nothing was changed, with one exception that the caller must know: after kDatabase
// it is not known whether the change will be there after a restart, so its outcome must not be told to anyone.
//
// Epochs. VmRecord::epoch_next is the epoch of the present visit, of which no copy exists yet.
//  * A start or attach raises it by one and gives it to the data plane as the visit's epoch.
//  * An attempt reserves [epoch_next + 1, epoch_next + 1 + kEpochsPerAttempt) and stores epoch_next + 1 +
//    kEpochsPerAttempt as the new epoch_next before any command goes out.
//  * So, whatever became of an attempt, the visit's epoch after it (the data plane's own, one above the last that it
//    used, or the stored one after a restart) is above every epoch that a copy has and below every later attempt's
//    base.

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/uuid.h"
#include "controlplane.pb.h"

namespace godwit::controlplane {

namespace api = godwit::controlplane::v1;
namespace dpapi = godwit::dataplane::v1;

inline constexpr std::uint32_t kEpochsPerAttempt = 1024;
/// UINT32_MAX is the generation "unknown"; the visit after the last attempt needs one below it.
inline constexpr std::uint32_t kEpochMax = UINT32_MAX - 1;

struct VmRecord {
  Id128 uuid;
  std::string name;
  api::VmDefinition definition;
  std::string host;  // the owner; "" = runs nowhere
  std::uint64_t ownership = 0;
  Id128 image_id;
  std::uint32_t epoch_next = 0;
  dpapi::Tracker tracker = dpapi::TRACKER_AUTO;  // as asked for at start, kept for every later host
};

/// A host is to run this VM from a cold boot (or to adopt one that somebody else booted).
struct VmClaim {
  api::VmDefinition definition;  // with name and uuid
  std::string host;
  Id128 image_id;
  dpapi::Tracker tracker = dpapi::TRACKER_AUTO;
  std::uint64_t ownership_seen = 0;  // 0 = the VM is new to the store
};

struct MigrationRecord {
  Id128 id;
  Id128 vm_uuid;
  std::string vm_name;
  api::Plan plan;
  std::string source;
  std::string destination;
  api::MigrationState state = api::STATE_UNSPECIFIED;
  std::string reason;
  std::uint64_t ownership_before = 0;
  Id128 image_id;
  std::uint32_t epoch_base = 0;
  std::uint32_t epoch_count = 0;
  bool reused = false;
  std::string reuse_reason;
  std::int64_t created_unix_us = 0;
  std::int64_t ended_unix_us = 0;
  std::int64_t stop_unix_us = 0;
  std::int64_t resume_unix_us = 0;
  dpapi::MigrationStats stats;
  dpapi::MigrationStats destination_stats;
  dpapi::Tracker tracker = dpapi::TRACKER_AUTO;
  std::string tracker_reason;
  bool source_settled = false;  // the side has confirmed that the outcome is in effect there
  bool destination_settled = false;

  /// The number that goes with the outcome: raised by a commit only.
  [[nodiscard]] std::uint64_t ownership_after() const;
};

struct NewMigration {
  Id128 id;
  Id128 vm_uuid;
  std::uint64_t ownership_seen = 0;
  api::Plan plan;
  std::string destination;
  std::int64_t created_unix_us = 0;
};

/// A VM whose host holds a part of its RAM only.
struct SplitRecord {
  Id128 vm_uuid;
  std::uint64_t ownership = 0;  // under which it was split: under another one it is over
  std::uint64_t budget_bytes = 0;
  api::SplitState state = api::SPLIT_UNSPECIFIED;
  dpapi::Encryption encryption = dpapi::ENCRYPTION_AES_128_GCM;  // of its flows
};

/// A VM's part at one sub host. Outlives the split, in PAGE_STORE_RETIRING, until the host has confirmed that it is
/// gone.
struct PageStoreRecord {
  Id128 id;
  Id128 vm_uuid;
  std::string vm_name;
  std::string main_host;
  std::string sub_host;
  std::uint64_t ownership = 0;
  std::uint32_t number = 0;  // among those of the split
  std::uint64_t bytes_lent = 0;
  /// PREPARING: nothing was ever sent there. CONNECTED: pages may be there (LOST is not stored). DRAINING: and go
  /// elsewhere.
  api::PageStoreState state = api::PAGE_STORE_UNSPECIFIED;
};

/// How a VM that is to move is to be split once it has moved, or has not: a standing order. In either a budget of 0:
/// not.
struct StandingOrder {
  Id128 vm_uuid;
  std::string source;
  api::SplitVmRequest at_source;
  std::string destination;
  api::SplitVmRequest at_destination;
};

/// What the store remembers of a host that is not connected.
struct HostRecord {
  std::string name;
  api::Register last;  // without VMs: those are in the store
  std::int64_t last_seen_unix_us = 0;
};

struct StoreError {
  enum class Code : std::uint8_t {
    kNotFound,
    kNameTaken,        // another VM has this name
    kMigrationActive,  // one at a time
    kOwnershipMoved,   // the VM is not as the caller saw it
    kEpochsExhausted,
    kForbidden,  // no such transition
    kSplit,      // not of a split VM
    kDatabase,
  };
  Code code;
  std::string text;
};

/// The VM is the destination's: there is no way back.
[[nodiscard]] constexpr bool is_committed(api::MigrationState state) {
  return state == api::COMMITTED || state == api::PULLING || state == api::INCOMPLETE;
}
/// Whose the VM is does not change any more; both sides are told.
[[nodiscard]] constexpr bool is_decided(api::MigrationState state) {
  return is_committed(state) || state == api::ABORTED;
}
[[nodiscard]] constexpr bool is_terminal(api::MigrationState state) {
  return is_decided(state) && state != api::PULLING;
}

inline std::uint64_t MigrationRecord::ownership_after() const {
  return is_committed(state) ? ownership_before + 1 : ownership_before;
}

/// PREPARING -> TRANSFERRING -> SWITCHING -> COMMITTED or PULLING, ABORTED from each of the first three, and from
/// PULLING COMMITTED or INCOMPLETE.
[[nodiscard]] constexpr bool may_follow(api::MigrationState from, api::MigrationState to) {
  switch (to) {
    case api::TRANSFERRING:
      return from == api::PREPARING;
    case api::SWITCHING:
      return from == api::TRANSFERRING;
    case api::COMMITTED:
      return from == api::SWITCHING || from == api::PULLING;
    case api::PULLING:
      return from == api::SWITCHING;
    case api::INCOMPLETE:
      return from == api::PULLING;
    case api::ABORTED:
      return from == api::PREPARING || from == api::TRANSFERRING || from == api::SWITCHING;
    default:
      return false;
  }
}

class Store {
 public:
  template <typename T>
  using Result = std::expected<T, StoreError>;

  virtual ~Store() = default;

  [[nodiscard]] virtual Result<std::vector<VmRecord>> vms() = 0;
  [[nodiscard]] virtual Result<std::optional<VmRecord>> vm(const Id128& uuid) = 0;
  /// By name, or by uuid in text form.
  [[nodiscard]] virtual Result<std::optional<VmRecord>> find_vm(const std::string& name_or_uuid) = 0;

  /// Makes `host` the owner: a new ownership number, image id and epoch. Refused during a migration, and when the
  /// ownership number is not the one seen.
  [[nodiscard]] virtual Result<VmRecord> claim_vm(const VmClaim& claim) = 0;
  /// The VM runs nowhere from now on. False: it has moved meanwhile, nothing changed.
  [[nodiscard]] virtual Result<bool> release_vm(const Id128& uuid, std::uint64_t ownership) = 0;
  /// The definition as the host reports it. False as above.
  [[nodiscard]] virtual Result<bool> redefine_vm(const api::VmDefinition& definition, std::uint64_t ownership) = 0;

  /// PREPARING, with its epochs reserved. Refused of a VM that is split, unless it is being gathered, or the plan keeps
  /// its stores: TRANSFERRING needs the one to be over, and of the other that the VM is SPLIT.
  [[nodiscard]] virtual Result<MigrationRecord> begin_migration(const NewMigration& migration) = 0;
  /// Compare-and-swap of the state, with record's reason, reuse decision, times and statistics. SWITCHING to
  /// COMMITTED or PULLING also makes the destination the owner under the next ownership number, and the main host of
  /// all page stores if the plan keeps them: with its budget, or GATHERING if it is to be whole. A terminal state frees
  /// the VM for the next attempt. False: lost, the stored state is another one (read it again).
  [[nodiscard]] virtual Result<bool> transition(const MigrationRecord& record, api::MigrationState expected,
                                                api::MigrationState next) = 0;
  /// Everything of a record that is no state: statistics, times, what is settled.
  [[nodiscard]] virtual Result<void> save_details(const MigrationRecord& record) = 0;
  [[nodiscard]] virtual Result<std::optional<MigrationRecord>> migration(const Id128& id) = 0;
  /// Newest first; 0 = all.
  [[nodiscard]] virtual Result<std::vector<MigrationRecord>> migrations(std::uint32_t count_max) = 0;
  /// Not in a terminal state yet.
  [[nodiscard]] virtual Result<std::vector<MigrationRecord>> active_migrations() = 0;
  /// Decided, but not confirmed by this host, which is a side of it.
  [[nodiscard]] virtual Result<std::vector<MigrationRecord>> unsettled_migrations(const std::string& host) = 0;

  [[nodiscard]] virtual Result<std::vector<SplitRecord>> splits() = 0;
  [[nodiscard]] virtual Result<std::vector<PageStoreRecord>> page_stores() = 0;
  /// The split, new or changed, and those of its page stores that are new. Refused when the ownership number is not the
  /// VM's, and during a migration but one that keeps stores and is PREPARING or PULLING.
  [[nodiscard]] virtual Result<void> save_split(const SplitRecord& split, std::span<const PageStoreRecord> added) = 0;
  /// Forgets the split, and makes all of its page stores RETIRING. One that is not there is fine.
  [[nodiscard]] virtual Result<void> end_split(const Id128& vm_uuid) = 0;
  [[nodiscard]] virtual Result<void> set_page_store_state(const Id128& id, api::PageStoreState state) = 0;
  [[nodiscard]] virtual Result<void> forget_page_store(const Id128& id) = 0;

  [[nodiscard]] virtual Result<std::vector<StandingOrder>> standing_orders() = 0;
  /// In place of the VM's former one. claim_vm() forgets it.
  [[nodiscard]] virtual Result<void> save_standing_order(const StandingOrder& order) = 0;
  /// One that is not there is fine.
  [[nodiscard]] virtual Result<void> forget_standing_order(const Id128& vm_uuid) = 0;

  [[nodiscard]] virtual Result<void> save_host(const HostRecord& host) = 0;
  [[nodiscard]] virtual Result<std::vector<HostRecord>> hosts() = 0;
};

}  // namespace godwit::controlplane
