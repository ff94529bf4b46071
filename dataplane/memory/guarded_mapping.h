#pragma once
// A shared mapping of a RAM file that outlives the file's being cut short.
//
// A guest's QEMU may run as a user who owns its RAM file. To touch a mapping beyond the end of its file is a SIGBUS
// (likewise memory that has failed, or a hole where tmpfs is full), and would end the data plane of all guests. The
// handler puts zero memory in place of the whole mapping and marks it lost: the access goes on, nothing of this mapping
// faults again, other guests notice nothing. So a read may give zeros that are not the guest's: ask lost() before
// anything read or written through the mapping is believed.
//
// Why this and not: seals (only a memfd takes them), pread (a system call for every page of the hottest path),
// siglongjmp (every reader would have to prepare for it, each time). Here nothing is paid until it happens.
//
// Owns the mapping. Thread: any; map() and destruction are the owner's. A SIGBUS anywhere else does what it did before
// the first map().

#include <cstddef>
#include <cstdint>
#include <expected>
#include <utility>

namespace godwit::memory {

class GuardedMapping {
 public:
  /// Maps [0, bytes) of the file for reading and writing; error: errno of mmap. Takes no reservation of huge pages.
  static std::expected<GuardedMapping, int> map(int file, std::size_t bytes);
  GuardedMapping(GuardedMapping&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
  GuardedMapping& operator=(GuardedMapping&& other) noexcept {
    std::swap(slot_, other.slot_);
    return *this;
  }
  ~GuardedMapping();

  [[nodiscard]] std::byte* data() const;
  /// An access has met memory that is not there; for good. True before that access returns.
  [[nodiscard]] bool lost() const;

 private:
  struct Slot;
  struct Registry;
  explicit GuardedMapping(Slot* slot) : slot_(slot) {}
  Slot* slot_ = nullptr;
};

}  // namespace godwit::memory
