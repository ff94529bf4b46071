#include "qemu-bridge/agent/dataplane_client.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "spdlog/spdlog.h"

namespace godwit::bridge {
namespace {

constexpr std::uint32_t kApiVersion = 1;
constexpr int kSendBufferBytes = 4 << 20;
constexpr std::size_t kDescriptorsMax = 250;  // the kernel takes 253 in one datagram
constexpr std::chrono::milliseconds kBackoffMin{100};
constexpr std::chrono::milliseconds kBackoffMax{2000};

std::expected<UniqueFd, std::string> connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return std::unexpected("socket path '" + path + "' is empty or longer than 107 bytes");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid() || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return std::unexpected("cannot connect to data plane at " + path + ": " + std::strerror(errno));
  }
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kSendBufferBytes, sizeof(kSendBufferBytes)) != 0) {
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof(kSendBufferBytes));
  }
  return fd;
}

std::expected<void, int> send_datagram(int socket, const std::string& bytes, std::span<const int> descriptors) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  std::vector<char> control(descriptors.empty() ? 0 : CMSG_SPACE(descriptors.size_bytes()));
  if (!descriptors.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* message = CMSG_FIRSTHDR(&header);
    message->cmsg_level = SOL_SOCKET;
    message->cmsg_type = SCM_RIGHTS;
    message->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(message), descriptors.data(), descriptors.size_bytes());
  }
  while (::sendmsg(socket, &header, MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) {
      return std::unexpected(errno);
    }
  }
  return {};
}

}  // namespace

std::string text_of(const dataplane::v1::Error& error) {
  return dataplane::v1::Error::Code_Name(error.code()) + ": " + error.text();
}

dataplane::v1::Error make_error(dataplane::v1::Error::Code code, std::string text) {
  dataplane::v1::Error error;
  error.set_code(code);
  error.set_text(printable(text, 2000));
  return error;
}

DataplaneClient::DataplaneClient(std::string path, Handlers handlers)
    : path_(std::move(path)), handlers_(std::move(handlers)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  GW_ASSERT(wake_.valid());
}

void DataplaneClient::start() {
  thread_ = std::thread([this] { run(); });
}

DataplaneClient::~DataplaneClient() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  const std::uint64_t one = 1;
  GW_ASSERT(::write(wake_.get(), &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)));
  if (thread_.joinable()) {
    thread_.join();
  }
}

std::optional<dataplane::v1::HelloResult> DataplaneClient::hello() const {
  const std::lock_guard lock(mutex_);
  return hello_;
}

void DataplaneClient::wait_until_up(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, time, [&] { return hello_.has_value() || stopping_; });
}

std::expected<DataplaneClient::Reply, DataplaneClient::Error> DataplaneClient::call(Request request,
                                                                                    std::span<const int> descriptors,
                                                                                    std::chrono::milliseconds time) {
  GW_ASSERT(std::this_thread::get_id() != thread_.get_id());
  struct Wait {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<std::expected<Reply, Error>> reply;
  };
  const auto wait = std::make_shared<Wait>();  // a late reply finds it alive
  auto sent = send(request, descriptors, [wait](std::expected<Reply, Error> reply) {
    const std::lock_guard lock(wait->mutex);
    wait->reply = std::move(reply);
    wait->changed.notify_all();
  });
  if (!sent) {
    return std::unexpected(sent.error());
  }
  std::unique_lock lock(wait->mutex);
  if (!wait->changed.wait_for(lock, time, [&] { return wait->reply.has_value(); })) {
    return std::unexpected(make_error(Error::INTERNAL, "the data plane did not answer request " +
                                                           std::to_string(request.request_case()) + " within " +
                                                           std::to_string(time.count()) + " ms"));
  }
  return std::move(*wait->reply);
}

void DataplaneClient::post(Request request, OnReply on_reply) {
  // The callback must run exactly once: by whoever finds it, the reader or, if nothing was sent, us.
  const auto shared = std::make_shared<OnReply>(std::move(on_reply));
  if (auto sent = send(request, {}, [shared](std::expected<Reply, Error> reply) { (*shared)(std::move(reply)); });
      !sent) {
    (*shared)(std::unexpected(sent.error()));
  }
}

std::expected<void, DataplaneClient::Error> DataplaneClient::send(Request& request, std::span<const int> descriptors,
                                                                  OnReply on_reply) {
  GW_ASSERT(descriptors.size() <= kDescriptorsMax);
  const std::lock_guard order(send_mutex_);
  std::shared_ptr<UniqueFd> socket;
  std::uint64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!socket_ || !hello_) {
      return std::unexpected(make_error(Error::INTERNAL, "the data plane on this host is down (" + path_ + ")"));
    }
    socket = socket_;
    id = next_id_++;
  }
  request.set_id(id);
  const std::string bytes = request.SerializeAsString();
  if (bytes.size() > kDatagramBytesMax) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "a request of more than 256 KiB to the data plane"));
  }
  {
    const std::lock_guard lock(mutex_);
    if (socket_ != socket) {
      return std::unexpected(make_error(Error::INTERNAL, "the data plane on this host went away"));
    }
    waiting_.emplace(id, std::move(on_reply));
  }
  if (auto sent = send_datagram(socket->get(), bytes, descriptors); !sent) {
    const std::lock_guard lock(mutex_);
    // Gone: the reader met the end of the socket first and has answered it.
    if (waiting_.erase(id) > 0) {
      return std::unexpected(
          make_error(Error::INTERNAL, std::string("cannot send to the data plane: ") + std::strerror(sent.error())));
    }
  }
  return {};
}

void DataplaneClient::run() {
  auto backoff = kBackoffMin;
  std::string last_reason;
  while (true) {
    auto socket = connect_to(path_);
    if (socket) {
      {
        const std::lock_guard lock(mutex_);
        socket_ = std::make_shared<UniqueFd>(std::move(*socket));
      }
      Request hello;
      {
        const std::lock_guard lock(mutex_);
        hello_id_ = next_id_++;
      }
      hello.set_id(hello_id_);
      hello.mutable_hello()->set_version(kApiVersion);
      const auto sent = send_datagram(socket_->get(), hello.SerializeAsString(), {});
      const auto reason = sent ? read_datagrams() : std::optional(std::string("send: ") + std::strerror(sent.error()));
      if (hello_) {
        backoff = kBackoffMin;
      }
      disconnect(reason.value_or("the bridge ends"));
      if (!reason) {
        return;
      }
      last_reason = *reason;
    } else if (socket.error() != last_reason) {
      last_reason = socket.error();
      spdlog::warn("{}; trying on", last_reason);
    }
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, backoff, [&] { return stopping_; })) {
      return;
    }
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

/// Until the connection fails (why) or the client is destroyed (nothing).
std::optional<std::string> DataplaneClient::read_datagrams() {
  std::vector<char> buffer(kDatagramBytesMax);
  const int socket = socket_->get();
  while (true) {
    pollfd ready[2] = {{socket, POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (::poll(ready, 2, -1) < 0 && errno != EINTR) {
      return std::string("poll: ") + std::strerror(errno);
    }
    if (ready[1].revents != 0) {
      return std::nullopt;
    }
    iovec part{buffer.data(), buffer.size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    const ssize_t got = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      continue;
    }
    if (got <= 0) {
      return got == 0 ? "the data plane closed the connection" : std::string("recv: ") + std::strerror(errno);
    }
    dataplane::v1::FromDataplane message;
    if ((header.msg_flags & MSG_TRUNC) != 0 || !message.ParseFromArray(buffer.data(), static_cast<int>(got))) {
      return "the data plane sent a datagram that is not of its protocol";
    }
    if (!hello_) {
      if (!message.has_reply() || message.reply().id() != hello_id_ || !message.reply().has_hello() ||
          message.reply().hello().version() != kApiVersion) {
        return "the data plane speaks another version of the protocol: " + text_of(message.reply().error());
      }
      {
        const std::lock_guard lock(mutex_);
        hello_ = message.reply().hello();
        changed_.notify_all();
      }
      spdlog::info("data plane is up at {}", path_);
      handlers_.on_up(*hello_);
      continue;
    }
    deliver(std::move(message));
  }
}

void DataplaneClient::deliver(dataplane::v1::FromDataplane message) {
  if (message.has_event()) {
    handlers_.on_event(std::move(*message.mutable_event()));
    return;
  }
  OnReply on_reply;
  {
    const std::lock_guard lock(mutex_);
    const auto waiter = waiting_.find(message.reply().id());
    if (waiter == waiting_.end()) {
      return;  // it came after its time
    }
    on_reply = std::move(waiter->second);
    waiting_.erase(waiter);
  }
  if (message.reply().has_error() && message.reply().error().code() != Error::NONE) {
    on_reply(std::unexpected(message.reply().error()));
  } else {
    on_reply(std::move(*message.mutable_reply()));
  }
}

void DataplaneClient::disconnect(const std::string& reason) {
  std::map<std::uint64_t, OnReply> unanswered;
  bool was_up = false;
  {
    const std::lock_guard lock(mutex_);
    ::shutdown(socket_->get(), SHUT_RDWR);  // wakes a sender that waits in a full socket
    socket_.reset();
    was_up = std::exchange(hello_, std::nullopt).has_value();
    unanswered.swap(waiting_);
  }
  const Error error = make_error(Error::INTERNAL, "the data plane on this host went away: " + reason);
  const bool ending = [this] {
    const std::lock_guard lock(mutex_);
    return stopping_;
  }();
  for (auto& [id, on_reply] : unanswered) {
    on_reply(std::unexpected(error));
  }
  if (ending) {
    return;
  }
  if (was_up) {
    spdlog::warn("data plane at {}: {}", path_, reason);
    handlers_.on_down(reason);
  } else {
    spdlog::warn("data plane at {} refused us: {}", path_, reason);
  }
}

}  // namespace godwit::bridge
