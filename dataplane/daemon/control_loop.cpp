#include "dataplane/daemon/control_loop.h"

#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

bool add(int epoll, int fd, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/// Messages of one wake-up, so that a bridge that floods does not starve signals and the inbox.
constexpr int kMessagesPerTurn = 64;

}  // namespace

std::expected<ControlLoop, std::string> ControlLoop::open(ControlSocket socket) {
  ControlLoop loop(std::move(socket));
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  loop.epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  loop.signals_.reset(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  loop.wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!add(loop.epoll_.get(), loop.signals_.get(), EPOLLIN) || !add(loop.epoll_.get(), loop.wake_.get(), EPOLLIN) ||
      !add(loop.epoll_.get(), loop.socket_.listener(), EPOLLIN)) {
    return std::unexpected(std::string("control loop: epoll, signalfd or eventfd: ") + std::strerror(errno));
  }
  return loop;
}

std::function<void()> ControlLoop::waker() const {
  return [fd = wake_.get()] {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof one);  // a full counter wakes as well
  };
}

void ControlLoop::emit(const api::Event& event) {
  api::FromDataplane message;
  *message.mutable_event() = event;
  socket_.send(message.SerializeAsString());
}

void ControlLoop::watch_process(int pidfd) {
  if (!add(epoll_.get(), pidfd, EPOLLIN | EPOLLONESHOT)) {
    spdlog::error("control loop: cannot watch a QEMU process: {}", std::strerror(errno));
  }
}

void ControlLoop::watch_connection() {
  if (!socket_.connected()) {
    return;
  }
  epoll_event event{.events = EPOLLIN | (socket_.wants_write() ? std::uint32_t{EPOLLOUT} : 0U),
                    .data = {.fd = socket_.connection()}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, socket_.connection(), &event) != 0) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket_.connection(), &event);
  }
}

void ControlLoop::serve_bridge(Service& service) {
  if (socket_.accept_pending()) {
    ++connection_number_;
    spdlog::info("a bridge has connected");
  }
  socket_.flush();
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    auto message = socket_.receive();
    if (!message) {
      return;
    }
    api::ToDataplane request;
    // An answer belongs to the connection that asked: the next bridge counts its requests anew.
    const auto respond = [this, connection = connection_number_](std::uint64_t id, api::Reply reply) {
      if (connection != connection_number_) {
        return;
      }
      reply.set_id(id);
      api::FromDataplane answer;
      *answer.mutable_reply() = std::move(reply);
      std::string bytes = answer.SerializeAsString();
      if (bytes.size() > kMessageBytesMax) {
        *answer.mutable_reply() = refusal({api::Error::INTERNAL, "the answer of " + std::to_string(bytes.size()) +
                                                                     " bytes is too long for one message"});
        answer.mutable_reply()->set_id(id);
        bytes = answer.SerializeAsString();
      }
      socket_.send(std::move(bytes));
    };
    if (!request.ParseFromString(message->bytes)) {
      respond(0, refusal({api::Error::BAD_REQUEST, "a datagram of " + std::to_string(message->bytes.size()) +
                                                       " bytes is no ToDataplane message"}));
      continue;
    }
    const std::uint64_t id = request.id();
    service.handle(std::move(request), std::move(message->descriptors),
                   [respond, id](api::Reply reply) { respond(id, std::move(reply)); });
  }
}

void ControlLoop::run(Service& service, Inbox& inbox) {
  for (;;) {
    watch_connection();
    std::array<epoll_event, 16> events{};
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), -1);
    GW_ASSERT(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<std::size_t>(i)].data.fd;
      if (fd == signals_.get()) {
        spdlog::info("asked to end; guests stay as they are");
        return;
      }
      if (fd == wake_.get()) {
        std::uint64_t wakes = 0;
        [[maybe_unused]] const ssize_t got = read(fd, &wakes, sizeof wakes);
      } else if (fd != socket_.listener() && fd != socket_.connection()) {
        service.on_process_exit(fd);
      }
    }
    serve_bridge(service);
    inbox.run();
  }
}

}  // namespace godwit::daemon
