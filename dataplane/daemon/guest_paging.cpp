#include "dataplane/daemon/guest_paging.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "dataplane/memory/kernel_abi.h"
#include "dataplane/memory/userfault.h"

namespace godwit::daemon {
namespace {

/// Of no migration: what is missing of a split VM is nobody's attempt.
constexpr std::uint32_t kSplitEpoch = UINT32_MAX;

ApiError from_memory(const memory::Error& error) { return {to_api(error.code), error.text}; }

memory::MissingOf missing_of(const Guest& guest, std::uint32_t epoch) {
  return {.vm_uuid = to_memory_id(guest.vm_uuid),
          .image_id = to_memory_id(guest.image_id),
          .boot_id = to_memory_id(guest.tracked.boot_id),
          .epoch = epoch,
          .qemu_pid = guest.tracked.qemu_pid,
          .qemu_start = guest.tracked.qemu_start,
          .page_count = guest.tracked.page_count,
          .shape_hash = guest.tracked.shape_hash};
}

}  // namespace

std::string postcopy_refusal(const std::string& missing_dir) {
  const std::uint64_t features = memory::Userfault::kernel_features().value_or(0);
  if ((features & memory::abi::kFeatureMissingShmem) == 0) {
    return "this kernel's userfaultfd cannot be used, or knows no missing pages of shared memory (Linux 4.11)";
  }
  struct statfs system {};
  if (statfs(missing_dir.c_str(), &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return "the first of memory_dirs that takes ordinary files, " + missing_dir +
           ", is not on tmpfs, and the note of what is missing cannot wait for a disk";
  }
  return {};
}

std::expected<void, ApiError> begin_paging(Guest& guest, std::uint32_t epoch_base, const std::string& missing_dir,
                                           std::uint32_t lcores) {
  auto paging = LivePaging::create(*guest.memory, LivePaging::file_of(missing_dir, guest.vm_uuid),
                                   missing_of(guest, epoch_base), lcores);
  if (!paging) {
    return std::unexpected(from_memory(paging.error()));
  }
  guest.paging = std::move(*paging);
  guest.paging_epoch = epoch_base;
  return {};
}

std::expected<void, ApiError> begin_split_arrival(Guest& guest, std::uint32_t epoch_base,
                                                  const std::string& missing_dir, std::uint64_t budget_pages,
                                                  std::uint32_t lcores) {
  auto split = LiveSplit::arrive(*guest.memory, missing_dir, missing_of(guest, kSplitEpoch), budget_pages, lcores);
  if (!split) {
    return std::unexpected(from_memory(split.error()));
  }
  guest.split = std::move(*split);
  guest.paging = LivePaging::of_split(*guest.memory, guest.split, lcores, false);
  guest.paging_epoch = epoch_base;
  return {};
}

std::expected<void, ApiError> continue_paging(Guest& guest, const std::string& missing_dir, std::uint32_t lcores) {
  auto paging = LivePaging::take_over(*guest.memory, LivePaging::file_of(missing_dir, guest.vm_uuid),
                                      missing_of(guest, guest.paging_epoch), lcores);
  if (!paging) {
    return std::unexpected(
        ApiError{to_api(paging.error().code), "what the guest lacks is not known: " + paging.error().text});
  }
  guest.paging = std::move(*paging);
  return {};
}

std::expected<std::shared_ptr<LiveSplit>, memory::Error> create_split(Guest& guest, const std::string& missing_dir,
                                                                      memory::PinPipe pipe) {
  auto split = LiveSplit::create(*guest.memory, missing_dir, missing_of(guest, kSplitEpoch), std::move(pipe));
  if (split) {
    (*split)->learn(guest.accesses);
  }
  return split;
}

std::expected<void, ApiError> continue_split(Guest& guest, const std::string& missing_dir, std::uint32_t lcores) {
  if (!LiveSplit::left_behind(missing_dir, guest.vm_uuid)) {
    if (guest.demand_paging) {
      return std::unexpected(
          ApiError{api::Error::KERNEL, "what the guest lacks is not known: its files are not there"});
    }
    return {};
  }
  auto split = LiveSplit::take_over(*guest.memory, missing_dir, missing_of(guest, kSplitEpoch), lcores);
  if (!split) {
    return std::unexpected(
        ApiError{to_api(split.error().code), "what is elsewhere is not known: " + split.error().text});
  }
  guest.split = std::move(*split);
  guest.pulls_on = guest.demand_paging;
  return {};
}

void take_possession(Guest& guest, pages::GenerationTable table, std::uint32_t epoch_next, const std::string& run_dir,
                     Images& images) {
  guest.table = std::move(table);
  guest.epoch_now = epoch_next;
  guest.kind = api::AttachGuest::CONTINUING;
  if (guest.split) {
    guest.split->stop_asking_source();
  }
  {
    // Its RAM is a running guest's now.
    const std::lock_guard lock(images.mutex);
    if (const auto forgotten = images.store.forget(to_memory_id(guest.vm_uuid)); !forgotten) {
      spdlog::error("VM {}: {}", guest.vm_uuid.text(), printable(forgotten.error().text));
    }
  }
  if (const auto persisted = persist_history(guest, run_dir); !persisted) {
    spdlog::error("VM {}: its history would not survive this daemon: {}", guest.vm_uuid.text(),
                  printable(persisted.error().text));
  }
}

std::expected<void, ApiError> secure_image(Guest& guest, const Id128& migration, std::uint32_t epoch_next,
                                           Images& images) {
  pages::Bitmap written(guest.memory->page_count());
  if (const auto collected = guest.memory->collect_written(written); !collected) {
    guest.table.fill(pages::kUnknownGeneration);  // QEMU has exited: the memory serves, and that is all that is known
  }
  if (const auto whole = guest.memory->check_whole(); !whole) {
    return std::unexpected(ApiError{api::Error::KERNEL, whole.error().text});
  }
  guest.table.set_written(written, pages::kUnknownGeneration);
  guest.forget_away(guest.table);
  memory::RetainedImage image = image_of(guest, guest.table, epoch_next);
  image.serving = to_memory_id(migration);
  const std::lock_guard lock(images.mutex);
  if (const auto saved = images.store.save(image); !saved) {
    return std::unexpected(from_memory(saved.error()));
  }
  return {};
}

std::expected<std::unique_ptr<Guest>, ApiError> open_served_image(const Id128& migration, Images& images) {
  std::expected<memory::RetainedImage, memory::ImageRefused> image;
  {
    const std::lock_guard lock(images.mutex);
    image = images.store.load_serving(to_memory_id(migration));
  }
  if (!image) {
    return std::unexpected(ApiError{api::Error::NO_SUCH_MIGRATION,
                                    "migration " + migration.text() + " has no session here: " + image.error().text});
  }
  auto guest = std::make_unique<Guest>();
  std::vector<memory::RegionFile> files;
  for (const memory::ImageRegion& region : image->regions) {
    UniqueFd file(open(region.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (!file.valid()) {
      return std::unexpected(ApiError{api::Error::KERNEL, "open of " + region.path + ": " + std::strerror(errno)});
    }
    files.push_back({region.name, region.bytes, region.page_bytes, 0, region.path, std::move(file)});
    guest->bytes_total += region.bytes;
  }
  auto ram = memory::GuestRam::open(std::move(files));
  if (!ram) {
    return std::unexpected(from_memory(ram.error()));
  }
  guest->vm_uuid = from_memory_id(image->vm_uuid);
  guest->image_id = from_memory_id(image->image_id);
  guest->regions = std::move(image->regions);
  guest->table = std::move(image->table);
  guest->epoch_now = image->epoch;
  guest->kind = api::AttachGuest::CONTINUING;
  auto owned = std::make_unique<memory::GuestRam>(std::move(*ram));
  auto hashes = std::make_shared<memory::KnownHashes>(owned->page_count());
  for (pages::PageNumber page = 0; page < image->hashes.size(); ++page) {
    hashes->set(page, image->hashes[page]);
  }
  // Nobody writes to it: the one that needs nothing of QEMU does.
  const auto kind = memory::TrackerKind::kHashes;
  memory::TrackerRequest request;
  request.ram = owned.get();
  request.hashes = hashes;
  auto chosen = memory::choose_tracker(std::move(request), &kind);
  if (!chosen) {
    return std::unexpected(from_memory(chosen.error()));
  }
  guest->tracker_reason = "there is no QEMU";
  guest->memory =
      std::make_unique<LiveGuest>(std::move(owned), std::move(chosen->tracker), std::move(hashes), std::nullopt, false);
  if (const auto looked = guest->memory->refresh_present(); !looked) {
    return std::unexpected(ApiError{api::Error::KERNEL, looked.error().text});
  }
  return guest;
}

Retained release_image(const Guest& guest, std::uint32_t epoch, bool keep, std::uint64_t guests_bytes, Images& images) {
  const memory::RetainedImage image = image_of(guest, guest.table, epoch);
  const std::lock_guard lock(images.mutex);
  if (const auto saved = images.store.save(image); !saved) {
    return {false, saved.error().text};
  }
  if (keep) {
    return keep_within_budget(image.vm_uuid, guests_bytes, images.store);
  }
  const auto dropped = images.store.drop(image.vm_uuid);
  return {!dropped, dropped ? "nobody can tell any more what it holds" : dropped.error().text};
}

namespace {

/// Runs of pages of the same key, the largest key first.
template <class Key>
std::vector<transfer::PageRun> rank_by(std::uint64_t page_count, const Key& key) {
  std::vector<transfer::PageRun> runs;
  for (pages::PageNumber first = 0; first < page_count;) {
    pages::PageNumber end = first + 1;
    while (end < page_count && key(end) == key(first)) {
      ++end;
    }
    runs.push_back({first, end - first});
    first = end;
  }
  std::ranges::stable_sort(runs, std::ranges::greater{},
                           [&key](const transfer::PageRun& run) { return key(run.first); });
  return runs;
}

}  // namespace

std::vector<transfer::PageRun> rank_for_pull(const Guest& guest) {
  if (guest.accesses.scans() == 0) {
    const auto entries = guest.table.entries();
    return rank_by(entries.size(), [&entries](pages::PageNumber page) { return entries[page]; });
  }
  // By the scan that last found it: finer differences would only make runs short.
  const auto heat = guest.accesses.heat();
  return rank_by(heat.size(), [&heat](pages::PageNumber page) { return std::bit_width(heat[page]); });
}

}  // namespace godwit::daemon
