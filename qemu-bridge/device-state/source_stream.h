#pragma once
// SourceStream: reads what a source QEMU writes as its migration stream and forwards it framed, chunk by chunk, while
// QEMU still writes. Owns our end of the socket and two threads: one reads and forwards, one marks as live what came
// while the guest provably still ran (it asks after the bytes are here, so the answer "runs" covers them).
// Back-pressure: `forward` may block; QEMU then waits in its own write. `forward` false ends the stream as kRefused.
// The end of the stream says nothing about success: whoever owns this asks QEMU how its migration ended.
// Threads: start() and the destructor by the owner; `forward` by both threads, one at a time, and never after `on_end`;
// `on_end` once, by the reader, unless destroyed before.

#include <atomic>
#include <condition_variable>
#include <expected>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "base/unique_fd.h"

namespace godwit::bridge {

class SourceStream {
 public:
  enum class Error { kRead, kRefused };
  struct Handlers {
    std::function<bool(std::string chunk)> forward;
    std::function<bool()> guest_runs;  // may block on QMP; called by the marking thread
    std::function<void(std::expected<std::uint64_t, Error> bytes)> on_end;
  };

  SourceStream(UniqueFd socket, Handlers handlers);
  ~SourceStream();
  SourceStream(const SourceStream&) = delete;
  SourceStream& operator=(const SourceStream&) = delete;

  /// From QEMU's STOP event on nothing more is live.
  void guest_stopped();

 private:
  void read_loop();
  void mark_loop();
  bool forward(std::string chunk);

  UniqueFd socket_;
  Handlers handlers_;
  std::mutex forward_mutex_;  // order: before mutex_
  bool ended_ = false;        // under forward_mutex_
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t bytes_read_ = 0;  // and forwarded
  bool marking_ends_ = false;
  std::thread reader_;
  std::thread marker_;
};

}  // namespace godwit::bridge
