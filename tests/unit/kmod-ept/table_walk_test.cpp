// The module's walk over tables that are made here: EPT and NPT, four and five levels, with what KVM writes into them.

#include "kmod-ept/table_walk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <random>
#include <set>
#include <vector>

namespace {

constexpr unsigned long kPresent = TABLE_ENTRY_PRESENT;
constexpr unsigned long kLarge = TABLE_ENTRY_LARGE;
constexpr __u64 kPages2MiB = 512;
constexpr __u64 kPages1GiB = 512 * 512;
constexpr unsigned long kEncryption = 1UL << 51;  // a bit of an address that is none of it, as SME has

struct Case {
  bool is_ept;
  unsigned levels;
};

class TableWalk : public testing::TestWithParam<Case> {
 protected:
  struct alignas(4096) Table {
    std::array<unsigned long, 512> entries{};
  };

  void SetUp() override {
    // Written out, not taken from the code: Intel SDM 29.3.2, AMD APM 5.4.
    accessed_ = GetParam().is_ept ? 1UL << 8 : 1UL << 5;
    dirty_ = GetParam().is_ept ? 1UL << 9 : 1UL << 6;
    root_ = &tables_.emplace_back();
    look_at(0, 4 * kPages1GiB);
  }

  /// Bitmaps over pages of [start, end), and the range asked for.
  void look_at(__u64 start, __u64 end) {
    for (auto* map : {&accessed_map_, &dirty_map_, &present_map_}) {
      map->assign((end - start + 63) / 64, 0);
    }
    walk_ = {};
    walk_.format = table_format_of(GetParam().is_ept);
    walk_.address_mask = TABLE_ENTRY_ADDRESS & ~kEncryption;
    walk_.table = [](__u64 physical) { return reinterpret_cast<unsigned long*>(physical); };
    walk_.start = walk_.base = start;
    walk_.end = end;
    walk_.accessed = accessed_map_.data();
    walk_.dirty = dirty_map_.data();
    walk_.present = present_map_.data();
  }

  void run() { table_walk_range(&walk_, reinterpret_cast<__u64>(root_), GetParam().levels, walk_.start, walk_.end); }

  void clear() {
    walk_.clear = true;
    run();
    walk_.clear = false;
  }

  /// The entry of a page at a level, with the tables above it. As KVM does: bit 11 set, hardware's bits of the format.
  unsigned long& entry(__u64 page, unsigned level) {
    Table* table = root_;
    for (unsigned at = GetParam().levels; at > level; --at) {
      unsigned long& up = table->entries[page >> (9 * (at - 1)) & 511];
      if (up == 0) {
        up = reinterpret_cast<unsigned long>(&tables_.emplace_back()) | kPresent | kEncryption | 7;
      }
      table = reinterpret_cast<Table*>(up & TABLE_ENTRY_ADDRESS & ~kEncryption);
    }
    return table->entries[page >> (9 * (level - 1)) & 511];
  }

  unsigned long& map(__u64 page, unsigned level, unsigned long bits) {
    unsigned long& leaf = entry(page, level);
    leaf = page << 12 | kPresent | 7 | bits | (level > 1 ? kLarge : 0);
    return leaf;
  }

  static std::set<__u64> bits(const std::vector<__u64>& words, __u64 base = 0) {
    std::set<__u64> found;
    for (__u64 at = 0; at < words.size() * 64; ++at) {
      if ((words[at / 64] >> (at % 64) & 1) != 0) {
        found.insert(base + at);
      }
    }
    return found;
  }

  static std::set<__u64> range(__u64 first, __u64 pages) {
    std::set<__u64> all;
    for (__u64 page = first; page < first + pages; ++page) {
      all.insert(all.end(), page);
    }
    return all;
  }

  unsigned long accessed_ = 0, dirty_ = 0;
  std::deque<Table> tables_;
  Table* root_ = nullptr;
  table_walk walk_{};
  std::vector<__u64> accessed_map_, dirty_map_, present_map_;
};

TEST_P(TableWalk, SmallPages) {
  map(3, 1, accessed_);
  map(511, 1, accessed_ | dirty_);
  map(512, 1, dirty_);
  map(kPages1GiB + 7, 1, 0);
  run();
  EXPECT_EQ(bits(accessed_map_), (std::set<__u64>{3, 511}));
  EXPECT_EQ(bits(dirty_map_), (std::set<__u64>{511, 512}));
  EXPECT_EQ(bits(present_map_), (std::set<__u64>{3, 511, 512, kPages1GiB + 7}));
  EXPECT_EQ(walk_.leaves[0], 4U);
  EXPECT_FALSE(walk_.tracking_off);
}

TEST_P(TableWalk, LargePages) {
  map(2 * kPages2MiB, 2, accessed_);
  map(3 * kPages2MiB, 2, dirty_);
  map(kPages1GiB, 3, accessed_ | dirty_);
  run();
  std::set<__u64> accessed = range(2 * kPages2MiB, kPages2MiB);
  accessed.merge(range(kPages1GiB, kPages1GiB));
  EXPECT_EQ(bits(accessed_map_), accessed);
  EXPECT_EQ(bits(dirty_map_).size(), kPages2MiB + kPages1GiB);
  EXPECT_EQ(walk_.leaves[0], 0U);
  EXPECT_EQ(walk_.leaves[1], 2U);
  EXPECT_EQ(walk_.leaves[2], 1U);
}

// The hardware's "large" bit means nothing in the levels above.
TEST_P(TableWalk, NoLeavesAboveOneGiB) {
  map(5, 1, accessed_);
  entry(5, 4) |= kLarge;
  run();
  EXPECT_EQ(bits(accessed_map_), std::set<__u64>{5});
}

// What is below an entry that is not present for KVM is not the VM's.
TEST_P(TableWalk, UnlinkedTables) {
  map(kPages2MiB, 1, accessed_);
  map(kPages1GiB, 1, accessed_);
  entry(kPages2MiB, 2) &= ~kPresent;
  entry(kPages1GiB, 3) &= ~kPresent;
  run();
  EXPECT_EQ(bits(present_map_), std::set<__u64>{});
}

// KVM's mark of an entry that is going away has the bits of both formats set, and not its "present".
TEST_P(TableWalk, HolesAndFrozenEntries) {
  constexpr unsigned long kFrozen = 0x5a0;
  map(9, 1, accessed_);
  entry(10, 1) = kFrozen;
  entry(kPages2MiB, 2) = kFrozen;
  entry(kPages1GiB, 3) = kFrozen;
  entry(2 * kPages1GiB, 1) = ~0UL & ~kPresent;
  run();
  EXPECT_EQ(bits(present_map_), std::set<__u64>{9});
  EXPECT_EQ(bits(accessed_map_), std::set<__u64>{9});
  std::ranges::fill(accessed_map_, ~0ULL);
  clear();
  EXPECT_EQ(entry(10, 1), kFrozen);
  EXPECT_EQ(entry(kPages2MiB, 2), kFrozen);
  EXPECT_EQ(entry(kPages1GiB, 3), kFrozen);
  EXPECT_EQ(entry(2 * kPages1GiB, 1), ~0UL & ~kPresent);
}

TEST_P(TableWalk, ClearsWhatWasReadAndNothingElse) {
  const unsigned long everything = ~0UL & ~kLarge & ~(3UL << 52);
  unsigned long& read = map(64, 1, everything & ~TABLE_ENTRY_ADDRESS);
  unsigned long& large = map(kPages2MiB, 2, accessed_ | dirty_ | 1UL << 60);
  const unsigned long read_before = read;
  const unsigned long large_before = large;
  run();
  unsigned long& later = map(65, 1, accessed_);  // accessed after it was read
  const unsigned long later_before = later;
  clear();
  EXPECT_EQ(read, read_before & ~accessed_);
  EXPECT_EQ(large, large_before & ~accessed_);
  EXPECT_EQ(later, later_before);
  EXPECT_EQ(walk_.leaves[0], 1U) << "leaves are counted when they are read";
  EXPECT_FALSE(walk_.partial);
}

TEST_P(TableWalk, ALargeLeafThatReachesOutOfTheRangeStays) {
  for (const auto& [start, end] :
       {std::pair<__u64, __u64>{kPages2MiB + 64, 3 * kPages2MiB}, std::pair<__u64, __u64>{0, 2 * kPages2MiB - 1}}) {
    look_at(start, end);
    unsigned long& leaf = map(kPages2MiB, 2, accessed_);
    const unsigned long before = leaf;
    run();
    clear();
    EXPECT_EQ(leaf, before);
    EXPECT_TRUE(walk_.partial);
    EXPECT_EQ(walk_.leaves[1], 1U);
    EXPECT_EQ(bits(accessed_map_, start),
              range(std::max(start, kPages2MiB), std::min(end, 2 * kPages2MiB) - std::max(start, kPages2MiB)));
  }
}

// As the module walks: a large leaf is met once in each part of the range, and is one mapping.
TEST_P(TableWalk, InParts) {
  unsigned long& leaf = map(kPages1GiB, 3, accessed_);
  look_at(kPages1GiB, 2 * kPages1GiB);
  const auto in_parts = [&] {
    for (__u64 page = walk_.start; page < walk_.end; page += 4096) {
      table_walk_range(&walk_, reinterpret_cast<__u64>(root_), GetParam().levels, page, page + 4096);
    }
  };
  in_parts();
  EXPECT_EQ(walk_.leaves[2], 1U);
  EXPECT_EQ(bits(accessed_map_).size(), kPages1GiB);
  walk_.clear = true;
  in_parts();
  EXPECT_EQ(leaf & accessed_, 0U);
}

// EPT only: KVM says so in bits 53:52, which NPT ignores.
TEST_P(TableWalk, AccessedBitsOff) {
  unsigned long& off = map(1, 1, accessed_ | 1UL << 52);
  map(2, 1, accessed_ | 2UL << 52);  // write protection instead of a log of dirty pages: accessed bits are on
  const unsigned long before = off;
  run();
  EXPECT_EQ(walk_.tracking_off, GetParam().is_ept);
  EXPECT_EQ(bits(accessed_map_), GetParam().is_ept ? std::set<__u64>{2} : (std::set<__u64>{1, 2}));
  std::ranges::fill(accessed_map_, ~0ULL);
  clear();
  EXPECT_EQ(off, GetParam().is_ept ? before : before & ~accessed_);
  EXPECT_EQ(bits(dirty_map_), GetParam().is_ept ? std::set<__u64>{1} : std::set<__u64>{}) << "not known is dirty";
}

TEST_P(TableWalk, RandomTables) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 10; ++round) {
    tables_.clear();
    root_ = &tables_.emplace_back();
    const __u64 base = random() % 4 * kPages1GiB * (GetParam().levels == 5 ? 1ULL << 19 : 64);
    look_at(base, base + 2 * kPages1GiB);
    std::vector<__u64> accessed(accessed_map_.size()), dirty(dirty_map_.size());
    const auto expect = [](std::vector<__u64>& words, __u64 first, __u64 pages) {
      for (__u64 at = first; at < first + pages; ++at) {
        words[at / 64] |= 1ULL << (at % 64);
      }
    };
    for (__u64 at = 0; at < 2 * kPages1GiB; at += kPages2MiB) {
      const bool large = random() % 4 == 0;
      for (__u64 page = at; page < at + kPages2MiB; page += large ? kPages2MiB : 1 + random() % 200) {
        const bool is_accessed = random() % 2 == 0;
        const bool is_dirty = random() % 2 == 0;
        map(base + page, large ? 2 : 1, (is_accessed ? accessed_ : 0) | (is_dirty ? dirty_ : 0));
        if (is_accessed) {
          expect(accessed, page, large ? kPages2MiB : 1);
        }
        if (is_dirty) {
          expect(dirty, page, large ? kPages2MiB : 1);
        }
      }
    }
    run();
    EXPECT_TRUE(accessed_map_ == accessed) << round;
    EXPECT_TRUE(dirty_map_ == dirty) << round;
    clear();
    std::ranges::fill(accessed_map_, 0);
    run();
    EXPECT_TRUE(bits(accessed_map_).empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, TableWalk,
                         testing::Values(Case{true, 4}, Case{true, 5}, Case{false, 4}, Case{false, 5}),
                         [](const testing::TestParamInfo<Case>& of) {
                           return (of.param.is_ept ? std::string("Ept") : std::string("Npt")) +
                                  std::to_string(of.param.levels) + "Levels";
                         });

}  // namespace
