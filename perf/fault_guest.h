#pragma once
// A process that stands for QEMU: one thread that touches its pages one after the other and takes the time of each
// touch that waited in a fault. What `fault-local` and `fault` share.
//
// Owned by one benchmark; the destructor ends the process by pid. What a benchmark forks may use it too. Times in
// nanoseconds, monotonic. Failure: one line.

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

struct FaultGuestOptions {
  std::uint64_t pages = 0;    // of RAM on tmpfs, nothing in it
  std::uint64_t touches = 0;  // of different pages
  unsigned cpu = 0;           // its thread's
  /// When it is woken it runs at once, whatever else polls on its CPU (SCHED_FIFO), as on a CPU of its own.
  bool goes_first = false;
  /// Writes into each page too, after its time was taken: content that was not there before.
  bool writes = false;
};

/// One touch, of the page that is its place.
struct Touch {
  std::uint64_t from_ns = 0, to_ns = 0;
  bool waited = false;  // the thread slept: it was a fault on a missing page
};

class FaultGuest {
 public:
  static std::expected<std::unique_ptr<FaultGuest>, std::string> start(const FaultGuestOptions& options);
  ~FaultGuest();
  FaultGuest(const FaultGuest&) = delete;
  FaultGuest& operator=(const FaultGuest&) = delete;

  /// Begins to read pages, each once, far apart from each other; each must begin with its own number plus one.
  void begin();
  [[nodiscard]] bool done() const;
  /// After done(): a page was not what it had to be.
  [[nodiscard]] bool wrong() const;
  /// After done(): by page.
  [[nodiscard]] std::span<const Touch> touches() const;
  /// The page of the i-th touch.
  [[nodiscard]] static pages::PageNumber page_of_touch(std::uint64_t i, std::uint64_t pages);

  /// Makes it a page that the guest takes for this one.
  static void number_page(pages::PageNumber page, std::span<std::byte> content);

  [[nodiscard]] memory::RegionFile region_file() const;
  [[nodiscard]] UniqueFd userfaultfd() const;
  [[nodiscard]] UniqueFd pagemap() const;

 private:
  struct Shared;
  FaultGuest() = default;
  [[noreturn]] void run(int ready);

  pid_t pid_ = -1;
  FaultGuestOptions options_;
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
