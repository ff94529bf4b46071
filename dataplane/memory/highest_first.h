#pragma once
// The victim policy by address: the highest pages leave first, whatever the guest does with them. S-memV's prototype
// placed pages so, by a threshold; it is here to be compared with coldest_first.h.
//
// Thread: the evictor's. Units: pages. No failure.

#include <bit>

#include "dataplane/memory/victim_policy.h"

namespace godwit::memory {

class HighestFirst final : public VictimPolicy {
 public:
  void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) override {
    const auto words = here.words();
    for (std::size_t i = words.size(); i-- > 0 && count > 0;) {
      for (std::uint64_t word = words[i]; word != 0 && count > 0; --count) {
        const auto bit = 63U - static_cast<unsigned>(std::countl_zero(word));
        out.push_back(64 * i + bit);
        word &= ~(std::uint64_t{1} << bit);
      }
    }
  }
};

}  // namespace godwit::memory
