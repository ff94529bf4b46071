#pragma once
// Of each page of a split VM, the newest content that a page store has confirmed and nobody has replaced since: whose,
// in which version, and its hash. Of a page that is missing and not on its way out that is where it is; of one that is
// resident it is a copy, good for as long as the content is the same. Of a page that its store has lost it says that,
// so that nobody takes it for one that has never left.
//
// A view of memory that its owner keeps, in a file that outlives the process: 16 bytes a page, all zero at first. At
// any kill an entry is as it was, as it is to be, or, of set(), none: harmless, as its page is resident or on its way
// out. Thread: one; get() also of any other while that one changes no entry that is looked at. No failure.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/check.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/placement/page_directory.h"
#include "dataplane/split/messages.h"

namespace godwit::split {

using placement::SubId;

struct Copy {
  SubId sub = 0;
  Version version = 0;
  pages::PageHash hash = 0;
};

class PageCopies {
 public:
  static std::size_t bytes(std::uint64_t page_count) { return page_count * sizeof(Entry); }
  /// At least bytes(page_count), aligned to 8, and not moved.
  PageCopies(std::span<std::byte> memory, std::uint64_t page_count)
      : entries_(reinterpret_cast<Entry*>(memory.data()), page_count) {
    GW_ASSERT(memory.size() >= bytes(page_count));
  }

  [[nodiscard]] std::uint64_t page_count() const { return entries_.size(); }
  [[nodiscard]] std::optional<Copy> get(pages::PageNumber page) const {
    Entry& entry = entries_[page];
    const std::uint64_t word = std::atomic_ref(entry.word).load();
    if (word == 0 || word >> 16 == kLost) {
      return std::nullopt;
    }
    return Copy{.sub = static_cast<SubId>(word & UINT16_MAX),
                .version = word >> 16,
                .hash = std::atomic_ref(entry.hash).load()};
  }
  void set(pages::PageNumber page, const Copy& copy) {
    clear(page);
    std::atomic_ref(entries_[page].hash).store(copy.hash);
    std::atomic_ref(entries_[page].word).store(copy.version << 16 | copy.sub);
  }
  /// The same content elsewhere, of a page that may be missing: at any kill it is here or there.
  void move(pages::PageNumber page, SubId sub, Version version) {
    std::atomic_ref(entries_[page].word).store(version << 16 | sub);
  }
  void clear(pages::PageNumber page) { std::atomic_ref(entries_[page].word).store(0); }
  /// This store should have it, and has not.
  void lose(pages::PageNumber page, SubId sub) { std::atomic_ref(entries_[page].word).store(kLost << 16 | sub); }
  [[nodiscard]] std::optional<SubId> lost(pages::PageNumber page) const {
    const std::uint64_t word = std::atomic_ref(entries_[page].word).load();
    return word >> 16 == kLost ? std::optional(static_cast<SubId>(word & UINT16_MAX)) : std::nullopt;
  }

 private:
  static constexpr Version kLost = (Version{1} << 48) - 1;
  struct Entry {
    std::uint64_t word;  // version 48 bits, sub 16; 0: none
    std::uint64_t hash;
  };
  std::span<Entry> entries_;
};

}  // namespace godwit::split
