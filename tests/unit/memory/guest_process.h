#pragma once
// A process of ours that stands for QEMU: it maps RAM files, and reads, writes and gives back pages when told to.
//
// Owned by one test; its destructor ends the process by pid. HugePages raises the pool for the time of a test.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory::test {

/// Adds pages of 2 MiB to the kernel's pool and takes them out again.
class HugePages {
 public:
  static std::optional<HugePages> add(std::uint64_t count);
  HugePages(HugePages&& other) noexcept : added_(std::exchange(other.added_, 0)) {}
  HugePages& operator=(HugePages&& other) noexcept {
    std::swap(added_, other.added_);
    return *this;
  }
  ~HugePages();

 private:
  explicit HugePages(std::uint64_t added) : added_(added) {}
  std::uint64_t added_;
};

struct GuestRegion {
  std::uint64_t bytes = 0;
  bool huge = false;
};

struct GuestOptions {
  std::vector<GuestRegion> regions;
  bool user_mode_only = false;  // the userfaultfd sees no accesses of the kernel
  std::uint32_t userfaultfds = 1;
};

/// What a page of a test is to hold: of its own in every word; every fifth one is zero.
std::uint64_t pattern_word(pages::PageNumber page, std::uint64_t word);
std::vector<std::byte> pattern_of(pages::PageNumber page);
/// What the workers write, besides checking.
constexpr bool workers_write(pages::PageNumber page) { return page % 3 == 0; }

class GuestProcess {
 public:
  static std::unique_ptr<GuestProcess> start(const GuestOptions& options);
  ~GuestProcess();

  // ---- what the guest does; each returns when it is done, unless it says so ----
  void write(pages::PageNumber page);
  void begin_write(pages::PageNumber page);  // returns at once; finish() waits
  bool finish();                             // what was begun: was all as it should be?
  void fill(pages::PageNumber page, std::uint8_t value);
  void read(pages::PageNumber page);
  void begin_read(pages::PageNumber page);
  bool holds_pattern(pages::PageNumber page);         // all of it
  bool kernel_reads_pattern(pages::PageNumber page);  // write(2) from the page
  bool kernel_writes(pages::PageNumber page);         // read(2) into the page
  /// Threads that share all pages among them, each in an order of its own: every page must hold its pattern; what
  /// workers_write() names is written then. finish() waits.
  void begin_workers(std::uint32_t count);
  void give_back(pages::PageNumber first, std::uint64_t count);      // MADV_REMOVE
  void unmap_entries(pages::PageNumber first, std::uint64_t count);  // MADV_DONTNEED: the content stays
  void start_writers(std::uint32_t count, bool with_balloon);
  void stop_writers();
  void kill();

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] std::vector<RegionFile> region_files() const;
  [[nodiscard]] UniqueFd userfaultfd(std::uint32_t index = 0) const;  // its own, fetched
  [[nodiscard]] UniqueFd pagemap() const;

 private:
  GuestProcess() = default;
  void tell(char op, std::uint64_t page, std::uint64_t argument);

  struct Mapped {
    UniqueFd file;
    std::uint64_t bytes;
    bool huge;
    std::byte* address;  // the same in the guest: it is forked
  };
  std::vector<Mapped> regions_;
  UniqueFd socket_;
  pid_t pid_ = -1;
  std::vector<int> userfaultfds_;  // numbers in the guest
  bool reaped_ = false;
};

}  // namespace godwit::memory::test
