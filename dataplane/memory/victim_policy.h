#pragma once
// Which pages leave first when a guest is over its resident budget: the interface. coldest_first.h is what is used
// unless the configuration says otherwise.
//
// Thread: the evictor's. Units: pages. No failure.

#include <cstdint>
#include <vector>

#include "dataplane/pages/bitmap.h"

namespace godwit::memory {

enum class EvictionOrder : std::uint8_t { kColdestFirst, kHighestFirst };

class VictimPolicy {
 public:
  virtual ~VictimPolicy() = default;
  /// Appends up to `count` different pages of `here`, those to go first at the front. None: not yet; asked again with a
  /// fresh `here`, there must be some, unless that is empty.
  virtual void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) = 0;
};

}  // namespace godwit::memory
