#pragma once
// The page store of a sub host: pages of other hosts' VMs by VM, region and page, in RAM files that outlive the
// process.
//
// Owns both files (growing_file.h) and an index made from them at open(). Thread: one. Units: bytes unless the name
// says pages. Failure: a full store refuses by value, and the page goes elsewhere or stays where it is; content that is
// damaged is kLost; files that cannot be believed are refused whole.
//
// Overhead per page held: a record of 24 bytes, and of the index at most 10, which is for twice as many records as
// whole pages fit; bits for what is free. That is 0.84 % of 4 KiB, and included in the budget. A page of zeros is a
// record. A cold page may be compressed into half a page (ISA-L deflate).
//
// At any kill: content first, then the record's fields, then its word `stamp`, and only that makes a page held. A newer
// version goes to a place of its own before the record of the older one is cleared; of two the newer counts.
//
//   records file: head (kHeadBytes): magic u64, layout u32, 0 u32, pages u64, boot id 16, XXH3 of all before it u64;
//   from 64 on the VMs (id 16 bytes, XXH3 of it u64), nil where free. Then records: page u32, vm u16, region u16, unit
//   u32, XXH3 of the content u32, stamp u64 (version 48 bits, kind 2, checksum of the record 14; 0: free). pages file:
//   units of 2 KiB; a whole page has two. A compressed one: length u16, deflate.

#include <algorithm>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dataplane/memory/retained_image.h"
#include "dataplane/memserver/growing_file.h"
#include "dataplane/memserver/page_index.h"
#include "dataplane/pages/page.h"

namespace godwit::memserver {

/// A VM as this store numbers it, until it is dropped.
using VmNumber = std::uint16_t;

struct PageKey {
  VmNumber vm = 0;
  std::uint16_t region = 0;
  std::uint32_t page = 0;  // in the region: up to 16 TiB
  bool operator==(const PageKey&) const = default;
};

/// Raised by the main host with each eviction of the VM; from 1.
using Version = std::uint64_t;
inline constexpr Version kVersionMax = (Version{1} << 48) - 1;

enum class Put : std::uint8_t {
  kHeld,     // now, or in this version already
  kOlder,    // a newer version is held, and stays
  kFull,     // nothing has changed
  kInvalid,  // no such VM, or version
};

struct StoreOptions {
  std::string records_file;  // on tmpfs
  std::string pages_file;    // on tmpfs or hugetlbfs
  std::uint64_t budget_bytes = 0;
  memory::Id boot_id{};  // of the host
};

struct StoreStats {
  std::uint64_t pages = 0;  // held, zero and compressed ones among them
  std::uint64_t zero_pages = 0;
  std::uint64_t compressed_pages = 0;
  std::uint64_t pages_max = 0;       // that fit uncompressed
  std::uint64_t resident_bytes = 0;  // both files
  std::uint64_t index_bytes = 0;     // memory of this process
};

class PageStore {
 public:
  static constexpr VmNumber kVmsMax = 1024;

  /// Begins anew, with nothing, in place of any former store.
  static std::expected<PageStore, memory::Error> create(const StoreOptions& options);
  /// Goes on where a former process stopped; kBadArgument: why its files cannot be believed.
  static std::expected<PageStore, memory::Error> open(const StoreOptions& options);

  /// The number of this VM, which it gets if it is new; nothing when kVmsMax are here.
  [[nodiscard]] std::optional<VmNumber> add_vm(const memory::Id& vm);
  [[nodiscard]] std::optional<VmNumber> find_vm(const memory::Id& vm) const;
  /// Forgets all of it and gives memory back. A kill in between leaves the rest; drop it again.
  void drop_vm(VmNumber vm);

  Put put(const PageKey& key, Version version, pages::PageBytes content);
  /// Copies the page and returns its version; nothing if it is not held.
  [[nodiscard]] std::expected<std::optional<Version>, memory::Error> get(const PageKey& key,
                                                                         pages::MutablePageBytes out);
  /// Forgets the page unless a newer version is held. A late put() of what is forgotten is held again: it is the
  /// directory that says what counts.
  void remove(const PageKey& key, Version version);
  /// Looks at this many records, on from where it stopped, and compresses those pages that nobody has put or got since
  /// the last time round, where that saves half a page. Returns how many.
  std::uint64_t compress_cold(std::uint64_t records);

  /// Calls f(key, version, is zero) for each page of the VM, in no order.
  template <class F>
  void for_each(VmNumber vm, F&& f) const {
    std::uint32_t at = 0;
    for_some(vm, at, records_end_, f);
  }
  /// The same bit by bit: of so many records from `at` on, which is moved. False: those were the last. Between the
  /// calls nothing may be put nor compressed.
  template <class F>
  bool for_some(VmNumber vm, std::uint32_t& at, std::uint32_t records, F&& f) const {
    const std::uint32_t end = at + std::min(records, records_end_ - std::min(at, records_end_));
    for (; at < end; ++at) {
      const Record& one = record(at);
      if (one.stamp != 0 && one.vm == vm) f(key_of(one), version_of(one), kind_of(one) == Kind::kZero);
    }
    return at < records_end_;
  }
  [[nodiscard]] StoreStats stats() const;
  /// Places of half a page, all and taken.
  [[nodiscard]] std::uint64_t units() const { return units_.size(); }
  [[nodiscard]] std::uint64_t units_in_use() const { return 2 * (held_ - zero_) - compressed_; }
  [[nodiscard]] std::uint64_t records_end() const { return records_end_; }
  /// How many pages were put so far.
  [[nodiscard]] std::uint64_t changes() const { return changes_; }

 private:
  enum class Kind : std::uint8_t { kWhole = 0, kHalf = 1, kZero = 2 };
  struct Record {
    std::uint32_t page;
    VmNumber vm;
    std::uint16_t region;
    std::uint32_t unit;
    std::uint32_t content_hash;
    std::uint64_t stamp;
  };
  struct Vm {
    memory::Id id;
    std::uint64_t checksum;
  };
  struct Head;
  struct Layout;
  /// A bit each, set while in use; the lowest free one first, so that what is in use stays dense.
  class FreeMap {
   public:
    explicit FreeMap(std::uint64_t size) : words_((size + 63) / 64), size_(size) {}
    [[nodiscard]] bool test(std::uint64_t at) const { return (words_[at / 64] >> at % 64 & 1) != 0; }
    void set(std::uint64_t at) { words_[at / 64] |= std::uint64_t{1} << at % 64; }
    void clear(std::uint64_t at);
    /// The first of `width` (1 or 2, aligned) free ones; size() if there are none. Not set yet.
    [[nodiscard]] std::uint64_t find_free(unsigned width);
    [[nodiscard]] bool any(std::uint64_t first, std::uint64_t count) const;
    [[nodiscard]] std::uint64_t size() const { return size_; }
    [[nodiscard]] std::uint64_t bytes() const { return words_.size() * sizeof(std::uint64_t); }

   private:
    std::vector<std::uint64_t> words_;
    std::uint64_t size_;
    std::uint64_t full_before_[2] = {0, 0};  // words without a free one of width 1, 2
  };

  PageStore(const Layout& layout, GrowingFile records, GrowingFile pages);
  static std::expected<PageStore, memory::Error> open_files(const StoreOptions& options, bool fresh);
  std::expected<void, memory::Error> load(const StoreOptions& options);
  std::expected<void, memory::Error> load_record(std::uint32_t index);
  [[nodiscard]] bool plausible(const Record& record) const;

  [[nodiscard]] Head& head() const;
  [[nodiscard]] Vm& vm(VmNumber number) const;
  [[nodiscard]] Record& record(std::uint32_t index) const;
  [[nodiscard]] std::byte* unit(std::uint32_t number) const;
  static PageKey key_of(const Record& record) { return {record.vm, record.region, record.page}; }
  static Version version_of(const Record& record) { return record.stamp >> 16; }
  static Kind kind_of(const Record& record) { return static_cast<Kind>(record.stamp >> 14 & 3); }
  static std::uint64_t stamp_of(const Record& record, Version version, Kind kind);
  static std::uint64_t hash_of(const PageKey& key);
  [[nodiscard]] std::uint32_t find(const PageKey& key) const;

  std::optional<std::uint32_t> take_record();
  std::optional<std::uint32_t> take_units(Kind kind);
  void give_back_units(std::uint32_t first, Kind kind);
  /// Fills a record that is free and makes it held, in place of `old` if that is one.
  void hold(std::uint32_t index, Record fields, Version version, Kind kind, std::uint32_t old);
  void forget(std::uint32_t index);
  bool compress(std::uint32_t index);

  GrowingFile records_file_;
  GrowingFile pages_file_;
  const std::uint64_t pages_max_;
  PageIndex index_;
  FreeMap records_, units_, warm_;
  std::uint32_t records_end_ = 0;  // beyond the last that was ever in use
  std::uint32_t hand_ = 0;         // of compress_cold()
  std::vector<std::byte> deflated_;
  std::uint64_t held_ = 0, zero_ = 0, compressed_ = 0, changes_ = 0;
};

}  // namespace godwit::memserver
