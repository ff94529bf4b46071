#pragma once
// The access history of a guest: jobs of its worker, the only ones that use Guest::accesses. No migration may have the
// guest meanwhile, nor may one be prepared (Service sees to it): a scan of writes takes from the tracker what the next
// migration has to know, and enters it in the table. Failure: one clear error.

#include <expected>

#include "dataplane/daemon/guest.h"
#include "dataplane/daemon/requests.h"

namespace godwit::daemon {

/// Why the accesses of this guest cannot be found by what it writes; "" if they can.
std::string writes_refusal(const Guest& guest);

/// A scan, or a part of one, that fits the guest.
std::expected<api::NoteAccessesResult, ApiError> note_accesses(Guest& guest, const Accesses& accesses,
                                                               LiveSplit* split = nullptr);

api::HeatMap heat_map(const Guest& guest, std::uint32_t cells);

}  // namespace godwit::daemon
