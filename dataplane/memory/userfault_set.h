#pragma once
// All userfaultfds of one QEMU: one for all of its RAM, or several, each for a range. One serves about 200,000 faults a
// second and fewer with many vCPUs, so large VMs have several. Tracker and pager share them, and their reader.
//
// Owner: shared by the tracker and the pager of a guest. Thread, units, failure: as userfault.h; a range may span
// several descriptors and is split. The reader hands on what each of the two owns (userfault_reader.h).

#include <memory>
#include <vector>

#include "dataplane/memory/userfault.h"
#include "dataplane/memory/userfault_reader.h"

namespace godwit::memory {

/// A descriptor, and the addresses of QEMU that it serves. No bytes: whatever no other descriptor serves.
struct UserfaultPart {
  UniqueFd fd;
  QemuRange range;
};

class UserfaultSet {
 public:
  /// Every part must have, or take, all of `features`. Ranges must not overlap.
  static std::expected<std::shared_ptr<UserfaultSet>, Error> adopt(std::vector<UserfaultPart> parts,
                                                                   std::uint64_t features);

  [[nodiscard]] std::uint64_t features() const { return features_; }
  [[nodiscard]] UserfaultReader& reader() { return *reader_; }
  /// To wait on in an epoll; read them by the reader only.
  [[nodiscard]] std::vector<int> descriptors() const;

  std::expected<void, Error> register_write_protect(QemuRange range);
  std::expected<void, Error> register_missing(QemuRange range, bool huge, bool write_protect);
  std::expected<void, Error> protect(QemuRange range);
  std::expected<bool, Error> try_unprotect(QemuRange range);
  std::expected<void, Error> unregister(QemuRange range);
  std::expected<void, Error> wake(QemuRange range);
  Mapped copy(QemuRange range, const std::byte* from, bool protect);
  Mapped map_cached(QemuRange range, bool protect);

 private:
  struct Part {
    QemuRange range;
    Userfault userfault;
  };
  UserfaultSet(std::vector<Part> parts, std::uint64_t features);
  /// The part that serves the beginning of `range`, and how much of the range; kBadArgument where none does.
  std::expected<std::pair<Userfault*, QemuRange>, Error> first_of(QemuRange range);
  template <class F>
  std::expected<void, Error> for_each(QemuRange range, F f);
  template <class F>
  Mapped map_each(QemuRange range, F f);

  std::vector<Part> parts_;  // by address; one without a range comes last
  std::uint64_t features_;
  std::unique_ptr<UserfaultReader> reader_;
};

}  // namespace godwit::memory
