#pragma once
// The coldest pages leave first, by the access history (pages/access_history.h): what the last scans did not find
// accessed, then what they found longest ago. A page that came back since the last scan is not a victim: note() it in
// the history.
//
// The history outlives the policy. Thread: one, the evictor's; the history must not be written meanwhile. No failure.

#include <vector>

#include "dataplane/memory/victim_policy.h"
#include "dataplane/pages/access_history.h"

namespace godwit::memory {

class ColdestFirst final : public VictimPolicy {
 public:
  explicit ColdestFirst(const pages::AccessHistory& history) : history_(history) {}

  void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) override;

 private:
  void rank(const pages::Bitmap& here);

  const pages::AccessHistory& history_;
  std::vector<pages::PageNumber> victims_;  // the coldest last; used up before all are ranked again
};

}  // namespace godwit::memory
