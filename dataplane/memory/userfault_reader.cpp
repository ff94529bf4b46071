#include "dataplane/memory/userfault_reader.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <span>

namespace godwit::memory {

std::expected<std::unique_ptr<UserfaultReader>, Error> UserfaultReader::start(int userfaultfd,
                                                                              UserfaultEvents& events) {
  UniqueFd stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.valid()) {
    return std::unexpected(kernel_error("eventfd", "the reader of userfaultfd", errno));
  }
  return std::unique_ptr<UserfaultReader>(new UserfaultReader(userfaultfd, std::move(stop), events));
}

UserfaultReader::UserfaultReader(int userfaultfd, UniqueFd stop, UserfaultEvents& events)
    : userfaultfd_(userfaultfd), stop_(std::move(stop)), events_(events), thread_([this] { run(); }) {
  pthread_setname_np(thread_.native_handle(), "gw-userfault");
}

UserfaultReader::~UserfaultReader() {
  const std::uint64_t one = 1;
  // An eventfd of our own with a counter of zero takes a one.
  [[maybe_unused]] const ssize_t put = write(stop_.get(), &one, sizeof one);
  thread_.join();
}

void UserfaultReader::run() {
  std::array<pollfd, 2> polled{{{userfaultfd_, POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
  for (;;) {
    const int timeout_ms = deferred_.empty() ? -1 : 1;
    if (poll(polled.data(), polled.size(), timeout_ms) < 0 && errno != EINTR) {
      events_.on_failed(kernel_error("poll", "userfaultfd", errno));
      return;
    }
    if ((polled[1].revents & POLLIN) != 0) {
      return;
    }
    if ((polled[0].revents & (POLLERR | POLLNVAL)) != 0) {
      events_.on_failed({ErrorCode::kBadArgument, "userfaultfd cannot be polled: it must be O_NONBLOCK and set up"});
      return;
    }
    if (!read_events()) {
      return;
    }
    retry_deferred();
  }
}

bool UserfaultReader::read_events() {
  std::array<uffd_msg, 64> messages;
  const std::lock_guard lock(handling_);
  const ssize_t got = read(userfaultfd_, messages.data(), sizeof messages);
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) {
      return true;
    }
    events_.on_failed(kernel_error("read", "userfaultfd", errno));
    return false;
  }
  for (const uffd_msg& message : std::span(messages).first(static_cast<std::size_t>(got) / sizeof(uffd_msg))) {
    if (message.event == UFFD_EVENT_PAGEFAULT) {
      deferred_.push_back(message.arg.pagefault.address);
    } else if (message.event == UFFD_EVENT_REMOVE) {
      events_.on_removed({message.arg.remove.start, message.arg.remove.end - message.arg.remove.start});
    }
  }
  return true;
}

void UserfaultReader::retry_deferred() {
  std::erase_if(deferred_, [this](std::uint64_t address) { return events_.on_write_fault(address); });
}

}  // namespace godwit::memory
