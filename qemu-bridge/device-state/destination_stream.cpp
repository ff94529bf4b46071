#include "qemu-bridge/device-state/destination_stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace godwit::bridge {

DestinationStream::DestinationStream(UniqueFd socket, std::function<void(std::string)> on_failed)
    : socket_(std::move(socket)),
      on_failed_(std::move(on_failed)),
      parser_(
          {.on_data = [this](std::span<const std::byte> data) { held_.insert(held_.end(), data.begin(), data.end()); },
           .on_live = [this](std::uint64_t count) { live_count_ = count; }}) {
  writer_ = std::thread([this] { write_loop(); });
}

DestinationStream::~DestinationStream() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  ::shutdown(socket_.get(), SHUT_RDWR);
  writer_.join();
}

std::uint64_t DestinationStream::poured() const {
  const std::lock_guard lock(mutex_);
  return poured_;
}

void DestinationStream::arrive(std::span<const std::byte> bytes, bool end) {
  std::string failure;
  {
    const std::lock_guard lock(mutex_);
    failure = arrive_locked(bytes, end);
    changed_.notify_all();
  }
  if (!failure.empty()) {
    fail(std::move(failure));
  }
}

std::string DestinationStream::arrive_locked(std::span<const std::byte> bytes, bool end) {
  if (failed_) {
    return {};
  }
  if (ended_) {
    return "device state: more bytes after its end";
  }
  if (const auto parsed = parser_.consume(bytes); !parsed) {
    return std::string(text_of(parsed.error()));
  }
  if (held_.size() - held_begin_ > kHeldBytesMax) {
    return "device state: more than " + std::to_string(kHeldBytesMax) + " bytes";
  }
  if (end && !parser_.at_frame_end()) {
    return "device state: ends inside a frame";
  }
  ended_ = end;
  return {};
}

void DestinationStream::release_all_but_end() {
  const std::lock_guard lock(mutex_);
  guarded_ = true;
  changed_.notify_all();
}

void DestinationStream::release() {
  const std::lock_guard lock(mutex_);
  released_ = true;
  changed_.notify_all();
}

void DestinationStream::fail(std::string text) {
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || stopping_) {
      return;
    }
    failed_ = true;
    changed_.notify_all();
  }
  on_failed_(std::move(text));
}

/// Of what is held; under the mutex.
std::uint64_t DestinationStream::allowed() const {
  const std::uint64_t held = held_.size() - held_begin_;
  if (released_) {
    return held;
  }
  const std::uint64_t live = live_count_ > poured_ ? live_count_ - poured_ : 0;
  return std::max(std::min(held, live), guarded_ && held > kEndBytes ? held - kEndBytes : 0);
}

void DestinationStream::write_loop() {
  std::vector<std::byte> part;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] {
        return stopping_ || failed_ || allowed() > 0 || (released_ && ended_ && held_begin_ == held_.size());
      });
      if (stopping_ || failed_) {
        return;
      }
      const auto take = static_cast<std::ptrdiff_t>(allowed());
      if (take == 0) {
        break;
      }
      const auto begin = held_.begin() + static_cast<std::ptrdiff_t>(held_begin_);
      part.assign(begin, begin + take);
      held_begin_ += static_cast<std::size_t>(take);
      if (held_begin_ == held_.size()) {
        held_.clear();
        held_begin_ = 0;
      }
    }
    std::size_t done = 0;
    while (done < part.size()) {
      const ssize_t sent = ::send(socket_.get(), part.data() + done, part.size() - done, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) {
        continue;
      }
      if (sent <= 0) {
        return fail(std::string("device state: the incoming QEMU does not take it: ") + std::strerror(errno));
      }
      done += static_cast<std::size_t>(sent);
    }
    const std::lock_guard lock(mutex_);
    poured_ += part.size();
  }
  ::shutdown(socket_.get(), SHUT_WR);
}

}  // namespace godwit::bridge
