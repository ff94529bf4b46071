#pragma once
// The missing set: which pages of a guest that runs here are not here yet. A bitmap in a mapped file on tmpfs, so that
// it outlives the process, however that ends.
//
// Owns file and mapping. Sequentially consistent, as page_flags.h. Thread: test(), clear() and count() from any thread
// at any time; the rest from one, with no other call under way. Units: pages. Failure: one line of text; a file that is
// not beyond doubt is refused.
//
// Rules that make it sound at any kill: a page is entered before its memory is taken away, and cleared after its
// content is in place. A page that is entered but in place is no harm (placing it says EEXIST, or writes the same again
// before QEMU can see it); a page that is neither would be lost. The source serves any page that it is asked for until
// the end. The file survives the process, not the host: a host that goes down takes its guests along.
//
//   head (4096 bytes): magic u64, version u32, epoch u32, qemu pid i32, 0 u32, qemu start u64, page count u64, shape
//   hash u64, vm uuid, image id, boot id (16 bytes each), XXH3 of all before it u64, then: may be taken over u32
//   bitmap: a bit a page, in words of 64, lowest bit first

#include <atomic>
#include <cstdint>
#include <expected>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/memory/retained_image.h"
#include "dataplane/pages/bitmap.h"

namespace godwit::memory {

/// Whose pages are missing. A file about anything else is another guest's, or another life of it.
struct MissingOf {
  Id vm_uuid{};
  Id image_id{};
  Id boot_id{};             // of the host
  std::uint32_t epoch = 0;  // of the migration that left them missing
  std::int32_t qemu_pid = 0;
  std::uint64_t qemu_start = 0;  // clock ticks since boot, /proc/PID/stat
  std::uint64_t page_count = 0;
  std::uint64_t shape_hash = 0;  // of names, sizes, addresses of the regions
};

class MissingPages {
 public:
  /// Begins anew, with nothing missing, in place of any former file. Must be on tmpfs: no write may wait for a disk.
  static std::expected<MissingPages, Error> create(const std::string& path, const MissingOf& of);
  /// Takes over what a former process left; kBadArgument: why that cannot be believed.
  static std::expected<MissingPages, Error> adopt(const std::string& path, const MissingOf& of);
  /// Removing what is not there is fine.
  static std::expected<void, Error> remove(const std::string& path);

  MissingPages(MissingPages&& other) noexcept;
  MissingPages& operator=(MissingPages&&) = delete;
  ~MissingPages();

  /// From now on adopt() takes it: the memory that goes with it is as it says.
  void let_take_over();

  void add(pages::PageNumber first, std::uint64_t count);
  [[nodiscard]] bool test(pages::PageNumber page) const;
  /// True: it was missing until this call.
  bool clear(pages::PageNumber page);
  [[nodiscard]] std::uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  /// A moment's picture.
  [[nodiscard]] pages::Bitmap all() const;
  [[nodiscard]] std::uint64_t page_count() const;

 private:
  struct Head;
  MissingPages(UniqueFd file, void* mapping, std::size_t bytes)
      : file_(std::move(file)), mapping_(mapping), bytes_(bytes) {}
  static std::expected<MissingPages, Error> map(UniqueFd file, std::size_t bytes, const std::string& path);
  [[nodiscard]] Head& head() const;
  [[nodiscard]] std::atomic_ref<std::uint64_t> word_of(pages::PageNumber page) const;

  UniqueFd file_;
  void* mapping_ = nullptr;
  std::size_t bytes_ = 0;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace godwit::memory
