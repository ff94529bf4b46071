#pragma once
// A process that stands for QEMU: one thread that touches its pages one after the other and takes the time of each.
// What `fault-local` and `fault` share.
//
// Owned by one benchmark; the destructor ends the process by pid. Times in nanoseconds. Failure: one line.

#include <sys/types.h>

#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/guest_ram.h"

namespace godwit::perf {

/// Runs the calling thread on this CPU only, where there are that many.
void pin_to(unsigned cpu);

class FaultGuest {
 public:
  /// RAM of `pages` pages on tmpfs, nothing in it; the thread is pinned to `cpu`.
  static std::expected<std::unique_ptr<FaultGuest>, std::string> start(std::uint64_t pages, unsigned cpu);
  ~FaultGuest();
  FaultGuest(const FaultGuest&) = delete;
  FaultGuest& operator=(const FaultGuest&) = delete;

  /// Begins to read every page once, far apart from each other; each must begin with its own number plus one.
  void begin();
  [[nodiscard]] bool done() const;
  /// After done(): of each touch, sorted; empty if a page was wrong.
  [[nodiscard]] std::vector<std::uint64_t> times_ns() const;

  [[nodiscard]] memory::RegionFile region_file() const;
  [[nodiscard]] UniqueFd userfaultfd() const;
  [[nodiscard]] UniqueFd pagemap() const;

 private:
  struct Shared;
  FaultGuest() = default;
  [[noreturn]] void run(unsigned cpu, int ready);

  pid_t pid_ = -1;
  std::uint64_t pages_ = 0;
  UniqueFd file_;
  std::byte* ram_ = nullptr;  // the same address in the process; not mapped here
  Shared* shared_ = nullptr;
  std::size_t shared_bytes_ = 0;
  int userfaultfd_ = -1;  // number in the process
  UniqueFd begin_;        // our end
};

/// The time that this share (0 to 1) of the sorted times did not exceed.
[[nodiscard]] std::uint64_t percentile_ns(std::span<const std::uint64_t> sorted, double share);

}  // namespace godwit::perf
