#pragma once
// The directory of a split VM: where each of its pages is. Resident on the main host, all zero, or held by sub hosts.
//
// Owns 2 bytes a page, and a table of the distinct lists of holders: a VM has few of them (one a sub host where pages
// have one holder), so a page names its list by number. Pure; owned by one thread at a time. Units: pages, numbered as
// pages/page.h says. Failure: set_held() refuses a list when kListsMax are in use; decoding takes hostile bytes.

#include <array>
#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/check.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/codec.h"

namespace godwit::placement {

/// A sub host, numbered by the plan of its VM.
using SubId = std::uint16_t;

/// The sub hosts that each hold a page, or a part of its redundancy, in the order in which they are asked.
class Holders {
 public:
  static constexpr std::size_t kCountMax = 8;
  /// Nothing unless 1 to kCountMax, no one twice.
  [[nodiscard]] static std::optional<Holders> of(std::span<const SubId> subs);
  [[nodiscard]] static Holders of(SubId sub) { return Holders(std::span(&sub, 1)); }

  [[nodiscard]] std::span<const SubId> subs() const { return std::span(subs_).first(count_); }
  [[nodiscard]] bool contains(SubId sub) const;
  auto operator<=>(const Holders&) const = default;

 private:
  explicit Holders(std::span<const SubId> subs);
  std::array<SubId, kCountMax> subs_{};
  std::uint8_t count_ = 0;
};

enum class Place : std::uint8_t {
  kResident,  // in the main host's RAM file, or on its way out and not confirmed by a holder
  kZero,      // zero, and nowhere
  kHeld,      // by all of holders()
};

class PageDirectory {
 public:
  /// Distinct lists of holders in use at once.
  static constexpr std::size_t kListsMax = UINT16_MAX - 1;

  /// All resident.
  explicit PageDirectory(std::uint64_t page_count);

  [[nodiscard]] std::uint64_t page_count() const { return entries_.size(); }
  [[nodiscard]] Place place(pages::PageNumber page) const;
  /// Of a page that is held.
  [[nodiscard]] const Holders& holders(pages::PageNumber page) const;
  [[nodiscard]] std::uint64_t count(Place place) const;
  /// Pages that this sub host is a holder of.
  [[nodiscard]] std::uint64_t count_held_by(SubId sub) const;
  /// What all of this takes.
  [[nodiscard]] std::uint64_t bytes() const;

  void set_resident(pages::PageNumber first, std::uint64_t count) { set(first, count, kResidentEntry); }
  void set_zero(pages::PageNumber first, std::uint64_t count) { set(first, count, kZeroEntry); }
  /// False, and nothing changed: kListsMax other lists are in use. Take one of those.
  [[nodiscard]] bool set_held(pages::PageNumber first, std::uint64_t count, const Holders& holders);

  /// Calls f(first, count, place, holders) for each run of pages of one placement in [first, first + count), in order;
  /// `holders` is nullptr unless held.
  template <class F>
  void for_each_run(pages::PageNumber first, std::uint64_t count, F&& f) const {
    GW_ASSERT(first <= entries_.size() && count <= entries_.size() - first);
    for (const pages::PageNumber end = first + count; first < end;) {
      pages::PageNumber next = first + 1;
      while (next < end && entries_[next] == entries_[first]) ++next;
      const bool held = entries_[first] >= kFirstList;
      f(first, next - first, place(first), held ? &holders(first) : nullptr);
      first = next;
    }
  }
  /// Calls f(first, count) for each run of pages that this sub host is a holder of, in order.
  template <class F>
  void for_each_held_by(SubId sub, F&& f) const {
    for_each_run(0, entries_.size(), [&](pages::PageNumber first, std::uint64_t count, Place, const Holders* holders) {
      if (holders != nullptr && holders->contains(sub)) f(first, count);
    });
  }
  /// Which pages are gone if this sub host is: it is their only holder.
  [[nodiscard]] pages::Bitmap held_only_by(SubId sub) const;

  /// As bytes, runs of one placement together: version u8, varint pages, varint lists, each varint count and varint
  /// ids, then runs (varint pages, varint placement: 0 resident, 1 zero, 2 + list), XXH3 u64 of all before it.
  [[nodiscard]] std::vector<std::byte> encode() const;
  /// Any input gives the directory of a VM of `page_count` pages, or an error; it allocates that directory at most.
  [[nodiscard]] static std::expected<PageDirectory, pages::DecodeError> decode(std::span<const std::byte> bytes,
                                                                               std::uint64_t page_count);
  /// Same placement of each page.
  bool operator==(const PageDirectory& other) const;

 private:
  using Entry = std::uint16_t;
  static constexpr Entry kResidentEntry = 0;
  static constexpr Entry kZeroEntry = 1;
  static constexpr Entry kFirstList = 2;
  struct List {
    Holders holders;
    std::uint64_t pages = 0;  // that name it; 0: free
  };
  void set(pages::PageNumber first, std::uint64_t count, Entry entry);
  void count_pages(Entry entry, std::uint64_t more, std::uint64_t fewer);
  [[nodiscard]] const List& list(Entry entry) const { return lists_[entry - kFirstList]; }

  std::vector<Entry> entries_;
  std::vector<List> lists_;
  std::map<Holders, Entry> numbers_;  // of lists in use
  std::vector<Entry> free_;
  std::uint64_t resident_ = 0, zero_ = 0;
};

}  // namespace godwit::placement
