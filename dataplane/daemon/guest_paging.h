#pragma once
// A guest some of whose pages are not on the host where it runs: jobs of its data plane at either end. Each runs on the
// guest's worker, with nothing else of the guest under way but what its header says. Failure: one clear error; what was
// true before it still is.

#include <expected>
#include <memory>
#include <string>

#include "dataplane/daemon/guest.h"
#include "dataplane/daemon/requests.h"

namespace godwit::daemon {

/// "" if this host can be the destination of post-copy, or why not and what to do.
std::string postcopy_refusal(const std::string& missing_dir);

// ---- the destination ----
/// Before a migration that is not pre-copy: pages of the guest may become missing.
std::expected<void, ApiError> begin_paging(Guest& guest, std::uint32_t epoch_base, const std::string& missing_dir,
                                           std::uint32_t lcores);
/// The same of one that is split at the source, and keeps its stores.
std::expected<void, ApiError> begin_split_arrival(Guest& guest, std::uint32_t epoch_base,
                                                  const std::string& missing_dir, std::uint64_t budget_pages,
                                                  std::uint32_t lcores);
/// After a restart of the daemon: takes over what is missing by the former one's file. Without it nobody knows what is.
std::expected<void, ApiError> continue_paging(Guest& guest, const std::string& missing_dir, std::uint32_t lcores);
/// The guest is ours from here on, though pages may be missing. It runs already, so nothing can refuse it: what fails
/// is logged, and costs no more than its history should this daemon end.
void take_possession(Guest& guest, pages::GenerationTable table, std::uint32_t epoch_next, const std::string& run_dir,
                     Images& images);

// ---- a main host ----
/// Nothing is missing yet, and all of it may be from here on. The errors are memory's.
std::expected<std::shared_ptr<LiveSplit>, memory::Error> create_split(Guest& guest, const std::string& missing_dir,
                                                                      memory::PinPipe pipe);
/// After a restart of the daemon: if pages of this guest were elsewhere they are, and its faults wait for SplitGuest.
/// Pages that a migration was pulling are among them.
std::expected<void, ApiError> continue_split(Guest& guest, const std::string& missing_dir, std::uint32_t lcores);

// ---- the source ----
/// The RAM files become an image that serves this migration, durable on return. QEMU, which does not run its guest any
/// more, may be ended then.
std::expected<void, ApiError> secure_image(Guest& guest, const Id128& migration, std::uint32_t epoch_next,
                                           Images& images);
/// After a restart of the daemon: the guest of the image that serves this migration, without QEMU.
std::expected<std::unique_ptr<Guest>, ApiError> open_served_image(const Id128& migration, Images& images);
/// Nobody needs it any more: an ordinary image, if it may stay.
Retained release_image(const Guest& guest, std::uint32_t epoch, bool keep, std::uint64_t guests_bytes, Images& images);
/// For transfer::Policy::pull_rank: what was accessed last comes first, or, where no scan has looked, what was written
/// last.
std::vector<transfer::PageRun> rank_for_pull(const Guest& guest);

}  // namespace godwit::daemon
