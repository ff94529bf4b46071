#pragma once
// A stand-in for transport::Lane, linked instead of it: keeps what is sent, and is what the test says. Single thread.

#include <vector>

#include "dataplane/transport/lane.h"
#include "dataplane/wire/messages.h"

namespace godwit::transport {

/// State of one stand-in; the lane's user never sees it.
struct FakeLane {
  std::vector<std::vector<std::byte>> messages;
  std::size_t room = SIZE_MAX;
  bool dead = false;
  LaneFault fault = LaneFault::kNone;
  LaneCounters counters;
};
FakeLane& fake(Lane& lane);

/// What a lane does with a page that leaves: every other one in place.
void send_page(transport::LaneUser& user, pages::PageNumber page);

}  // namespace godwit::transport
