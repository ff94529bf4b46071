#include "qemu-bridge/agent/leftovers.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <csignal>
#include <system_error>

namespace godwit::bridge {
namespace {

using dataplane::v1::Error;

constexpr std::chrono::milliseconds kFinishTime{120'000};

bool process_exists(pid_t pid) { return ::kill(pid, 0) == 0 || errno != ESRCH; }

/// A write lease is granted only on a file that no other process has open or mapped.
bool nobody_has_open(const std::filesystem::path& path) {
  const UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  return file.valid() && ::fcntl(file.get(), F_SETLEASE, F_WRLCK) == 0;
}

/// The VM of "<uuid>.<region>.ram"; see ram_path().
std::optional<Id128> vm_of(const std::filesystem::path& ram_file) {
  const std::string name = ram_file.filename();
  if (ram_file.extension() != ".ram" || name.size() <= Id128::kTextLength || name[Id128::kTextLength] != '.') {
    return std::nullopt;
  }
  return Id128::parse(std::string_view(name).substr(0, Id128::kTextLength));
}

}  // namespace

std::map<Id128, Leftover> find_leftovers(const dataplane::v1::Status& status,
                                         const dataplane::v1::ListImagesResult& images,
                                         const config::BridgeConfig& config, const std::set<Id128>& here) {
  std::map<Id128, Leftover> found;
  std::set<Id128> in_order = here;
  for (const auto& guest : status.guests()) {
    const auto vm = Id128::from_bytes(guest.vm_uuid());
    if (!vm || here.contains(*vm)) {
      continue;
    }
    in_order.insert(*vm);
    if (!process_exists(guest.qemu_pid())) {
      found[*vm].guest = guest;
    }
  }
  // A guest elsewhere depends on these, whatever became of our journal: never ours to clear.
  for (const auto& paging : status.paging()) {
    if (const auto vm = Id128::from_bytes(paging.vm_uuid()); vm && paging.role() == dataplane::v1::ROLE_SOURCE) {
      in_order.insert(*vm);
      found.erase(*vm);
    }
  }
  for (const auto& image : images.images()) {
    const auto vm = Id128::from_bytes(image.id().vm_uuid());
    if (!vm || in_order.contains(*vm)) {
      continue;
    }
    if (image.in_use() && image.serving_migration_id().empty()) {
      found[*vm].interrupted = image.id();
    } else {
      in_order.insert(*vm);
    }
  }
  for (const auto& dir : {config.memory_dir_tmpfs, config.memory_dir_hugetlbfs}) {
    std::error_code error;
    for (std::filesystem::directory_iterator entry(dir, error), end; !error && entry != end; entry.increment(error)) {
      const auto vm = vm_of(entry->path());
      if (vm && !in_order.contains(*vm)) {
        found[*vm].ram_files.push_back(entry->path());
      }
    }
  }
  return found;
}

void clear_leftover(DataplaneClient& dataplane, const Id128& vm, const Leftover& leftover) {
  if (leftover.guest) {
    const auto& guest = *leftover.guest;
    if (!guest.migration_id().empty()) {
      dataplane::v1::ToDataplane request;
      auto& finish = *request.mutable_finish_migration();
      finish.set_migration_id(guest.migration_id());
      finish.set_outcome(dataplane::v1::OUTCOME_ABORTED);
      finish.set_ownership(guest.ownership());
      static_cast<void>(dataplane.call(std::move(request), {}, kFinishTime));
    }
    dataplane::v1::ToDataplane request;
    request.mutable_detach_guest()->set_vm_uuid(guest.vm_uuid());
    request.mutable_detach_guest()->set_ownership(guest.ownership());
    const auto detached = dataplane.call(std::move(request));
    spdlog::info("VM {}: gone from here, and from the data plane{}{}", vm.text(), detached ? "" : ": ",
                 detached ? "" : text_of(detached.error()));
    return;
  }
  for (const auto& path : leftover.ram_files) {
    std::error_code error;
    if (!nobody_has_open(path)) {
      return;
    }
    std::filesystem::remove(path, error);
    spdlog::info("VM {}: {} held no image: {}", vm.text(), path.string(), error ? error.message() : "removed");
  }
  if (leftover.interrupted) {
    dataplane::v1::ToDataplane request;
    *request.mutable_drop_image()->mutable_id() = *leftover.interrupted;
    if (dataplane.call(std::move(request))) {
      spdlog::info("VM {}: dropped its image, into which a migration that is gone was writing", vm.text());
    }
  }
}

}  // namespace godwit::bridge
