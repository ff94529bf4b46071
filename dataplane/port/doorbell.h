#pragma once
// What wakes a sleeping lcore: a kick from another thread, a received frame, a timer. One per lcore; wait() on the
// lcore, kick() anywhere. For af_packet it opens a packet socket of its own on the interface that passes only what
// concerns us (our UDP port, ARP, IPv6 neighbour discovery) and keeps but a byte of each, so that sleeping costs
// nothing and waking needs no timer. Failure: open() says which call; a doorbell without frame source is still good for
// kicks and timed sleeps.

#include <cstdint>
#include <expected>
#include <string>

#include "base/time.h"
#include "base/unique_fd.h"
#include "dataplane/port/environment.h"

namespace godwit::port {

class Doorbell {
 public:
  static std::expected<Doorbell, PortError> open();
  /// Frames for `udp_port` on this kernel interface wake, too.
  std::expected<void, PortError> watch_interface(const std::string& interface, std::uint16_t udp_port);
  /// A descriptor (receive interrupt) whose readability wakes, edge-triggered.
  std::expected<void, PortError> watch_descriptor(int fd);
  /// A descriptor that wakes as long as it is readable, until unwatched or closed.
  std::expected<void, PortError> watch_while_readable(int fd);
  void unwatch(int fd);
  [[nodiscard]] bool watches_frames() const { return watches_frames_; }

  /// Any thread.
  void kick() const;
  /// Forgets frames that have rung so far. Call, then poll the port once more, then wait: none is missed.
  void clear();
  /// Sleeps until kicked, rung or over.
  void wait(Duration longest);

 private:
  UniqueFd epoll_;
  UniqueFd kick_;
  UniqueFd frames_;
  bool watches_frames_ = false;
};

}  // namespace godwit::port
