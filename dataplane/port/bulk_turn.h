#pragma once
// How many bulk frames a queue handles between two looks at urgent ones, on either way. Each takes a microsecond or two
// to build or to place, and an urgent frame waits for so many of them at each end. Small turns cost bulk some percent,
// so it has whole bursts again after a while without urgent frames: some 10 ms under load.
// Owner: a queue; its lcore. No failure.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "dataplane/port/port.h"

namespace godwit::port {

class BulkTurn {
 public:
  /// What this turn found, before it looks at bulk.
  void on_received(bool urgent) { short_turns_ = urgent ? kShortTurns : short_turns_ - std::min(short_turns_, 1U); }
  [[nodiscard]] std::size_t frames() const { return short_turns_ > 0 ? kFrames : kBurst; }

 private:
  static constexpr std::size_t kFrames = 8;
  static constexpr std::uint32_t kShortTurns = 1024;
  std::uint32_t short_turns_ = 0;  // left
};

}  // namespace godwit::port
