#include "dataplane/memory/guarded_mapping.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

#include "base/check.h"

namespace godwit::memory {

/// Never freed, but used again: the handler may be looking at any of them at any time.
struct GuardedMapping::Slot {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::size_t> bytes{0};  // 0: not in use; set last, cleared first
  std::atomic<bool> lost{false};
  Slot* next = nullptr;
};

struct GuardedMapping::Registry {
  std::mutex mutex;
  bool installed = false;

  static constexpr std::uintptr_t kSmall = 4096, kHuge = 2U << 20;

  // What the handler reads.
  static inline std::atomic<Slot*> slots{nullptr};
  static inline struct sigaction former {};

  static Registry& get() {
    static Registry registry;
    return registry;
  }

  Slot* add(void* mapping, std::size_t bytes) {
    const std::lock_guard lock(mutex);
    if (!installed) {
      struct sigaction ours {};
      ours.sa_sigaction = &on_sigbus;
      ours.sa_flags = SA_SIGINFO | SA_RESTART;
      GW_ASSERT(sigaction(SIGBUS, &ours, &former) == 0);
      installed = true;
    }
    Slot* slot = slots.load(std::memory_order_relaxed);
    while (slot != nullptr && slot->bytes.load(std::memory_order_relaxed) != 0) {
      slot = slot->next;
    }
    const bool is_new = slot == nullptr;
    if (is_new) {
      slot = new Slot;
      slot->next = slots.load(std::memory_order_relaxed);
    }
    slot->lost.store(false, std::memory_order_relaxed);
    slot->begin.store(reinterpret_cast<std::uintptr_t>(mapping), std::memory_order_seq_cst);
    slot->bytes.store(bytes, std::memory_order_seq_cst);
    if (is_new) {
      slots.store(slot, std::memory_order_release);
    }
    return slot;
  }

  /// On the thread that touched the memory, in the middle of it: only atomics and system calls.
  static void on_sigbus(int, siginfo_t* info, void*) {
    const int saved_errno = errno;
    const bool from_kernel = info->si_code > 0;
    if (!from_kernel || !replace(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
      // Not of ours: what would have happened without us. The access is made again; a signal that somebody sent is not.
      sigaction(SIGBUS, &former, nullptr);
      if (!from_kernel) {
        raise(SIGBUS);
      }
    }
    errno = saved_errno;
  }

  static bool put_zeros(std::uintptr_t begin, std::size_t bytes) {
    return mmap(reinterpret_cast<void*>(begin), bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
  }

  static bool replace(std::uintptr_t address) {
    for (Slot* slot = slots.load(std::memory_order_acquire); slot != nullptr; slot = slot->next) {
      const std::size_t bytes = slot->bytes.load(std::memory_order_seq_cst);
      const std::uintptr_t begin = slot->begin.load(std::memory_order_seq_cst);
      // Read again: between the two the slot may have become another mapping's.
      if (address - begin >= bytes || slot->bytes.load(std::memory_order_seq_cst) != bytes) {
        continue;
      }
      slot->lost.store(true, std::memory_order_seq_cst);
      // All of it, in one step: one fault is enough. A kernel that promises no memory that it has not
      // (vm.overcommit_memory = 2) may refuse so much: then the page that was touched, small or huge.
      return put_zeros(begin, bytes) || put_zeros(address / kSmall * kSmall, kSmall) ||
             put_zeros(address / kHuge * kHuge, kHuge);
    }
    return false;
  }
};

std::expected<GuardedMapping, int> GuardedMapping::map(int file, std::size_t bytes) {
  // MAP_NORESERVE: QEMU's mapping holds the reservation of huge pages; ours must not take a second one.
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (mapping == MAP_FAILED) {
    return std::unexpected(errno);
  }
  return GuardedMapping(Registry::get().add(mapping, bytes));
}

GuardedMapping::~GuardedMapping() {
  if (slot_ == nullptr) {
    return;
  }
  std::byte* const mapping = data();
  const std::size_t bytes = slot_->bytes.load(std::memory_order_relaxed);
  slot_->bytes.store(0, std::memory_order_seq_cst);
  munmap(mapping, bytes);
}

std::byte* GuardedMapping::data() const {
  return reinterpret_cast<std::byte*>(slot_->begin.load(std::memory_order_relaxed));
}

bool GuardedMapping::lost() const { return slot_->lost.load(std::memory_order_acquire); }

}  // namespace godwit::memory
