#pragma once
// Which record a key has: open addressing over record numbers, 5 bytes a record at its fullest. Pure; owned by one
// thread at a time. The keys are in the records, which the caller compares.

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace godwit::memserver {

class PageIndex {
 public:
  static constexpr std::uint32_t kNone = UINT32_MAX;

  /// For up to this many records, at a load of four fifths: a miss looks at 13 entries on average (linear probing,
  /// Knuth 6.4), and only when the store is that full.
  explicit PageIndex(std::uint64_t records) : entries_(records + records / 4 + 1, kNone) {}

  /// The record for which `same(record)`, kNone if there is none.
  template <class Same>
  [[nodiscard]] std::uint32_t find(std::uint64_t hash, Same&& same) const {
    for (std::uint64_t at = home(hash); entries_[at] != kNone; at = next(at)) {
      if (same(entries_[at])) return entries_[at];
    }
    return kNone;
  }
  /// Of a key that is not here.
  void insert(std::uint64_t hash, std::uint32_t record) {
    std::uint64_t at = home(hash);
    while (entries_[at] != kNone) at = next(at);
    entries_[at] = record;
  }
  void replace(std::uint64_t hash, std::uint32_t record, std::uint32_t by) { entries_[place(hash, record)] = by; }
  /// `hash_of(record)` of those behind it, which move up so that no search ends early.
  template <class HashOf>
  void erase(std::uint64_t hash, std::uint32_t record, HashOf&& hash_of) {
    std::uint64_t gap = place(hash, record);
    for (std::uint64_t at = next(gap); entries_[at] != kNone; at = next(at)) {
      // It may move unless its home lies behind the gap, on the way to it.
      const std::uint64_t from_home = distance(home(hash_of(entries_[at])), at);
      if (from_home >= distance(gap, at)) {
        entries_[gap] = entries_[at];
        gap = at;
      }
    }
    entries_[gap] = kNone;
  }
  [[nodiscard]] std::uint64_t bytes() const { return entries_.size() * sizeof(std::uint32_t); }

 private:
  [[nodiscard]] std::uint64_t home(std::uint64_t hash) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::uint64_t>(static_cast<Wide>(hash) * entries_.size() >> 64);
  }
  [[nodiscard]] std::uint64_t next(std::uint64_t at) const { return at + 1 == entries_.size() ? 0 : at + 1; }
  [[nodiscard]] std::uint64_t distance(std::uint64_t from, std::uint64_t to) const {
    return to >= from ? to - from : to + entries_.size() - from;
  }
  [[nodiscard]] std::uint64_t place(std::uint64_t hash, std::uint32_t record) const {
    std::uint64_t at = home(hash);
    while (entries_[at] != record) {
      GW_ASSERT(entries_[at] != kNone);
      at = next(at);
    }
    return at;
  }

  std::vector<std::uint32_t> entries_;
};

}  // namespace godwit::memserver
