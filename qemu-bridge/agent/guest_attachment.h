#pragma once
// Gives a QEMU's memory to the data plane: finds its RAM, injects the userfaultfd or fetches the one injected before,
// and sends AttachGuest with all descriptors. Stateless; blocking; the VM's queue. What the data plane must know again
// after a restart is put into the record. On failure QEMU runs on, an injected descriptor stays open in it, and its
// number in the record; take_back_userfaultfd() leaves QEMU as it was found.

#include "qemu-bridge/agent/dataplane_client.h"
#include "qemu-bridge/agent/journal.h"
#include "qemu-bridge/agent/qemu_inspection.h"

namespace godwit::bridge {

using AttachKind = dataplane::v1::AttachGuest::Kind;

/// Whether pages may be missing, as they come with a migration or as they were evicted, or both: then QEMU gets full
/// userfaultfds, as many as its size asks for, and no tracker will do that cannot tell a missing page from an empty
/// one.
struct Paging {
  bool on_demand = false;
  bool evictable = false;
  [[nodiscard]] bool any() const { return on_demand || evictable; }
};

struct Attachment {
  dataplane::v1::AttachGuestResult result;
  std::uint64_t bytes_total = 0;
};

/// `backends` in the order of the definition's regions. `record` gets userfaultfd_in_qemu (to be saved by the caller).
std::expected<Attachment, dataplane::v1::Error> attach_guest(DataplaneClient& dataplane, VmRecord& record,
                                                             const std::vector<MemoryBackend>& backends,
                                                             AttachKind kind, Paging paging);

/// Closes the injected descriptor in a QEMU that will not be ours. First the data plane lets go of it.
void take_back_userfaultfd(VmRecord& record);

/// The backends of facts in the order of the definition's regions, which number the VM's pages.
std::vector<MemoryBackend> in_order_of(const config::VmDefinition& definition, const QemuFacts& facts);

}  // namespace godwit::bridge
