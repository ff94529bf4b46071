#pragma once
// Decides where a VM may go and what it may reuse there. Pure: looks at what the store and the hosts say, changes
// nothing, any thread. Every answer carries its reason in one line, for the operator. The destination checks again for
// itself: what hosts say of their memory is a second old.

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "controlplane/store/store.h"

namespace godwit::controlplane {

/// A host as the registry knows it.
struct HostView {
  bool connected = false;
  api::HostInfo info;
  std::vector<api::RunningVm> vms;
  std::vector<dpapi::Image> images;
  std::vector<api::HeldStore> stores;  // of VMs that run elsewhere
};

struct ReuseDecision {
  bool reuse = false;
  std::string image_id;              // 16 bytes, when reuse
  std::uint64_t bytes_resident = 0;  // of that image
  std::string reason;                // which image, or why none
};

/// What of a VM is looked for among a host's images.
struct ReuseQuestion {
  const api::Plan& plan;
  const Id128& vm_uuid;
  const Id128& image_id;
  std::uint64_t bytes_total = 0;
};
/// An image is reusable when it is of this VM and this boot of it, as large as it, and in nobody's use; and is within
/// the budget that a main part may have there.
[[nodiscard]] ReuseDecision decide_reuse(const ReuseQuestion& question, std::span<const dpapi::Image> images);

enum class Refusal : std::uint8_t {
  kUnknownVm,
  kNotRunning,   // the store says that no host runs it
  kUnknownHost,  // destination never seen
  kSameHost,
  kSourceGone,       // source or its data plane not connected
  kDestinationGone,  // destination or its data plane not connected
  kMigrationActive,
  kPagesMissing,  // the VM's last migration is PULLING
  kModeNotAvailable,
  kBadPlan,
  kTrackerNotOffered,  // the VM insists on a tracker that the destination's kernel lacks
  kVmAtDestination,    // the destination reports a VM of this uuid already
  kNoReusableImage,    // and the plan requires one
  kNotEnoughMemory,
  kCannotBeSplit,  // its memory, or how it is tracked, forbids it
};

struct Refused {
  Refusal refusal;
  std::string text;
};

struct Question {
  const api::Plan& plan;                     // as it is to be carried out
  const VmRecord* vm = nullptr;              // what plan.vm names, if anything
  const HostView* source = nullptr;          // the VM's owner, if known
  const HostView* destination = nullptr;     // what plan.destination names, if known
  std::optional<Id128> active_migration;     // of this VM
  const MigrationRecord* pulling = nullptr;  // if that is PULLING: its record
  std::uint64_t lent_bytes = 0;              // by the destination to this VM, which will not need them when it comes
};

/// Of a list of sub hosts, in a plan or an order.
[[nodiscard]] bool names_a_host_twice(const google::protobuf::RepeatedPtrField<std::string>& hosts);

/// What the plan gets wrong by itself, if anything.
[[nodiscard]] std::optional<Refused> plan_mistake(const api::Plan& plan);

/// How much of the VM the destination is to have room for, of all these bytes.
[[nodiscard]] std::uint64_t bytes_there(const api::Plan& plan, std::uint64_t bytes_total);

/// The reuse decision of a migration that may begin, or the first reason why it may not.
[[nodiscard]] std::expected<ReuseDecision, Refused> plan_migration(const Question& question);

/// The mode to prepare both ends for: a pre-copy that may end as post-copy is hybrid.
[[nodiscard]] dpapi::Mode mode_of(const api::Plan& plan);

/// What a definition from outside gets wrong, if anything.
[[nodiscard]] std::optional<std::string> definition_mistake(const api::VmDefinition& definition);

[[nodiscard]] std::uint64_t bytes_of(const api::VmDefinition& definition);

/// Fills in the plan's defaults: 0 means default in downtime limit and rounds.
[[nodiscard]] dpapi::MigrationPolicy policy_of(const api::Plan& plan);

}  // namespace godwit::controlplane
