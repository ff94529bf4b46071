#pragma once
// The pages that a destination asks for: each once, and again only when it has not come in time. One thread; time is
// passed in. Some thousand pages at most: threads of the guest that wait, and what is left at the end.

#include <cstdint>
#include <queue>
#include <unordered_map>
#include <vector>

#include "base/time.h"
#include "dataplane/pages/page.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

class PageRequests {
 public:
  /// To be asked for, unless it is already. True: it is new.
  bool want(pages::PageNumber page);
  /// The same, as one that was sent before and did not stay.
  void want_again(pages::PageNumber page);
  /// It is there, or not missing any more. True: it was asked for.
  bool forget(pages::PageNumber page);
  /// Nobody has heard of any request: on new lanes.
  void ask_all_anew();
  /// The next message due; false: none. `wait`: how long an answer may take; longer with each time a page is asked for.
  bool next(Instant now, Duration wait, wire::DemandRequest& out);
  /// When next() has something at the latest.
  [[nodiscard]] Instant deadline() const;
  [[nodiscard]] bool empty() const { return asked_.empty(); }

 private:
  struct Asked {
    std::uint32_t times = 0;  // 0: not yet
    bool again = false;       // sent before
    Instant until{};          // then again
  };
  struct Due {
    Instant at;
    pages::PageNumber page = 0;
    bool operator>(const Due& other) const { return at > other.at; }
  };
  bool next_due(Instant now);

  std::unordered_map<pages::PageNumber, Asked> asked_;
  std::vector<pages::PageNumber> new_, late_;  // not in a message yet
  // By time; an entry whose page is gone or was asked for again is passed over.
  std::priority_queue<Due, std::vector<Due>, std::greater<>> timers_;
};

}  // namespace godwit::transfer
