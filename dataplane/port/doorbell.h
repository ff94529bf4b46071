#pragma once
// What wakes a sleeping lcore: a kick from another thread, a received frame, a timer. One per lcore; wait() on the
// lcore, kick() anywhere. Failure: open() says which call; a doorbell without frame source is still good for kicks and
// timed sleeps.

#include <expected>

#include "base/time.h"
#include "base/unique_fd.h"
#include "dataplane/port/environment.h"

namespace godwit::port {

class Doorbell {
 public:
  static std::expected<Doorbell, PortError> open();
  /// A descriptor (receive interrupt) whose readability wakes, edge-triggered.
  std::expected<void, PortError> watch_descriptor(int fd);
  /// A descriptor that wakes as long as it is readable, until unwatched or closed.
  std::expected<void, PortError> watch_while_readable(int fd);
  void unwatch(int fd);
  [[nodiscard]] bool watches_frames() const { return watches_frames_; }

  /// Any thread.
  void kick() const;
  /// Sleeps until kicked, rung or over.
  void wait(Duration longest);

 private:
  UniqueFd epoll_;
  UniqueFd kick_;
  bool watches_frames_ = false;
};

}  // namespace godwit::port
