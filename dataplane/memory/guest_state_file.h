#pragma once
// A mapped file on tmpfs that goes with one life of one guest's memory, and outlives the process, however that ends. It
// says whose it is; what follows is its user's.
//
// Owns file and mapping. Thread: the calls from one; the body as its user says. Units: bytes. Failure: one line of
// text; a file that is not beyond doubt is refused. The file survives the process, not the host: a host that goes down
// takes its guests along.
//
//   head (4096 bytes): magic u64, version u32, epoch u32, qemu pid i32, 0 u32, qemu start u64, page count u64, shape
//   hash u64, vm uuid, image id, boot id (16 bytes each), XXH3 of all before it u64, then: may be taken over u32

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/memory/retained_image.h"

namespace godwit::memory {

/// Whose memory a file is about: what it lacks, or what is on its way out of it. Any other is another guest's, or
/// another life of it.
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

class GuestStateFile {
 public:
  /// Of one kind of file.
  struct Kind {
    std::uint64_t magic;
    std::uint32_t version;
    const char* what;  // "file of ..."
  };

  /// Begins anew, all zero, in place of any former file. Must be on tmpfs: no write may wait for a disk. All of it is
  /// allocated, so that no access fails later.
  static std::expected<GuestStateFile, Error> create(const std::string& path, const Kind& kind, const MissingOf& of,
                                                     std::size_t body_bytes);
  /// Takes over what a former process left; kBadArgument: why that cannot be believed.
  static std::expected<GuestStateFile, Error> adopt(const std::string& path, const Kind& kind, const MissingOf& of,
                                                    std::size_t body_bytes);
  /// Removing what is not there is fine.
  static std::expected<void, Error> remove(const std::string& path);
  /// Removes the files of that name's ending which nobody can take over: their process died before it let them. Only
  /// while nobody else makes such files there.
  static void remove_unfinished(const std::string& directory, const std::string& ending);

  GuestStateFile(GuestStateFile&& other) noexcept;
  GuestStateFile& operator=(GuestStateFile&&) = delete;
  ~GuestStateFile();

  /// From now on adopt() takes it: the memory that goes with it is as it says.
  void let_take_over();
  [[nodiscard]] std::uint64_t page_count() const;
  /// Aligned to a page.
  [[nodiscard]] std::span<std::byte> body() const;

 private:
  struct Head;
  GuestStateFile(UniqueFd file, void* mapping, std::size_t bytes)
      : file_(std::move(file)), mapping_(mapping), bytes_(bytes) {}
  static std::expected<GuestStateFile, Error> map(UniqueFd file, std::size_t bytes, const std::string& path);
  [[nodiscard]] Head& head() const;

  UniqueFd file_;
  void* mapping_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace godwit::memory
