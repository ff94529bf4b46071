#pragma once
// Owner of a userfaultfd that belongs to QEMU's address space: every address here is one of QEMU's.
//
// Any thread: the kernel serialises. Failure: Error; kProcessGone when QEMU has exited. Closing it here leaves the
// registration in force as long as QEMU holds its own descriptor, which is what makes a dead data plane harmless.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/memory/guest_ram.h"

namespace godwit::memory {

/// How far a call that maps pages came, and why no further: 0, or an errno. EEXIST: the next page is there already.
/// EAGAIN: QEMU is changing its mappings, and an event must be read first.
struct Mapped {
  std::uint64_t bytes = 0;
  int error = 0;
};

/// kernel_error() of a call on QEMU's mappings: ENOENT says that there is none, which is kLost.
Error mapping_error(const std::string& call, QemuRange range, int error_number);

class Userfault {
 public:
  /// Takes a descriptor on which UFFDIO_API may or may not have been called. `features` (UFFD_FEATURE_*) are asked for;
  /// a descriptor that was set up before must have them all.
  static std::expected<Userfault, Error> adopt(UniqueFd fd, std::uint64_t features);
  /// Features of a descriptor that was set up before; 0 for a fresh one.
  static std::expected<std::uint64_t, Error> features_of(int fd);
  /// Features that this kernel offers to this process.
  static std::expected<std::uint64_t, Error> kernel_features();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::uint64_t features() const { return features_; }
  /// The descriptor had been set up by a former data plane: ranges may be registered and protected already.
  [[nodiscard]] bool inherited() const { return inherited_; }

  std::expected<void, Error> register_write_protect(QemuRange range);
  /// Accesses to pages that the file does not have wait, and with `huge` (hugetlbfs) those to pages that QEMU has no
  /// entry of, too. The kernel forgets the modes that a call does not name, unless it names only some of those that
  /// there are: so a tracker's marks live on only with `write_protect`, and no call takes waiting off but unregister().
  std::expected<void, Error> register_missing(QemuRange range, bool huge, bool write_protect);
  /// Puts copies of `from` where there is no page, whole at once as QEMU sees it, and wakes who waits. `protect`: they
  /// count as unwritten.
  Mapped copy(QemuRange range, const std::byte* from, bool protect);
  /// Gives QEMU entries of pages that the file has (hugetlbfs), and wakes who waits. EFAULT: the file has none.
  Mapped map_cached(QemuRange range, bool protect);
  /// Waits (the retry is bounded by the reader of events, not by time) while QEMU changes its mappings.
  std::expected<void, Error> protect(QemuRange range);
  /// One try; kLost: not registered, or QEMU maps it no more; false: QEMU is changing its mappings and an event must be
  /// read first.
  std::expected<bool, Error> try_unprotect(QemuRange range);
  /// Takes the range off the descriptor: no protection, no events; whoever waits goes on.
  std::expected<void, Error> unregister(QemuRange range);
  /// Threads that wait for an answer in the range fault again.
  std::expected<void, Error> wake(QemuRange range);

 private:
  Userfault(UniqueFd fd, std::uint64_t features, bool inherited)
      : fd_(std::move(fd)), features_(features), inherited_(inherited) {}

  UniqueFd fd_;
  std::uint64_t features_ = 0;
  bool inherited_ = false;
};

}  // namespace godwit::memory
