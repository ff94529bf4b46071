#include "dataplane/memory/userfault_reader.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <span>

#include "dataplane/memory/kernel_abi.h"

namespace godwit::memory {

RemovalGate::RemovalGate() {
  pthread_rwlockattr_t attributes;
  pthread_rwlockattr_init(&attributes);
  pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init(&lock_, &attributes);
  pthread_rwlockattr_destroy(&attributes);
}

UserfaultReader::UserfaultReader(const std::vector<int>& userfaultfds, std::uint64_t features)
    : userfaultfds_(userfaultfds), removals_((features & abi::kFeatureEventRemove) != 0) {
  for (const int userfaultfd : userfaultfds_) {
    polled_.push_back({userfaultfd, POLLIN, 0});
  }
}

UserfaultReader::~UserfaultReader() { stop_thread(); }

void UserfaultReader::hand_tracking_to(UserfaultEvents* owner) {
  const std::lock_guard lock(handling_);
  tracker_ = owner;
  deferred_.clear();
}

void UserfaultReader::hand_paging_to(MissingFaultEvents* owner) {
  {
    const std::lock_guard lock(handling_);
    pager_ = owner;
    paging_ = owner != nullptr;
  }
  kick();
}

std::expected<void, Error> UserfaultReader::start_thread() {
  if (thread_.joinable()) {
    return {};
  }
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) {
    return std::unexpected(kernel_error("eventfd", "the reader of userfaultfd", errno));
  }
  stop_ = false;
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "gw-userfault");
  return {};
}

void UserfaultReader::stop_thread() {
  if (thread_.joinable()) {
    stop_ = true;
    kick();
    thread_.join();
  }
}

void UserfaultReader::kick() {
  if (wake_.valid()) {
    const std::uint64_t one = 1;
    // An eventfd of our own that is read down to zero takes a one.
    [[maybe_unused]] const ssize_t put = write(wake_.get(), &one, sizeof one);
  }
}

void UserfaultReader::run() {
  std::vector<pollfd> waited;
  bool deferred = false;
  while (!stop_) {
    waited.assign(1, {wake_.get(), POLLIN, 0});
    const bool paging = paging_;
    for (const int userfaultfd : userfaultfds_) {
      // A negative descriptor is one that poll() leaves out.
      waited.push_back({paging ? -1 : userfaultfd, POLLIN, 0});
    }
    const bool polled = ::poll(waited.data(), waited.size(), deferred && !paging ? 1 : -1) >= 0 || errno == EINTR;
    const int failed = errno;
    std::uint64_t kicks = 0;
    [[maybe_unused]] const ssize_t got = read(wake_.get(), &kicks, sizeof kicks);
    if (paging_ || stop_) {
      continue;
    }
    const std::lock_guard lock(handling_);
    if (!polled) {
      return fail(kernel_error("poll", "userfaultfd", failed));
    }
    read_ready();
    deferred = !deferred_.empty();
    if (failed_) {
      return;
    }
  }
}

void UserfaultReader::poll() {
  const std::unique_lock lock(handling_, std::try_to_lock);
  if (lock.owns_lock()) {
    read_ready();
  }
}

std::shared_lock<RemovalGate> UserfaultReader::keep_removals_out() {
  return removals_ ? std::shared_lock(gate_) : std::shared_lock<RemovalGate>();
}

void UserfaultReader::read_ready() {
  if (failed_) {
    return;
  }
  if (::poll(polled_.data(), polled_.size(), 0) > 0) {
    // What is read may be a removal: from here until it has been handed on nothing is placed.
    const auto alone = removals_ ? std::unique_lock(gate_) : std::unique_lock<RemovalGate>();
    for (const pollfd& one : polled_) {
      if ((one.revents & (POLLERR | POLLNVAL)) != 0) {
        return fail({ErrorCode::kBadArgument, "userfaultfd cannot be polled: it must be O_NONBLOCK and set up"});
      }
      if ((one.revents & POLLIN) != 0 && !read_events(one.fd)) {
        return;
      }
    }
  }
  std::erase_if(deferred_,
                [this](std::uint64_t address) { return tracker_ == nullptr || tracker_->on_write_fault(address); });
}

bool UserfaultReader::read_events(int userfaultfd) {
  std::array<uffd_msg, 64> messages;
  const ssize_t got = read(userfaultfd, messages.data(), sizeof messages);
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) {
      return true;
    }
    fail(kernel_error("read", "userfaultfd", errno));
    return false;
  }
  for (const uffd_msg& message : std::span(messages).first(static_cast<std::size_t>(got) / sizeof(uffd_msg))) {
    if (message.event == UFFD_EVENT_PAGEFAULT) {
      if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
        deferred_.push_back(message.arg.pagefault.address);
      } else if (pager_ != nullptr) {
        pager_->on_missing_fault(message.arg.pagefault.address);
      }
    } else if (message.event == UFFD_EVENT_REMOVE) {
      const QemuRange range{message.arg.remove.start, message.arg.remove.end - message.arg.remove.start};
      if (tracker_ != nullptr) {
        tracker_->on_removed(range);
      }
      if (pager_ != nullptr) {
        pager_->on_memory_removed(range);
      }
    }
  }
  return true;
}

void UserfaultReader::fail(const Error& error) {
  failed_ = true;
  if (tracker_ != nullptr) {
    tracker_->on_failed(error);
  }
  if (pager_ != nullptr) {
    pager_->on_read_failed(error);
  }
}

}  // namespace godwit::memory
