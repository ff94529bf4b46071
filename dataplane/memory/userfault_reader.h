#pragma once
// Reads a userfaultfd's events on a thread of its own and hands them on.
//
// Owner: a tracker; the destructor ends the thread. While nobody reads, threads of QEMU that raised an event wait: they
// go on when a new reader takes the descriptor over. Failure: on_failed(), once, then the thread ends.

#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/userfault.h"

namespace godwit::memory {

/// Called on the reader's thread.
class UserfaultEvents {
 public:
  virtual ~UserfaultEvents() = default;
  /// A write to a protected page waits. False: cannot be resolved before further events were read; asked again then.
  virtual bool on_write_fault(std::uint64_t /*address*/) { return true; }
  virtual void on_removed(QemuRange range) = 0;
  virtual void on_failed(Error error) = 0;
};

class UserfaultReader {
 public:
  static std::expected<std::unique_ptr<UserfaultReader>, Error> start(int userfaultfd, UserfaultEvents& events);
  ~UserfaultReader();
  UserfaultReader(const UserfaultReader&) = delete;
  UserfaultReader& operator=(const UserfaultReader&) = delete;

  /// Returns when every event that was read has been handed on. Reading a removal lets QEMU go on, so without this a
  /// removal may have happened that nobody has marked yet.
  void settle() { const std::lock_guard lock(handling_); }

 private:
  UserfaultReader(int userfaultfd, UniqueFd stop, UserfaultEvents& events);
  void run();
  bool read_events();
  void retry_deferred();

  int userfaultfd_;
  UniqueFd stop_;
  UserfaultEvents& events_;
  std::mutex handling_;                  // held from before an event is read until it has been handed on
  std::vector<std::uint64_t> deferred_;  // faults to try again
  std::thread thread_;
};

}  // namespace godwit::memory
