#pragma once
// DestinationStream: holds a migration stream until the guest's memory is in place, then pours it into the incoming
// QEMU. What the source marked as live is poured at once; all but the end of the rest as soon as the memory is guarded.
// Owns our end of QEMU's socket and one writer thread.
// Threads: arrive(), release() from any thread, never blocking; `on_failed` at most once, from arrive()'s thread or the
// writer. Holds at most kHeldBytesMax bytes; more, a bad frame, or an end inside a frame is a failure, and nothing more
// is written: a QEMU that got half a stream never completes its load, so its guest cannot run.

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "qemu-bridge/device-state/stream_frame.h"

namespace godwit::bridge {

class DestinationStream {
 public:
  // Device state is about 1 MiB and video RAM seldom over 64: what is larger is no such stream.
  static constexpr std::uint64_t kHeldBytesMax = 1ull << 30;
  static constexpr std::uint64_t kEndBytes = 16;

  DestinationStream(UniqueFd socket, std::function<void(std::string)> on_failed);
  ~DestinationStream();
  DestinationStream(const DestinationStream&) = delete;
  DestinationStream& operator=(const DestinationStream&) = delete;

  void arrive(std::span<const std::byte> bytes, bool end);
  /// Who reads guest memory waits: everything may be loaded but the last kEndBytes, without which no load completes.
  void release_all_but_end();
  /// The guest's memory is in place: everything may be loaded.
  void release();
  /// Bytes given to QEMU so far.
  [[nodiscard]] std::uint64_t poured() const;

 private:
  void write_loop();
  [[nodiscard]] std::uint64_t allowed() const;
  std::string arrive_locked(std::span<const std::byte> bytes, bool end);
  void fail(std::string text);

  UniqueFd socket_;
  std::function<void(std::string)> on_failed_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::byte> held_;  // from held_begin_ on not yet taken by the writer
  std::size_t held_begin_ = 0;
  std::uint64_t poured_ = 0;
  std::uint64_t live_count_ = 0;
  bool guarded_ = false;
  bool released_ = false;
  bool ended_ = false;
  bool stopping_ = false;
  bool failed_ = false;
  FrameParser parser_;
  std::thread writer_;
};

}  // namespace godwit::bridge
