#pragma once
// Frames with content that tells them apart, into and out of a memif queue. One thread.

#include <poll.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include "dataplane/port/port.h"

namespace godwit::port::memif {

inline constexpr std::uint32_t kMtu = 9000;
inline constexpr std::uint32_t kFrameBytesMax = kMtu + kEthernetHeaderBytes;
using Bytes = std::vector<std::byte>;

template <class Condition>
bool wait_until(Condition condition) {
  for (int i = 0; i < 10'000; ++i) {
    if (condition()) {
      return true;
    }
    poll(nullptr, 0, 1);
  }
  return false;
}

inline Bytes frame_of(std::size_t bytes, unsigned seed) {
  Bytes frame(bytes);
  std::minstd_rand random(seed + 1);
  std::generate(frame.begin(), frame.end(), [&] { return static_cast<std::byte>(random()); });
  return frame;
}

/// As whoever checks a tag does: what is elsewhere is brought.
inline Bytes whole(const Queue& queue, std::size_t index, std::span<const std::byte> frame) {
  Bytes bytes(frame.begin(), frame.end());
  if (const std::byte* from = queue.elsewhere(index)) {
    std::copy(from + kHereBytes, from + frame.size(), bytes.begin() + kHereBytes);
  }
  return bytes;
}

inline bool send(Queue& queue, Priority priority, const Bytes& frame) {
  const auto to = queue.next_frame(priority);
  if (to.empty()) {
    return false;
  }
  std::copy(frame.begin(), frame.end(), to.begin());
  queue.commit(priority, frame.size());
  return true;
}

/// What has come, until three looks find nothing.
inline std::vector<Bytes> receive_all(Queue& queue) {
  std::vector<Bytes> all;
  for (int empty = 0; empty < 3;) {
    const auto frames = queue.receive();
    empty = frames.empty() ? empty + 1 : 0;
    for (std::size_t i = 0; i < frames.size(); ++i) {
      all.push_back(whole(queue, i, frames[i]));
    }
  }
  return all;
}

}  // namespace godwit::port::memif
