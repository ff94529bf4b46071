#include "dataplane/daemon/guest.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/atomic_file.h"
#include "base/log.h"
#include "dataplane/daemon/guest_paging.h"

namespace godwit::daemon {
namespace {

ApiError from_memory(const memory::Error& error) { return {to_api(error.code), error.text}; }

/// Field 22 of /proc/PID/stat: with the pid it names a process for good.
std::expected<std::uint64_t, ApiError> process_start(std::int32_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  const auto text = read_file(path, 4096);
  if (!text) {
    return std::unexpected(ApiError{api::Error::BAD_REQUEST, "AttachGuest: qemu_pid: " + text.error().text()});
  }
  // The second field is the name in parentheses, which may hold anything.
  std::size_t at = text->rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) {
    at = text->find(' ', at + 1);
  }
  if (at == std::string::npos) {
    return std::unexpected(ApiError{api::Error::KERNEL, path + ": has no field 22"});
  }
  return std::strtoull(text->c_str() + at + 1, nullptr, 10);
}

std::uint64_t shape_hash(const std::vector<memory::RegionFile>& files) {
  std::string text;
  for (const memory::RegionFile& file : files) {
    text += file.name + ' ' + std::to_string(file.bytes) + ' ' + std::to_string(file.page_bytes) + ' ' +
            std::to_string(file.qemu_address) + '\n';
  }
  return XXH3_64bits(text.data(), text.size());
}

std::expected<void, ApiError> describe(Guest& guest, const std::vector<memory::RegionFile>& files) {
  for (const memory::RegionFile& file : files) {
    auto region = memory::describe_ram_file(file.name, file.bytes, file.page_bytes, file.path, file.file.get());
    if (!region) {
      return std::unexpected(from_memory(region.error()));
    }
    guest.regions.push_back(std::move(*region));
    guest.bytes_total += file.bytes;
  }
  return {};
}

/// A first attach after a cold boot: whatever is present was written in this visit.
std::expected<void, ApiError> begin_history(Guest& guest, const AttachContext& context) {
  pages::Bitmap present(guest.memory->page_count());
  if (auto found = guest.memory->ram().find_present(present); !found) {
    return std::unexpected(from_memory(found.error()));
  }
  guest.table.set_written(present, guest.epoch_now);
  const std::lock_guard lock(context.images->mutex);
  auto forgotten = context.images->store.forget(to_memory_id(guest.vm_uuid));
  if (forgotten) {
    forgotten = context.images->store.forget_files(guest.regions);
  }
  if (!forgotten) {
    return std::unexpected(from_memory(forgotten.error()));
  }
  return {};
}

void make_room(const Guest& guest, const AttachContext& context) {
  const std::lock_guard lock(context.images->mutex);
  memory::ImageStore& store = context.images->store;
  const std::uint64_t bytes = context.guests_bytes + guest.bytes_total;
  if (store.budget_bytes() == 0) {
    return;
  }
  if (const auto made = store.make_room(bytes, to_memory_id(guest.vm_uuid)); !made) {
    spdlog::warn("VM {}: retained images could not be dropped to make room: {}", guest.vm_uuid.text(),
                 printable(made.error().text));
  } else if (made->used_bytes + bytes > store.budget_bytes()) {
    spdlog::warn("VM {}: with it guests and images have {} bytes, more than memory_budget, {}", guest.vm_uuid.text(),
                 made->used_bytes + bytes, store.budget_bytes());
  }
}

void lose_history(Guest& guest, const AttachContext& context, std::string reason) {
  guest.history_lost = std::move(reason);
  guest.table.fill(pages::kUnknownGeneration);
  const std::uint32_t floor = TrackingState::epoch_floor(context.run_dir, guest.tracked);
  guest.epoch_in_doubt = floor == 0;
  guest.epoch_now = std::max(guest.epoch_now, floor);
}

/// After a restart of the daemon under the same QEMU.
void continue_history(Guest& guest, const AttachContext& context) {
  if (guest.memory->tracker() != memory::TrackerKind::kPagemapScan) {
    lose_history(guest, context,
                 "tracker " + std::string(memory::name_of(guest.memory->tracker())) +
                     " keeps what was written in the daemon that is gone");
    return;
  }
  auto state = TrackingState::adopt(context.run_dir, guest.tracked);
  if (!state) {
    lose_history(guest, context, state.error());
    return;
  }
  guest.table = state->table();
  guest.epoch_now = std::max(guest.epoch_now, state->epoch());
}

/// What each userfaultfd serves, in QEMU's addresses; one for a range over several regions is there for each of them.
std::expected<std::vector<memory::UserfaultPart>, ApiError> parts_by_address(const memory::GuestRam& ram,
                                                                             std::vector<FaultPart> parts) {
  std::vector<memory::UserfaultPart> result;
  for (const FaultPart& part : parts) {
    const pages::PageNumber end = part.pages.first + part.pages.count;
    for (pages::PageNumber first = part.pages.first; first < end;) {
      const memory::Region& region = ram.region_of(first);
      const std::uint64_t count = std::min(end, region.first_page + region.page_count) - first;
      UniqueFd copy(fcntl(part.userfaultfd.get(), F_DUPFD_CLOEXEC, 0));
      if (!copy.valid()) {
        return std::unexpected(
            ApiError{api::Error::KERNEL, std::string("fcntl of a userfaultfd: ") + std::strerror(errno)});
      }
      result.push_back({std::move(copy), ram.qemu_range({first, count})});
      first += count;
    }
  }
  return result;
}

std::expected<ArrivalReuse, ApiError> start_from_zero(Guest& guest, std::string reason, Images& images) {
  {
    // First the record goes: from then on nothing presents this RAM as an image.
    const std::lock_guard lock(images.mutex);
    auto forgotten = images.store.forget(to_memory_id(guest.vm_uuid));
    if (forgotten) {
      forgotten = images.store.forget_files(guest.regions);
    }
    if (!forgotten) {
      return std::unexpected(from_memory(forgotten.error()));
    }
  }
  if (auto cleared = guest.memory->clear_all(); !cleared) {
    return std::unexpected(ApiError{api::Error::KERNEL, cleared.error().text});
  }
  return ArrivalReuse{std::nullopt, std::move(reason)};
}

std::expected<void, ApiError> arm_and_begin(Guest& guest, const AttachContext& context) {
  auto armed = guest.memory->arm();
  if (armed) {
    armed = guest.memory->refresh_present();
  }
  if (!armed) {
    return std::unexpected(ApiError{api::Error::KERNEL, armed.error().text});
  }
  if (guest.kind == api::AttachGuest::ARRIVING) {
    return {};  // its history comes with it
  }
  if (guest.kind == api::AttachGuest::CONTINUING) {
    continue_history(guest, context);
    auto missing = guest.split_allowed   ? continue_split(guest, context.missing_dir, context.lcores)
                   : guest.demand_paging ? continue_paging(guest, context.missing_dir, context.lcores)
                                         : std::expected<void, ApiError>{};
    if (!missing) {
      return missing;
    }
  } else if (auto begun = begin_history(guest, context); !begun) {
    return begun;
  }
  make_room(guest, context);  // only now no record names the RAM of this guest
  return persist_history(guest, context.run_dir);
}

ApiError without_userfaults(const Guest& guest) {
  const char* const why =
      guest.split_allowed ? "AttachGuest: split needs a userfaultfd of QEMU that can be used, and no hash tracker"
                          : "AttachGuest: demand_paging needs a userfaultfd of QEMU that can be used: use mode precopy";
  return {api::Error::BAD_REQUEST, why};
}

}  // namespace

Retained keep_within_budget(const memory::Id& kept, std::uint64_t guests_bytes, memory::ImageStore& store) {
  if (store.budget_bytes() == 0) {
    return {true, {}};
  }
  const auto made = store.make_room(guests_bytes, kept);
  if (!made) {
    return {true, "kept, but older images could not be dropped: " + made.error().text};
  }
  if (made->used_bytes + guests_bytes <= store.budget_bytes()) {
    return {true, {}};
  }
  const auto dropped = store.drop(kept);
  return {!dropped, "guests have " + std::to_string(guests_bytes) + " bytes of memory_budget, " +
                        std::to_string(store.budget_bytes()) + ", and the image does not fit beside them" +
                        (dropped ? "" : "; dropping it failed: " + dropped.error().text)};
}

memory::Id to_memory_id(const Id128& id) {
  memory::Id result;
  std::memcpy(result.data(), id.bytes().data(), result.size());
  return result;
}

Id128 from_memory_id(const memory::Id& id) {
  std::array<std::uint8_t, 16> bytes;
  std::memcpy(bytes.data(), id.data(), bytes.size());
  return Id128(bytes);
}

std::expected<std::unique_ptr<Guest>, ApiError> attach(Attachment attachment, const AttachContext& context) {
  auto guest = std::make_unique<Guest>();
  const auto start = process_start(attachment.qemu_pid);
  if (!start) {
    return std::unexpected(start.error());
  }
  if (auto described = describe(*guest, attachment.files); !described) {
    return std::unexpected(described.error());
  }
  guest->vm_uuid = attachment.vm_uuid;
  guest->image_id = attachment.image_id;
  guest->ownership = attachment.ownership;
  guest->qemu_pid = attachment.qemu_pid;
  guest->kind = attachment.kind;
  guest->epoch_now = attachment.epoch;
  guest->demand_paging = attachment.demand_paging;
  guest->paging_epoch = attachment.paging_epoch;
  guest->split_allowed = attachment.split;
  const std::uint64_t shape = shape_hash(attachment.files);
  auto ram = memory::GuestRam::open(std::move(attachment.files));
  if (!ram) {
    return std::unexpected(from_memory(ram.error()));
  }
  auto owned = std::make_unique<memory::GuestRam>(std::move(*ram));
  const std::uint64_t page_count = owned->page_count();
  guest->tracked = {.vm_uuid = guest->vm_uuid,
                    .image_id = guest->image_id,
                    .boot_id = context.boot_id,
                    .qemu_pid = guest->qemu_pid,
                    .qemu_start = *start,
                    .page_count = page_count,
                    .shape_hash = shape};
  auto hashes = std::make_shared<memory::KnownHashes>(page_count);
  memory::TrackerRequest request;
  request.ram = owned.get();
  request.hashes = hashes;
  request.userfaultfd = std::move(attachment.userfaultfd);
  if (auto parts = parts_by_address(*owned, std::move(attachment.fault_parts))) {
    request.userfaultfds_by_range = std::move(*parts);
  } else {
    return std::unexpected(parts.error());
  }
  request.pagemap = std::move(attachment.pagemap);
  request.has_balloon = attachment.has_balloon;
  // An arriving guest's hashes come with its image or its pages.
  request.learn_hashes = owned->any_huge() && attachment.kind != api::AttachGuest::ARRIVING;
  request.continuing = attachment.kind == api::AttachGuest::CONTINUING;
  auto chosen = memory::choose_tracker(std::move(request), attachment.tracker ? &*attachment.tracker : nullptr);
  if (!chosen) {
    return std::unexpected(from_memory(chosen.error()));
  }
  if (chosen->tracker->userfaults() == nullptr && (guest->demand_paging || guest->split_allowed)) {
    return std::unexpected(without_userfaults(*guest));
  }
  guest->tracker_reason = std::move(chosen->reason);
  guest->memory = std::make_unique<LiveGuest>(std::move(owned), std::move(chosen->tracker), std::move(hashes),
                                              std::nullopt, attachment.has_balloon);
  guest->table = pages::GenerationTable(page_count);
  guest->accesses = pages::AccessHistory(page_count);
  if (auto begun = arm_and_begin(*guest, context); !begun) {
    // QEMU keeps the userfaultfd open: armed and without a reader, its next balloon removal would wait for ever. Of one
    // that continues another descriptor may hold the history.
    if (guest->kind != api::AttachGuest::CONTINUING) {
      static_cast<void>(guest->memory->disarm());
    }
    return std::unexpected(begun.error());
  }
  return guest;
}

std::expected<void, ApiError> persist_history(Guest& guest, const std::string& run_dir) {
  if (guest.memory->state() == nullptr) {
    auto state = TrackingState::create(run_dir, guest.tracked);
    if (!state) {
      return std::unexpected(ApiError{api::Error::KERNEL, state.error()});
    }
    guest.memory->set_state(std::move(*state));
  }
  guest.memory->state()->store(guest.table, guest.epoch_now);
  return {};
}

std::expected<ArrivalReuse, ApiError> prepare_arrival(Guest& guest, const std::optional<Id128>& reuse_image_id,
                                                      Images& images) {
  if (!reuse_image_id) {
    return start_from_zero(guest, "no retained image was named", images);
  }
  memory::ImageWanted wanted;
  wanted.vm_uuid = to_memory_id(guest.vm_uuid);
  wanted.image_id = to_memory_id(*reuse_image_id);
  for (const memory::ImageRegion& region : guest.regions) {
    wanted.regions.push_back({region.name, region.bytes, region.page_bytes});
  }
  std::optional<memory::RetainedImage> image;
  std::string refused;
  {
    const std::lock_guard lock(images.mutex);
    if (auto acquired = images.store.acquire(wanted)) {
      image = std::move(*acquired);
    } else {
      refused = acquired.error().text;
    }
  }
  if (!image) {
    return start_from_zero(guest, std::move(refused), images);
  }
  for (std::size_t i = 0; i < guest.regions.size(); ++i) {
    if (image->regions[i].device != guest.regions[i].device || image->regions[i].inode != guest.regions[i].inode) {
      return start_from_zero(
          guest,
          "region " + guest.regions[i].name + ": QEMU runs on another file than the retained " + image->regions[i].path,
          images);
    }
  }
  if (image->hashes.size() == guest.memory->page_count()) {
    for (pages::PageNumber page = 0; page < image->hashes.size(); ++page) {
      guest.memory->hashes()->set(page, image->hashes[page]);
    }
  }
  // After the hashes, which the scan may compare with. What QEMU has written since its pages were armed is no longer
  // the image's.
  pages::Bitmap written(guest.memory->page_count());
  if (auto collected = guest.memory->collect_written(written); !collected) {
    return std::unexpected(ApiError{api::Error::KERNEL, collected.error().text});
  }
  image->table.set_written(written, pages::kUnknownGeneration);
  return ArrivalReuse{std::move(image->table), {}};
}

Retained retain(Guest& guest, pages::GenerationTable table, std::uint32_t epoch, std::uint64_t guests_bytes,
                Images& images) {
  pages::Bitmap written(guest.memory->page_count());
  auto collected = guest.memory->collect_written(written);
  std::string reason;
  if (!collected) {
    reason = "the last scan failed: " + collected.error().text;
  }
  for (const memory::ImageRegion& region : guest.regions) {
    if (region.path.empty()) {
      reason = "region " + region.name + " is no file with a name (memfd)";
    }
  }
  const std::lock_guard lock(images.mutex);
  if (!reason.empty()) {
    // An older record would still name these files, whose content it no longer describes.
    const auto forgotten = images.store.forget(to_memory_id(guest.vm_uuid));
    return {false, forgotten ? reason : reason + "; " + forgotten.error().text};
  }
  table.set_written(written, pages::kUnknownGeneration);
  guest.forget_away(table);
  const memory::RetainedImage image = image_of(guest, std::move(table), epoch);
  if (auto saved = images.store.save(image); !saved) {
    return {false, saved.error().text};
  }
  return keep_within_budget(image.vm_uuid, guests_bytes, images.store);
}

memory::RetainedImage image_of(const Guest& guest, pages::GenerationTable table, std::uint32_t epoch) {
  memory::RetainedImage image;
  image.vm_uuid = to_memory_id(guest.vm_uuid);
  image.image_id = to_memory_id(guest.image_id);
  image.epoch = epoch;
  image.regions = guest.regions;
  image.table = std::move(table);
  if (guest.memory->keeps_hashes()) {
    image.hashes.resize(guest.memory->page_count());
    for (pages::PageNumber page = 0; page < image.hashes.size(); ++page) {
      image.hashes[page] = guest.memory->hashes()->get(page);
    }
  }
  return image;
}

}  // namespace godwit::daemon
