#include "dataplane/memory/retained_image.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "dataplane/memory/image_record.h"

namespace godwit::memory {
namespace {

constexpr std::string_view kImageSuffix = ".image";
constexpr std::string_view kInUseSuffix = ".image.in-use";
constexpr std::string_view kNewSuffix = ".image.new";

std::string image_name(const Id& id) { return to_string(id).append(kImageSuffix); }
std::string in_use_name(const Id& id) { return to_string(id).append(kInUseSuffix); }

struct RecordName {
  Id vm_uuid;
  bool in_use;
};

std::optional<RecordName> parse_record_name(std::string_view name) {
  for (const auto suffix : {kInUseSuffix, kImageSuffix}) {
    if (name.ends_with(suffix)) {
      const auto id = parse_id(name.substr(0, name.size() - suffix.size()));
      return id ? std::optional(RecordName{*id, suffix == kInUseSuffix}) : std::nullopt;
    }
  }
  return std::nullopt;
}

ImageRefused refused(Refusal reason, const std::string& name, const std::string& text) {
  return {reason, "retained image " + name + ": " + text};
}

std::expected<std::vector<std::string>, Error> names_in(const std::string& directory) {
  DIR* opened = opendir(directory.c_str());
  if (opened == nullptr) {
    return std::unexpected(kernel_error("opendir", directory, errno));
  }
  std::vector<std::string> names;
  while (const dirent* entry = readdir(opened)) {
    names.emplace_back(entry->d_name);
  }
  closedir(opened);
  std::ranges::sort(names);
  return names;
}

std::expected<void, Error> write_fully(int file, std::span<const std::byte> bytes, const std::string& name) {
  while (!bytes.empty()) {
    const ssize_t put = write(file, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) {
      continue;
    }
    if (put <= 0) {
      return std::unexpected(kernel_error("write", name, put < 0 ? errno : EIO));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return {};
}

std::expected<std::vector<std::byte>, ImageRefused> read_part(int file, std::uint64_t offset, std::uint64_t count,
                                                              const std::string& name) {
  std::vector<std::byte> bytes(count);
  for (std::uint64_t at = 0; at < count;) {
    const ssize_t got = pread(file, &bytes[at], count - at, static_cast<off_t>(offset + at));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return std::unexpected(refused(Refusal::kSystem, name, kernel_error("read", "it", errno).text));
    }
    if (got == 0) {
      return std::unexpected(refused(Refusal::kTruncated, name, "the record ends early"));
    }
    at += static_cast<std::uint64_t>(got);
  }
  return bytes;
}

struct OpenRecord {
  UniqueFd file;
  RecordHead head;
  std::int64_t modified_ns;
  std::uint64_t allocated_bytes;
};

std::expected<OpenRecord, ImageRefused> open_record(int directory, const std::string& name) {
  UniqueFd file(openat(directory, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid()) {
    const Refusal reason = errno == ENOENT ? Refusal::kMissing : Refusal::kSystem;
    return std::unexpected(
        refused(reason, name, errno == ENOENT ? "there is none" : kernel_error("open", "it", errno).text));
  }
  struct stat status {};
  if (fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return std::unexpected(refused(Refusal::kNotAnImage, name, "it is no ordinary file"));
  }
  const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
  const auto start = read_part(file.get(), 0, std::min<std::uint64_t>(file_bytes, kRecordHeadBytesMin), name);
  if (!start) {
    return std::unexpected(start.error());
  }
  const auto lengths = decode_lengths(*start, file_bytes);
  if (!lengths) {
    return std::unexpected(refused(lengths.error().reason, name, lengths.error().text));
  }
  const auto bytes = read_part(file.get(), 0, lengths->head_bytes, name);
  if (!bytes) {
    return std::unexpected(bytes.error());
  }
  auto head = decode_head(*bytes);
  if (!head) {
    return std::unexpected(refused(head.error().reason, name, head.error().text));
  }
  const std::int64_t modified_ns = status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
  return OpenRecord{std::move(file), std::move(*head), modified_ns, static_cast<std::uint64_t>(status.st_blocks) * 512};
}

bool is_ram_file(const ImageRegion& region, const struct stat& status) {
  return S_ISREG(status.st_mode) && status.st_dev == region.device && status.st_ino == region.inode;
}

/// The RAM files are still those that the record means.
std::expected<void, ImageRefused> check_ram_files(const RecordHead& head, const std::string& name) {
  for (const ImageRegion& region : head.regions) {
    struct stat status {};
    if (stat(region.path.c_str(), &status) != 0) {
      return std::unexpected(refused(Refusal::kRamFileGone, name, "RAM file " + region.path + " is gone"));
    }
    if (!is_ram_file(region, status)) {
      return std::unexpected(
          refused(Refusal::kRamFileReplaced, name, "RAM file " + region.path + " is another one now"));
    }
    if (static_cast<std::uint64_t>(status.st_size) != region.bytes) {
      return std::unexpected(refused(Refusal::kRamFileResized, name,
                                     "RAM file " + region.path + " has " + std::to_string(status.st_size) +
                                         " bytes, not " + std::to_string(region.bytes)));
    }
  }
  return {};
}

std::expected<void, ImageRefused> check_wanted(const RetainedImage& image, const ImageWanted& wanted,
                                               const std::string& name) {
  if (image.image_id != wanted.image_id) {
    return std::unexpected(refused(Refusal::kOtherImage, name, "it is of another cold boot of this VM"));
  }
  const bool same = std::ranges::equal(image.regions, wanted.regions, [](const ImageRegion& a, const auto& b) {
    return a.name == b.name && a.bytes == b.bytes && a.page_bytes == b.page_bytes;
  });
  if (!same) {
    return std::unexpected(refused(Refusal::kOtherRegions, name,
                                   "its RAM regions differ from the VM's in name, size, page size or order"));
  }
  return {};
}

std::uint64_t resident_bytes(const RecordHead& head) {
  std::uint64_t sum = 0;
  for (const ImageRegion& region : head.regions) {
    struct stat status {};
    if (stat(region.path.c_str(), &status) == 0 && is_ram_file(region, status)) {
      sum += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
  }
  return sum;
}

bool has_ram_file(const RecordHead& head) {
  return std::ranges::any_of(head.regions, [](const ImageRegion& region) {
    struct stat status {};
    return stat(region.path.c_str(), &status) == 0 && is_ram_file(region, status);
  });
}

/// Memory of before a restart of the host, or whose files are all gone, serves nobody any more.
bool serves(const RecordHead& head, const Id& boot_id) {
  return head.serving != Id{} && head.boot_id == boot_id && has_ram_file(head);
}

std::unexpected<Error> still_serves(const RecordHead& head) {
  return std::unexpected(Error{ErrorCode::kBadArgument, "the retained image of VM " + to_string(head.vm_uuid) +
                                                            " still serves migration " + to_string(head.serving) +
                                                            ", whose guest lacks pages: let that end first"});
}

std::expected<void, Error> check_image(const RetainedImage& image) {
  std::uint64_t bytes = 0;
  for (const ImageRegion& region : image.regions) {
    if (!region.path.starts_with('/')) {
      return std::unexpected(Error{ErrorCode::kBadArgument, "region '" + region.name +
                                                                "' has no RAM file with a name (memfd?): only "
                                                                "memory-backend-file can be retained"});
    }
    bytes += region.bytes;
  }
  GW_ASSERT(bytes / pages::kPageSize == image.table.size());
  GW_ASSERT(image.hashes.empty() || image.hashes.size() == image.table.size());
  return {};
}

}  // namespace

ImageStore::ImageStore(std::string directory, UniqueFd handle, std::uint64_t budget_bytes, Id boot_id)
    : directory_(std::move(directory)), handle_(std::move(handle)), budget_bytes_(budget_bytes), boot_id_(boot_id) {}

std::expected<ImageStore, Error> ImageStore::open(std::string memory_dir, std::uint64_t budget_bytes, Id boot_id) {
  UniqueFd handle(::open(memory_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct statfs system {};
  if (!handle.valid() || fstatfs(handle.get(), &system) != 0) {
    return std::unexpected(kernel_error("open", "memory_dir " + memory_dir, errno));
  }
  if (system.f_type == HUGETLBFS_MAGIC) {
    return std::unexpected(Error{ErrorCode::kBadArgument, "memory_dir " + memory_dir +
                                                              " is on hugetlbfs, which takes no records: choose an "
                                                              "ordinary directory, RAM files may stay there"});
  }
  ImageStore store(std::move(memory_dir), std::move(handle), budget_bytes, boot_id);
  const auto names = names_in(store.directory_);
  if (!names) {
    return std::unexpected(names.error());
  }
  for (const std::string& name : *names) {
    const auto record = parse_record_name(name);
    const bool superseded = record && record->in_use && std::ranges::binary_search(*names, image_name(record->vm_uuid));
    if (name.ends_with(kNewSuffix) || superseded) {
      if (auto removed = store.remove_record(name); !removed) {
        return std::unexpected(removed.error());
      }
    }
  }
  return store;
}

std::expected<void, Error> ImageStore::sync_directory() const {
  if (fsync(handle_.get()) != 0) {
    return std::unexpected(kernel_error("fsync", directory_, errno));
  }
  return {};
}

std::expected<void, Error> ImageStore::remove_record(const std::string& name) const {
  if (unlinkat(handle_.get(), name.c_str(), 0) != 0 && errno != ENOENT) {
    return std::unexpected(kernel_error("unlink", directory_ + "/" + name, errno));
  }
  return sync_directory();
}

std::expected<void, Error> ImageStore::save(const RetainedImage& image) {
  if (auto checked = check_image(image); !checked) {
    return checked;
  }
  const std::string temporary = to_string(image.vm_uuid).append(kNewSuffix);
  const std::string name = image_name(image.vm_uuid);
  const std::vector<std::byte> bytes = encode_record(image, boot_id_);
  {
    const UniqueFd file(
        openat(handle_.get(), temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid()) {
      return std::unexpected(kernel_error("open", directory_ + "/" + temporary, errno));
    }
    auto done = write_fully(file.get(), bytes, directory_ + "/" + temporary);
    if (done && fsync(file.get()) != 0) {
      done = std::unexpected(kernel_error("fsync", directory_ + "/" + temporary, errno));
    }
    if (!done) {
      unlinkat(handle_.get(), temporary.c_str(), 0);
      return done;
    }
  }
  if (renameat(handle_.get(), temporary.c_str(), handle_.get(), name.c_str()) != 0) {
    return std::unexpected(kernel_error("rename", directory_ + "/" + temporary, errno));
  }
  if (auto synced = sync_directory(); !synced) {
    return synced;
  }
  return remove_record(in_use_name(image.vm_uuid));
}

std::expected<RetainedImage, ImageRefused> ImageStore::read_record(const std::string& name) const {
  auto record = open_record(handle_.get(), name);
  if (!record) {
    return std::unexpected(record.error());
  }
  const RecordHead& head = record->head;
  if (head.vm_uuid != parse_record_name(name)->vm_uuid) {
    return std::unexpected(refused(Refusal::kOtherVm, name, "the record is of VM " + to_string(head.vm_uuid)));
  }
  if (head.boot_id != boot_id_) {
    return std::unexpected(refused(Refusal::kOtherBoot, name, "the host was restarted since"));
  }
  // Before the table is allocated: the sizes in the record are those of real files.
  if (auto files = check_ram_files(head, name); !files) {
    return std::unexpected(files.error());
  }
  const auto body = read_part(record->file.get(), head.lengths.head_bytes, head.lengths.body_bytes, name);
  if (!body) {
    return std::unexpected(body.error());
  }
  auto image = decode_body(head, *body);
  if (!image) {
    return std::unexpected(refused(image.error().reason, name, image.error().text));
  }
  return image;
}

std::expected<RetainedImage, ImageRefused> ImageStore::load(const ImageWanted& wanted) const {
  const std::string name = image_name(wanted.vm_uuid);
  if (faccessat(handle_.get(), name.c_str(), F_OK, 0) != 0 &&
      faccessat(handle_.get(), in_use_name(wanted.vm_uuid).c_str(), F_OK, 0) == 0) {
    return std::unexpected(
        refused(Refusal::kInUse, name, "a migration is writing into it, or was interrupted while it did"));
  }
  auto image = read_record(name);
  if (!image) {
    return image;
  }
  if (image->serving != Id{}) {
    return std::unexpected(refused(Refusal::kInUse, name, "a guest elsewhere still needs it"));
  }
  if (auto fits = check_wanted(*image, wanted, name); !fits) {
    return std::unexpected(fits.error());
  }
  return image;
}

std::expected<RetainedImage, ImageRefused> ImageStore::load_serving(const Id& migration) const {
  for (const std::string& name : names_in(directory_).value_or(std::vector<std::string>{})) {
    const auto parsed = parse_record_name(name);
    if (!parsed || parsed->in_use) {
      continue;
    }
    if (const auto record = open_record(handle_.get(), name); record && record->head.serving == migration) {
      return read_record(name);
    }
  }
  return std::unexpected(ImageRefused{Refusal::kMissing, "no retained image serves migration " + to_string(migration)});
}

std::expected<RetainedImage, ImageRefused> ImageStore::acquire(const ImageWanted& wanted) {
  auto image = load(wanted);
  if (!image) {
    return image;
  }
  const std::string name = image_name(wanted.vm_uuid);
  if (renameat(handle_.get(), name.c_str(), handle_.get(), in_use_name(wanted.vm_uuid).c_str()) != 0) {
    return std::unexpected(refused(Refusal::kSystem, name, kernel_error("rename", "it", errno).text));
  }
  if (auto synced = sync_directory(); !synced) {
    return std::unexpected(refused(Refusal::kSystem, name, synced.error().text));
  }
  return image;
}

std::expected<void, Error> ImageStore::release_untouched(const Id& vm_uuid) {
  const std::string from = in_use_name(vm_uuid);
  const std::string to = image_name(vm_uuid);
  if (renameat(handle_.get(), from.c_str(), handle_.get(), to.c_str()) != 0) {
    return std::unexpected(kernel_error("rename", directory_ + "/" + from, errno));
  }
  if (utimensat(handle_.get(), to.c_str(), nullptr, 0) != 0) {
    return std::unexpected(kernel_error("utimensat", directory_ + "/" + to, errno));
  }
  return sync_directory();
}

std::expected<void, Error> ImageStore::forget(const Id& vm_uuid) {
  if (const auto record = open_record(handle_.get(), image_name(vm_uuid)); record && serves(record->head, boot_id_)) {
    return still_serves(record->head);
  }
  if (auto removed = remove_record(image_name(vm_uuid)); !removed) {
    return removed;
  }
  return remove_record(in_use_name(vm_uuid));
}

std::expected<void, Error> ImageStore::forget_files(const std::vector<ImageRegion>& files) {
  const auto names = names_in(directory_);
  if (!names) {
    return std::unexpected(names.error());
  }
  for (const std::string& name : *names) {
    if (!parse_record_name(name)) {
      continue;
    }
    const auto record = open_record(handle_.get(), name);
    const bool names_one = record && std::ranges::any_of(record->head.regions, [&](const ImageRegion& region) {
                             return std::ranges::any_of(files, [&](const ImageRegion& file) {
                               return file.device == region.device && file.inode == region.inode;
                             });
                           });
    if (names_one && serves(record->head, boot_id_)) {
      return still_serves(record->head);
    }
    if (names_one) {
      if (auto removed = remove_record(name); !removed) {
        return removed;
      }
    }
  }
  return {};
}

std::expected<void, Error> ImageStore::drop(const Id& vm_uuid) {
  const std::string name = image_name(vm_uuid);
  const auto record = open_record(handle_.get(), name);
  if (!record && record.error().reason == Refusal::kMissing) {
    const auto in_use = open_record(handle_.get(), in_use_name(vm_uuid));
    if (in_use && !has_ram_file(in_use->head)) {
      return remove_record(in_use_name(vm_uuid));  // the migration that wrote into it is gone, and its memory too
    }
    return std::unexpected(Error{
        ErrorCode::kBadArgument,
        "retained image of VM " + to_string(vm_uuid) + (in_use ? " is in use by a migration" : " does not exist")});
  }
  if (record && serves(record->head, boot_id_)) {
    return still_serves(record->head);
  }
  if (record) {
    // RAM first: a crash in between leaves a record that load() refuses, not memory that nobody knows of.
    for (const ImageRegion& region : record->head.regions) {
      struct stat status {};
      const bool ours = stat(region.path.c_str(), &status) == 0 && is_ram_file(region, status);
      if (ours && unlink(region.path.c_str()) != 0) {
        return std::unexpected(kernel_error("unlink", region.path, errno));
      }
    }
  }
  return remove_record(name);
}

std::expected<std::vector<ImageSummary>, Error> ImageStore::list() const {
  const auto names = names_in(directory_);
  if (!names) {
    return std::unexpected(names.error());
  }
  std::vector<ImageSummary> images;
  for (const std::string& name : *names) {
    const auto parsed = parse_record_name(name);
    const auto record = parsed ? open_record(handle_.get(), name) : std::unexpected(ImageRefused{});
    if (!record || record->head.boot_id != boot_id_ || record->head.vm_uuid != parsed->vm_uuid) {
      continue;
    }
    ImageSummary image{.vm_uuid = record->head.vm_uuid,
                       .image_id = record->head.image_id,
                       .epoch = record->head.epoch,
                       .bytes_total = record->head.bytes_total(),
                       .bytes_resident = resident_bytes(record->head) + record->allocated_bytes,
                       .pages_known = record->head.pages_known,
                       .last_used_ns = record->modified_ns,
                       .in_use = parsed->in_use || serves(record->head, boot_id_),
                       .serving = record->head.serving,
                       .ram_paths = {}};
    for (const ImageRegion& region : record->head.regions) {
      image.ram_paths.push_back(region.path);
    }
    images.push_back(std::move(image));
  }
  std::ranges::stable_sort(images, {}, &ImageSummary::last_used_ns);
  return images;
}

std::vector<UnusableImage> ImageStore::unusable() const {
  std::vector<UnusableImage> result;
  for (const std::string& name : names_in(directory_).value_or(std::vector<std::string>{})) {
    const auto parsed = parse_record_name(name);
    if (!parsed || parsed->in_use) {
      continue;
    }
    if (const auto image = read_record(name); !image) {
      result.push_back({name, image.error()});
    }
  }
  return result;
}

std::expected<RoomMade, Error> ImageStore::make_room(std::uint64_t bytes, const std::optional<Id>& keep) {
  const auto images = list();
  if (!images) {
    return std::unexpected(images.error());
  }
  RoomMade made;
  for (const ImageSummary& image : *images) {
    made.used_bytes += image.in_use ? 0 : image.bytes_resident;
  }
  const auto enough = [&] {
    return budget_bytes_ == 0 ? made.freed_bytes >= bytes
                              : made.used_bytes <= budget_bytes_ && bytes <= budget_bytes_ - made.used_bytes;
  };
  for (const ImageSummary& image : *images) {
    if (enough()) {
      break;
    }
    if (image.in_use || (keep && image.vm_uuid == *keep)) {
      continue;
    }
    if (auto dropped = drop(image.vm_uuid); !dropped) {
      return std::unexpected(dropped.error());
    }
    made.used_bytes -= image.bytes_resident;
    made.freed_bytes += image.bytes_resident;
    made.dropped.push_back(image.vm_uuid);
  }
  return made;
}

}  // namespace godwit::memory
