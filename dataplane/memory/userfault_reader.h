#pragma once
// The one reader of a QEMU's userfaultfds. What it reads belongs to two owners: write faults to the tracker, faults on
// missing pages to the pager, removals to both.
//
// Owner: UserfaultSet. Who reads: while a pager is there, whoever calls poll() (an lcore that polls, or sleeps on the
// descriptors); else a thread of the reader's own, if a tracker has started it. While nobody reads, threads of QEMU
// that raised an event wait: they go on when a new reader takes the descriptors over. Failure: on_failed() of the
// owners.

#include <poll.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <expected>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/userfault.h"

namespace godwit::memory {

/// The tracker's. Called on whichever thread reads, one call at a time.
class UserfaultEvents {
 public:
  virtual ~UserfaultEvents() = default;
  /// A write to a protected page waits. False: cannot be resolved before further events were read; asked again then.
  virtual bool on_write_fault(std::uint64_t /*address*/) { return true; }
  virtual void on_removed(QemuRange range) = 0;
  virtual void on_failed(Error error) = 0;
};

/// The pager's. Called on whichever thread reads, one call at a time.
class MissingFaultEvents {
 public:
  virtual ~MissingFaultEvents() = default;
  /// A thread of QEMU waits for a page that is missing, or not mapped yet.
  virtual void on_missing_fault(std::uint64_t address) = 0;
  /// No page is being placed meanwhile.
  virtual void on_memory_removed(QemuRange range) = 0;
  virtual void on_read_failed(Error error) = 0;
};

/// Placing pages (shared) and reading of a removal (alone) keep apart: a page must not be placed after QEMU has gone on
/// to remove it. Who reads goes first, so a flood of placements keeps no removal waiting.
class RemovalGate {
 public:
  RemovalGate();
  ~RemovalGate() { pthread_rwlock_destroy(&lock_); }
  RemovalGate(const RemovalGate&) = delete;
  RemovalGate& operator=(const RemovalGate&) = delete;
  void lock() { pthread_rwlock_wrlock(&lock_); }
  void unlock() { pthread_rwlock_unlock(&lock_); }
  void lock_shared() { pthread_rwlock_rdlock(&lock_); }
  void unlock_shared() { pthread_rwlock_unlock(&lock_); }

 private:
  pthread_rwlock_t lock_;
};

class UserfaultReader {
 public:
  /// `features` of the descriptors, which must outlive this.
  UserfaultReader(const std::vector<int>& userfaultfds, std::uint64_t features);
  ~UserfaultReader();
  UserfaultReader(const UserfaultReader&) = delete;
  UserfaultReader& operator=(const UserfaultReader&) = delete;

  /// nullptr: nobody's any more. When they return, no call to the former owner is under way or will come. What belongs
  /// to nobody is dropped: who takes over wakes its range, and it comes again.
  void hand_tracking_to(UserfaultEvents* owner);
  void hand_paging_to(MissingFaultEvents* owner);

  /// Reads on a thread of its own whenever no pager is there.
  std::expected<void, Error> start_thread();
  void stop_thread();

  /// Hands on all that there is to read. Never waits for events; returns at once if another thread is at it.
  void poll();
  /// Returns when every event that was read has been handed on. Reading a removal lets QEMU go on, so without this a
  /// removal may have happened that nobody has marked yet.
  void settle() { const std::lock_guard lock(handling_); }
  /// To be held while a page is placed. Free of cost where QEMU's removals raise no events.
  [[nodiscard]] std::shared_lock<RemovalGate> keep_removals_out();

 private:
  void run();
  void kick();
  void read_ready();  // with handling_ held
  bool read_events(int userfaultfd);
  void fail(const Error& error);

  const std::vector<int> userfaultfds_;
  const bool removals_;
  RemovalGate gate_;
  std::mutex handling_;  // held from before an event is read until it has been handed on; all up to deferred_ is its
  UserfaultEvents* tracker_ = nullptr;
  MissingFaultEvents* pager_ = nullptr;
  std::vector<pollfd> polled_;
  bool failed_ = false;
  std::vector<std::uint64_t> deferred_;  // write faults to try again

  UniqueFd wake_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> paging_{false};
  std::thread thread_;
};

}  // namespace godwit::memory
