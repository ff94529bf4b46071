#include "qemu-bridge/device-state/source_stream.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "qemu-bridge/device-state/stream_frame.h"

namespace godwit::bridge {

SourceStream::SourceStream(UniqueFd socket, Handlers handlers)
    : socket_(std::move(socket)), handlers_(std::move(handlers)) {
  reader_ = std::thread([this] { read_loop(); });
  marker_ = std::thread([this] { mark_loop(); });
}

SourceStream::~SourceStream() {
  guest_stopped();
  ::shutdown(socket_.get(), SHUT_RDWR);
  reader_.join();
  marker_.join();
}

void SourceStream::guest_stopped() {
  const std::lock_guard lock(mutex_);
  marking_ends_ = true;
  changed_.notify_all();
}

bool SourceStream::forward(std::string chunk) {
  const std::lock_guard lock(forward_mutex_);
  return !ended_ && handlers_.forward(std::move(chunk));
}

void SourceStream::read_loop() {
  std::array<std::byte, kDataBytesMax> buffer;
  std::uint64_t total = 0;
  std::expected<std::uint64_t, Error> result;
  while (true) {
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      result = got == 0 ? std::expected<std::uint64_t, Error>(total) : std::unexpected(Error::kRead);
      break;
    }
    const auto bytes = static_cast<std::size_t>(got);
    if (!forward(encode_data_frame({buffer.data(), bytes}))) {
      result = std::unexpected(Error::kRefused);
      break;
    }
    total += bytes;
    const std::lock_guard lock(mutex_);
    bytes_read_ = total;
    changed_.notify_all();
  }
  // QEMU must not block for ever in a write that nobody reads.
  ::shutdown(socket_.get(), SHUT_RDWR);
  guest_stopped();
  {
    // The answer to the marking thread's question may come later than the end.
    const std::lock_guard lock(forward_mutex_);
    ended_ = true;
  }
  handlers_.on_end(result);
}

void SourceStream::mark_loop() {
  std::uint64_t marked = 0;
  while (true) {
    std::uint64_t count = 0;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return marking_ends_ || bytes_read_ > marked; });
      if (marking_ends_) {
        return;
      }
      count = bytes_read_;
    }
    // The question is asked after the bytes were read: "runs" means that they were written before any STOP.
    if (!handlers_.guest_runs() || !forward(encode_live_frame(count))) {
      return;
    }
    marked = count;
  }
}

}  // namespace godwit::bridge
