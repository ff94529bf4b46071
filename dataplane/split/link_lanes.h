#pragma once
// What both ends of a flow between main host and page store do with its two lanes. Thread: theirs. No failure.

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dataplane/split/messages.h"
#include "dataplane/transfer/outbox.h"
#include "dataplane/transport/lane.h"

namespace godwit::split {

struct LinkLanes {
  transport::Lane* priority = nullptr;  // null: not started
  transport::Lane* bulk = nullptr;

  /// Why nothing can be heard of the peer on these any more.
  [[nodiscard]] std::optional<std::string> failure(Instant now) const {
    for (const transport::Lane* lane : {priority, bulk}) {
      if (lane->fault() != transport::LaneFault::kNone) {
        return "a lane closed: " + std::string(transport::to_string(lane->fault()));
      }
      if (lane->peer_dead(now)) {
        return "the peer does not answer any more";
      }
    }
    return std::nullopt;
  }
};

/// As many messages as the entries need, which are gone then. `number`: of the first of them.
inline void push_list(transfer::Outbox& outbox, Type type, std::uint32_t number, std::vector<Entry>& entries) {
  for (std::size_t at = 0; at < entries.size(); at += kEntriesMax) {
    const auto some = std::span(entries).subspan(at, std::min(kEntriesMax, entries.size() - at));
    Message message{.type = type, .number = type == Type::kGet ? number + static_cast<std::uint32_t>(at) : number};
    message.entries.assign(some.begin(), some.end());
    outbox.push_encoded(encode(message));
  }
  entries.clear();
}

/// The last that is said.
inline void push_abort(transfer::Outbox& outbox, const std::string& why) {
  Message message{.type = Type::kAbort};
  message.text = why;
  outbox.clear();
  outbox.push_encoded(encode(message));
}

}  // namespace godwit::split
