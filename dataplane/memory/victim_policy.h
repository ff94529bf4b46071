#pragma once
// Which pages leave first when a guest is over its resident budget: an interface, and what is used unless something
// knows better (access bits).
//
// Thread: choose() from the evictor's; note_used() from any. Units: pages. No failure.

#include <vector>

#include "dataplane/memory/page_flags.h"
#include "dataplane/pages/bitmap.h"

namespace godwit::memory {

class VictimPolicy {
 public:
  virtual ~VictimPolicy() = default;
  /// Appends up to `count` different pages of `here`, those to go first at the front. None: not yet; asked again with a
  /// fresh `here`, there must be some, unless that is empty.
  virtual void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) = 0;
};

/// Round and round; a page used since it was last passed stays for another round. Used: written, by what the tracker
/// collects, or whatever else somebody notes. Without a note this is first in, first out, by round.
class SecondChance final : public VictimPolicy {
 public:
  explicit SecondChance(std::uint64_t page_count) : used_(page_count) {}

  void note_used(pages::PageNumber page) { used_.set(page); }
  void note_used(const pages::Bitmap& pages) {
    for (pages::PageNumber page = pages.next_set(0); page < pages.size(); page = pages.next_set(page + 1)) {
      used_.set(page);
    }
  }

  void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) override {
    const std::uint64_t size = here.size();
    const pages::PageNumber begin = hand_;
    // Once round: from the hand to the end, then from the beginning to where it was.
    for (const auto& [first, end] : {std::pair{begin, size}, std::pair{std::uint64_t{0}, begin}}) {
      for (pages::PageNumber page = here.next_set(first, end); page < end; page = here.next_set(page + 1, end)) {
        if (count == 0) {
          hand_ = page;
          return;
        }
        if (used_.test(page)) {
          used_.clear(page);
        } else {
          out.push_back(page);
          --count;
        }
      }
    }
  }

 private:
  PageFlags used_;
  pages::PageNumber hand_ = 0;
};

}  // namespace godwit::memory
