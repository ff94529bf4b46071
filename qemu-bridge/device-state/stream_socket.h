#pragma once
// The socket pair through which QEMU writes or reads its migration stream: one end is passed to QEMU (getfd), so that
// no path, permission or user of QEMU's matters. Both ends are stream sockets with buffers large enough that QEMU never
// waits for us while its guest is stopped. Sizes in bytes; fails with errno.

#include <expected>

#include "base/unique_fd.h"

namespace godwit::bridge {

struct StreamSockets {
  UniqueFd ours;
  UniqueFd qemu;
};

std::expected<StreamSockets, int> make_stream_sockets();

}  // namespace godwit::bridge
