#pragma once
// Where the access history of a guest comes from: one interface, two sources. The module godwit-ept reads the accessed
// bits of KVM's tables, all accesses of vCPUs; without it the data plane's tracker tells what was written.
//
// An AccessSource belongs to one QEMU and is used by its VM's queue, in which it blocks for the time of a scan.
// Failure: one line. What a failed scan had found is in the next one, or lost: a page looks colder than it is, nothing
// worse.

#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/time.h"
#include "base/uuid.h"
#include "qemu-bridge/agent/dataplane_client.h"
#include "qemu-bridge/attach/ept_scanner.h"
#include "qemu-bridge/attach/ram_discovery.h"

namespace godwit::bridge {

struct ScannedVm {
  Id128 uuid;
  std::uint64_t ownership = 0;
  bool split = false;
};

class AccessSource {
 public:
  virtual ~AccessSource() = default;
  /// Tells the data plane what was accessed since the last scan. What that cost in processor time.
  virtual std::expected<Duration, std::string> scan(DataplaneClient& dataplane, const ScannedVm& vm) = 0;
  /// The source itself has failed, and not only the data plane: it will not work again.
  [[nodiscard]] virtual bool broken() const { return false; }
};

struct ChosenSource {
  std::unique_ptr<AccessSource> source;
  std::string reason;  // why not the module; "" if it is
};

/// The module if it can read this VM, else writes. `backends` in the order that numbers the VM's pages.
ChosenSource choose_access_source(pid_t pid, std::span<const MemoryBackend> backends);
std::unique_ptr<AccessSource> make_writes_source();

// ---- the pieces of the module's source, for tests ----

/// Where a region is in QEMU's address space, and its first page in the VM's numbering.
struct MappedRegion {
  std::uint64_t address = 0, pages = 0, first_page = 0;
};

/// Guest-physical pages [start, start + count), all in memslots, and the VM's page of the first; nullopt: these are not
/// RAM of the VM's (ROMs, video RAM).
struct GuestPiece {
  std::uint64_t start = 0, count = 0;
  std::optional<std::uint64_t> first_page;
  bool operator==(const GuestPiece&) const = default;
};
/// Of one address space of the guest, ascending.
std::vector<GuestPiece> guest_pieces(std::span<const godwit_ept_slot> slots, std::span<const MappedRegion> regions);

/// Ranges that the module takes: no gap in memslots, beginning at a multiple of 64. Fewer than 64 pages are left out at
/// the beginning of memory that does not begin so.
std::vector<EptRequest> scan_ranges(std::span<const GuestPiece> pieces);

/// Sets in `out`, a bit for each page of the VM, what a scan from guest-physical page `start` found accessed.
void translate(std::span<const GuestPiece> pieces, std::uint64_t start, std::span<const std::uint64_t> accessed,
               std::vector<std::uint64_t>& out);

/// The NoteAccesses that tell of this bitmap; there is at least one, and the last ends the scan.
std::vector<dataplane::v1::NoteAccesses> note_messages(const ScannedVm& vm, std::span<const std::uint64_t> accessed);

}  // namespace godwit::bridge
