#pragma once
// One attached guest: who it is, its memory, its table, and the thread of its jobs. Made by attach() in a job, then
// owned by the control thread, which lends memory and table to a migration and takes them back when that has ended.
// Failure of attach(): one clear error; whatever was opened is closed, nothing of the guest was changed but the arming
// of its pages.

#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "base/uuid.h"
#include "dataplane/daemon/live_guest.h"
#include "dataplane/daemon/live_paging.h"
#include "dataplane/daemon/live_split.h"
#include "dataplane/daemon/requests.h"
#include "dataplane/daemon/worker.h"
#include "dataplane/memory/retained_image.h"
#include "dataplane/pages/access_history.h"
#include "dataplane/pages/generation_table.h"

namespace godwit::daemon {

memory::Id to_memory_id(const Id128& id);
Id128 from_memory_id(const memory::Id& id);

/// The retained images of the host, for jobs of several guests.
struct Images {
  std::mutex mutex;
  memory::ImageStore store;
  explicit Images(memory::ImageStore opened) : store(std::move(opened)) {}
};

struct Guest {
  Id128 vm_uuid;
  Id128 image_id;
  std::uint64_t ownership = 0;
  std::int32_t qemu_pid = 0;
  api::AttachGuest::Kind kind = api::AttachGuest::FRESH;
  TrackedGuest tracked;
  std::vector<memory::ImageRegion> regions;
  std::uint64_t bytes_total = 0;

  std::unique_ptr<LiveGuest> memory;
  bool demand_paging = false;          // its userfaultfds see every access
  bool pulls_on = false;               // a former daemon pulled pages of it, and SplitGuest has not come yet
  std::shared_ptr<LivePaging> paging;  // null: nothing comes by a migration, nor will
  bool split_allowed = false;          // attached so that it may be split
  std::shared_ptr<LiveSplit> split;    // null: it is not
  std::uint32_t paging_epoch = 0;      // epoch_base of the migration whose pages may be missing
  pages::GenerationTable table;
  /// Generation of what the next scan finds. In doubt after a lost history of which not even the epoch is known.
  std::uint32_t epoch_now = 0;
  bool epoch_in_doubt = false;

  /// Of the jobs of this guest alone (guest_heat.h).
  pages::AccessHistory accesses;
  api::AccessSource access_source = api::ACCESS_UNKNOWN;  // of the last scan
  std::uint64_t accessed_pages = 0;                       // found by it

  std::string tracker_reason;
  std::string history_lost;  // reason; empty: history is whole

  /// A table that goes with the RAM files: of what page stores have those have nothing.
  void forget_away(pages::GenerationTable& with_files) const {
    if (split) {
      with_files.set_written(split->pager()->missing(), pages::kUnknownGeneration);
    }
  }
  [[nodiscard]] std::uint64_t pages_missing() const {
    return split ? split->missing_count() : paging ? paging->missing_count() : 0;
  }
};

struct AttachContext {
  std::string run_dir;
  Id128 boot_id;  // of the host
  Images* images = nullptr;
  std::uint64_t guests_bytes = 0;  // what the other guests have of the host's memory budget
  std::string missing_dir;         // of what guests lack
  std::uint32_t lcores = 1;        // that may place pages
};

/// A job: opens, arms, and finds out what is known of the guest's history. A guest that runs already has its memory
/// whatever the budget says: retained images go until it fits, and if it never does it is attached all the same.
std::expected<std::unique_ptr<Guest>, ApiError> attach(Attachment attachment, const AttachContext& context);

/// A job, at a destination: takes the retained image, if it is the one wanted and its RAM is what is attached;
/// otherwise makes the RAM all zero. Result: the image's table, or why there is none.
struct ArrivalReuse {
  std::optional<pages::GenerationTable> table;
  std::string reason;
};
std::expected<ArrivalReuse, ApiError> prepare_arrival(Guest& guest, const std::optional<Id128>& reuse_image_id,
                                                      Images& images);

struct Retained {
  bool retained = false;
  std::string reason;  // why not
};

/// The guest's RAM as it lies, as a retained image.
memory::RetainedImage image_of(const Guest& guest, pages::GenerationTable table, std::uint32_t epoch);

/// Of the image of this VM that has just been saved: older images go first, and it too if it does not fit without them.
Retained keep_within_budget(const memory::Id& kept, std::uint64_t guests_bytes, memory::ImageStore& store);

/// A job: keeps the guest's RAM as a retained image of `table`, in which every page written since the last scan becomes
/// unknown. `guests_bytes`: what the other guests have of the host's memory budget. What they leave is the limit: older
/// images go first, and this one too if it does not fit without them.
Retained retain(Guest& guest, pages::GenerationTable table, std::uint32_t epoch, std::uint64_t guests_bytes,
                Images& images);

/// A job: from here on the history of this guest survives a restart of the daemon.
std::expected<void, ApiError> persist_history(Guest& guest, const std::string& run_dir);

}  // namespace godwit::daemon
