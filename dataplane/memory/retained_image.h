#pragma once
// The retained images of one host: for every VM that left, its RAM files (which stay where they are) and one record
// MEMORY_DIR/<vm uuid>.image: what the RAM is, its generation table, optionally the hashes of its pages, checksummed.
//
// Owns the records, not the RAM files of running guests. Thread: one (the daemon's control thread or a job of it).
// Failure: a record that is not beyond doubt is refused with a reason; the move then becomes a full one.
//
// What the disk says at each moment, so that a crash in between never presents half-overwritten RAM as an image:
//   <uuid>.image           the RAM files hold exactly this image and nobody writes them
//   <uuid>.image.in-use    acquire() renamed it before the first page was overwritten: the RAM is nothing until the
//   next save() <uuid>.image.new       being written; removed at open()
// save() writes .new, fsyncs, renames it to .image, fsyncs the directory, then removes .in-use: .image present wins.

#include <array>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/pages/generation_table.h"

namespace godwit::memory {

using Id = std::array<std::byte, 16>;

std::string to_string(const Id& id);  // 8-4-4-4-12 hexadecimal
std::optional<Id> parse_id(std::string_view text);
/// /proc/sys/kernel/random/boot_id: RAM on tmpfs does not outlive it.
std::expected<Id, Error> read_boot_id();

/// A RAM file of an image.
struct ImageRegion {
  std::string name;
  std::uint64_t bytes = 0;
  std::uint32_t page_bytes = 0;
  std::string path;          // absolute
  std::uint64_t device = 0;  // st_dev, st_ino: another file of the same name is not it
  std::uint64_t inode = 0;
  bool operator==(const ImageRegion&) const = default;
};

/// Fills device and inode from the open RAM file.
std::expected<ImageRegion, Error> describe_ram_file(std::string name, std::uint64_t bytes, std::uint32_t page_bytes,
                                                    std::string path, int file);

struct RetainedImage {
  Id vm_uuid{};
  Id image_id{};
  Id serving{};  // the migration whose destination may still need its pages; zero: none
  std::uint32_t epoch = 0;
  std::vector<ImageRegion> regions;
  pages::GenerationTable table;       // a generation a page, kUnknownGeneration where in doubt
  std::vector<std::uint64_t> hashes;  // empty, or one a page (0 = unknown)
};

enum class Refusal : std::uint8_t {
  kMissing,  // no image of this VM
  kInUse,    // a migration is writing into its RAM, or one was interrupted; or a guest elsewhere still needs it
  kTruncated,
  kNotAnImage,  // magic
  kVersion,
  kChecksum,
  kMalformed,  // checksum right, content impossible
  kOtherVm,
  kOtherImage,    // another cold boot
  kOtherBoot,     // host was restarted since
  kOtherRegions,  // names, sizes or page sizes differ from the VM's
  kRamFileGone,
  kRamFileReplaced,
  kRamFileResized,
  kSystem,  // a system call was refused
};
std::string_view name_of(Refusal refusal);

struct ImageRefused {
  Refusal reason = Refusal::kMissing;
  std::string text;  // one line for a person
};

/// What an image must be to be reused.
struct ImageWanted {
  struct Shape {
    std::string name;
    std::uint64_t bytes = 0;
    std::uint32_t page_bytes = 0;
  };
  Id vm_uuid{};
  Id image_id{};
  std::vector<Shape> regions;
};

struct ImageSummary {
  Id vm_uuid{};
  Id image_id{};
  std::uint32_t epoch = 0;
  std::uint64_t bytes_total = 0;
  std::uint64_t bytes_resident = 0;  // allocated blocks of RAM files and record
  std::uint64_t pages_known = 0;
  std::int64_t last_used_ns = 0;  // Unix time
  bool in_use = false;
  Id serving{};
  std::vector<std::string> ram_paths;
};

struct UnusableImage {
  std::string file;
  ImageRefused refused;
};

struct RoomMade {
  std::uint64_t freed_bytes = 0;
  std::uint64_t used_bytes = 0;
  std::vector<Id> dropped;
};

class ImageStore {
 public:
  /// `memory_dir` must exist and take ordinary files (not hugetlbfs). budget_bytes 0: no limit. Leftovers of
  /// interrupted saves go.
  static std::expected<ImageStore, Error> open(std::string memory_dir, std::uint64_t budget_bytes, Id boot_id);

  /// Makes `image` the retained image of its VM, in place of any former one; ends its being in use. Its RAM files must
  /// be at rest.
  std::expected<void, Error> save(const RetainedImage& image);
  /// Reads without taking: the first check that fails refuses.
  [[nodiscard]] std::expected<RetainedImage, ImageRefused> load(const ImageWanted& wanted) const;
  /// The image that serves this migration.
  [[nodiscard]] std::expected<RetainedImage, ImageRefused> load_serving(const Id& migration) const;
  /// load(), and before it returns the record on disk says "in use": from now on the RAM may be overwritten.
  std::expected<RetainedImage, ImageRefused> acquire(const ImageWanted& wanted);
  /// Nothing of the acquired image was overwritten: it is a retained image again.
  std::expected<void, Error> release_untouched(const Id& vm_uuid);
  /// The RAM files are a guest's now (or nothing): forget the record in either state, leave the files alone. Also to be
  /// called when a guest is attached whose RAM files an older record may name. Forgetting what is not there is fine. An
  /// image that serves is refused (kBadArgument), here and below; save() without `serving` ends that.
  std::expected<void, Error> forget(const Id& vm_uuid);
  /// Forgets every record that names one of these files: they are a running guest's.
  std::expected<void, Error> forget_files(const std::vector<ImageRegion>& files);
  /// Removes record and RAM files. An image in use is refused (kBadArgument) unless its RAM files are gone.
  std::expected<void, Error> drop(const Id& vm_uuid);

  [[nodiscard]] std::expected<std::vector<ImageSummary>, Error> list() const;  // least recently used first
  [[nodiscard]] std::vector<UnusableImage> unusable() const;  // records that list() leaves out, and why
  /// Drops least recently used images, never one in use nor `keep`, until `bytes` more fit the budget (or, without a
  /// budget, so many bytes were freed). An image in use counts as its guest, which is the caller's to count. What could
  /// not be freed shows in the result, it is not an error.
  std::expected<RoomMade, Error> make_room(std::uint64_t bytes, const std::optional<Id>& keep);
  [[nodiscard]] std::uint64_t budget_bytes() const { return budget_bytes_; }

 private:
  ImageStore(std::string directory, UniqueFd handle, std::uint64_t budget_bytes, Id boot_id);
  std::expected<void, Error> sync_directory() const;
  std::expected<void, Error> remove_record(const std::string& name) const;
  [[nodiscard]] std::expected<RetainedImage, ImageRefused> read_record(const std::string& name) const;

  std::string directory_;
  UniqueFd handle_;
  std::uint64_t budget_bytes_ = 0;
  Id boot_id_{};
};

}  // namespace godwit::memory
