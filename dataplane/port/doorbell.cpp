#include "dataplane/port/doorbell.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

namespace godwit::port {
namespace {

PortError failed(const std::string& operation) { return {"doorbell: " + operation + ": " + std::strerror(errno)}; }

std::expected<void, PortError> add(int epoll, int fd, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
    return std::unexpected(failed("epoll_ctl"));
  }
  return {};
}

}  // namespace

std::expected<Doorbell, PortError> Doorbell::open() {
  Doorbell doorbell;
  doorbell.epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  doorbell.kick_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!doorbell.epoll_.valid() || !doorbell.kick_.valid()) {
    return std::unexpected(failed("epoll_create1, eventfd"));
  }
  if (auto added = add(doorbell.epoll_.get(), doorbell.kick_.get(), EPOLLIN); !added) {
    return std::unexpected(added.error());
  }
  return doorbell;
}

std::expected<void, PortError> Doorbell::watch_descriptor(int fd) {
  if (auto added = add(epoll_.get(), fd, EPOLLIN | EPOLLET); !added) {
    return added;
  }
  watches_frames_ = true;
  return {};
}

std::expected<void, PortError> Doorbell::watch_while_readable(int fd) { return add(epoll_.get(), fd, EPOLLIN); }

void Doorbell::unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Doorbell::kick() const {
  const std::uint64_t one = 1;
  // A full counter (EAGAIN) is readable already.
  [[maybe_unused]] const ssize_t written = write(kick_.get(), &one, sizeof one);
}

void Doorbell::wait(Duration longest) {
  std::array<epoll_event, 4> events{};
  const std::int64_t ns = std::max<std::int64_t>(longest.ns, 0);
  const timespec timeout{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  if (epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr) <= 0) {
    return;
  }
  std::uint64_t kicks = 0;
  [[maybe_unused]] const ssize_t got = read(kick_.get(), &kicks, sizeof kicks);
}

}  // namespace godwit::port
