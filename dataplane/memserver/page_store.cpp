#include "dataplane/memserver/page_store.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstring>

#include "base/check.h"
#include "dataplane/pages/deflate.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memserver {

using memory::Error;
using memory::ErrorCode;

namespace {

constexpr std::uint64_t kMagic = 0x45524f5453574721;  // "!GWSTORE"
constexpr std::uint32_t kLayout = 1;
constexpr std::uint64_t kHeadBytes = 64U << 10;
constexpr std::uint64_t kRecordChunkBytes = 16U << 10;
constexpr std::uint64_t kPageChunkBytes = 2U << 20;  // also of hugetlbfs
constexpr std::uint64_t kUnitBytes = pages::kPageSize / 2;
constexpr std::uint64_t kChunkUnits = kPageChunkBytes / kUnitBytes;
constexpr std::uint64_t kRecordsPerPage = 2;
/// Per whole page: two records, 5 bytes of the index each, and a bit each in three maps.
constexpr std::uint64_t kCostBytes = pages::kPageSize + kRecordsPerPage * (24 + 5) + 1;

Error refused(const std::string& path, const std::string& why) { return {ErrorCode::kBadArgument, path + ": " + why}; }

std::uint32_t hash_content(pages::PageBytes content) {
  return static_cast<std::uint32_t>(XXH3_64bits(content.data(), content.size()));
}

}  // namespace

struct PageStore::Head {
  std::uint64_t magic;
  std::uint32_t layout;
  std::uint32_t zero;
  std::uint64_t pages;
  memory::Id boot_id;
  std::uint64_t checksum;

  [[nodiscard]] std::uint64_t computed_checksum() const { return XXH3_64bits(this, offsetof(Head, checksum)); }
};

/// What fits a budget, in whole chunks.
struct PageStore::Layout {
  std::uint64_t pages = 0;
  std::uint64_t records = 0;
  std::uint64_t records_bytes = 0;

  static Layout of(std::uint64_t budget_bytes) {
    constexpr std::uint64_t kFixed = kHeadBytes + kRecordChunkBytes;  // a record chunk may be used in part
    constexpr std::uint64_t kChunkPages = kPageChunkBytes / pages::kPageSize;
    // Units and records are u32, the highest of them a mark.
    constexpr std::uint64_t kPagesMax = (std::uint64_t{1} << 31) - kChunkPages;
    Layout layout;
    layout.pages = budget_bytes < kFixed ? 0 : std::min(kPagesMax, (budget_bytes - kFixed) / kCostBytes);
    layout.pages = layout.pages / kChunkPages * kChunkPages;
    layout.records = layout.pages * kRecordsPerPage;
    layout.records_bytes =
        (kHeadBytes + layout.records * sizeof(Record) + kRecordChunkBytes - 1) / kRecordChunkBytes * kRecordChunkBytes;
    return layout;
  }
};

std::expected<PageStore, Error> PageStore::create(const StoreOptions& options) { return open_files(options, true); }
std::expected<PageStore, Error> PageStore::open(const StoreOptions& options) { return open_files(options, false); }

std::expected<PageStore, Error> PageStore::open_files(const StoreOptions& options, bool fresh) {
  static_assert(sizeof(Record) == 24 && sizeof(Head) <= 64 && 64 + kVmsMax * sizeof(Vm) <= kHeadBytes);
  const Layout layout = Layout::of(options.budget_bytes);
  if (layout.pages == 0) {
    return std::unexpected(
        refused(options.pages_file, "a budget of " + std::to_string(options.budget_bytes) + " bytes holds nothing"));
  }
  auto records = GrowingFile::open(options.records_file, layout.records_bytes, kRecordChunkBytes, fresh);
  if (!records) {
    return std::unexpected(records.error());
  }
  auto pages = GrowingFile::open(options.pages_file, layout.pages * pages::kPageSize, kPageChunkBytes, fresh);
  if (!pages) {
    return std::unexpected(pages.error());
  }
  if (!records->need(0, kHeadBytes)) {
    return std::unexpected(
        Error{ErrorCode::kNoMemory, options.records_file + ": the file system has no room for its head"});
  }
  PageStore store(layout, std::move(*records), std::move(*pages));
  if (fresh) {
    store.head() = {.magic = kMagic,
                    .layout = kLayout,
                    .zero = 0,
                    .pages = layout.pages,
                    .boot_id = options.boot_id,
                    .checksum = 0};
    store.head().checksum = store.head().computed_checksum();
  } else if (auto loaded = store.load(options); !loaded) {
    return std::unexpected(loaded.error());
  }
  return store;
}

PageStore::PageStore(const Layout& layout, GrowingFile records, GrowingFile pages)
    : records_file_(std::move(records)),
      pages_file_(std::move(pages)),
      pages_max_(layout.pages),
      index_(layout.records),
      records_(layout.records),
      units_(layout.pages * 2),
      warm_(layout.records) {}

std::expected<void, Error> PageStore::load(const StoreOptions& options) {
  const Head& told = head();
  if (told.magic != kMagic || told.layout != kLayout || told.checksum != told.computed_checksum()) {
    return std::unexpected(refused(options.records_file, "no records of a page store of this version, or damaged"));
  }
  if (told.pages != pages_max_ || told.boot_id != options.boot_id) {
    return std::unexpected(refused(options.records_file, "of another budget, or of before the host was restarted"));
  }
  for (VmNumber number = 0; number < kVmsMax; ++number) {
    // Killed while it was entered: no page of it is held yet.
    if (vm(number).checksum != XXH3_64bits(&vm(number).id, sizeof(memory::Id))) {
      vm(number) = {};
    }
  }
  for (std::uint64_t chunk = 0; chunk * kRecordChunkBytes < kHeadBytes + records_.size() * sizeof(Record); ++chunk) {
    // A chunk that has no memory reads as zeros, and would get some: holes are left alone.
    const std::uint64_t begin = std::max(kHeadBytes, chunk * kRecordChunkBytes);
    const std::uint64_t end = std::min((chunk + 1) * kRecordChunkBytes, kHeadBytes + records_.size() * sizeof(Record));
    if (begin >= end || !records_file_.has_data(chunk)) {
      continue;
    }
    if (!records_file_.need(begin, end - begin)) {
      return std::unexpected(Error{ErrorCode::kNoMemory, options.records_file + ": no room to read it"});
    }
    // Records of 24 bytes cross from one chunk to the next: each is looked at with the chunk that it ends in.
    for (std::uint64_t i = (begin - kHeadBytes) / sizeof(Record); kHeadBytes + (i + 1) * sizeof(Record) <= end; ++i) {
      if (auto loaded = load_record(static_cast<std::uint32_t>(i)); !loaded) {
        return std::unexpected(refused(options.records_file, loaded.error().text));
      }
    }
  }
  return {};
}

bool PageStore::plausible(const Record& told) const {
  const Kind kind = kind_of(told);
  const bool known = told.vm < kVmsMax && vm(told.vm).id != memory::Id{} && version_of(told) > 0;
  const bool placed = kind == Kind::kZero || (told.unit < units_.size() &&
                                              (kind == Kind::kHalf || (kind == Kind::kWhole && told.unit % 2 == 0)));
  return known && placed && told.stamp == stamp_of(told, version_of(told), kind);
}

std::expected<void, Error> PageStore::load_record(std::uint32_t at) {
  Record& told = record(at);
  if (told.stamp == 0) {
    return {};
  }
  const auto wrong = [&](const char* why) {
    return std::unexpected(Error{ErrorCode::kBadArgument, "record " + std::to_string(at) + why});
  };
  if (!plausible(told)) {
    return wrong(" cannot be");
  }
  const Kind kind = kind_of(told);
  const std::uint32_t units = kind == Kind::kZero ? 0 : kind == Kind::kHalf ? 1 : 2;
  for (std::uint32_t i = 0; i < units; ++i) {
    if (units_.test(told.unit + i)) {
      return wrong(" has the place of another one");
    }
  }
  const std::uint32_t other = find(key_of(told));
  if (other != PageIndex::kNone && version_of(record(other)) >= version_of(told)) {
    std::atomic_ref(told.stamp).store(0);
    return {};
  }
  if (other != PageIndex::kNone) {
    forget(other);
  }
  for (std::uint32_t i = 0; i < units; ++i) {
    units_.set(told.unit + i);
  }
  records_.set(at);
  records_end_ = std::max(records_end_, at + 1);
  index_.insert(hash_of(key_of(told)), at);
  ++held_;
  zero_ += kind == Kind::kZero ? 1 : 0;
  compressed_ += kind == Kind::kHalf ? 1 : 0;
  return {};
}

std::optional<VmNumber> PageStore::find_vm(const memory::Id& id) const {
  for (VmNumber number = 0; number < kVmsMax; ++number) {
    if (vm(number).id == id && id != memory::Id{}) {
      return number;
    }
  }
  return std::nullopt;
}

std::optional<VmNumber> PageStore::add_vm(const memory::Id& id) {
  if (const auto known = find_vm(id); known || id == memory::Id{}) {
    return known;
  }
  for (VmNumber number = 0; number < kVmsMax; ++number) {
    if (vm(number).id == memory::Id{}) {
      vm(number).id = id;
      std::atomic_ref(vm(number).checksum).store(XXH3_64bits(&id, sizeof id));
      return number;
    }
  }
  return std::nullopt;
}

void PageStore::drop_vm(VmNumber number) {
  GW_ASSERT(number < kVmsMax);
  for (std::uint32_t i = 0; i < records_end_; ++i) {
    if (record(i).stamp != 0 && record(i).vm == number) {
      forget(i);
    }
  }
  for (std::uint64_t chunk = 0; chunk * kChunkUnits < units_.size(); ++chunk) {
    if (!units_.any(chunk * kChunkUnits, kChunkUnits)) {
      pages_file_.give_back(chunk);
    }
  }
  vm(number) = {};
}

Put PageStore::put(const PageKey& key, Version version, pages::PageBytes content) {
  if (key.vm >= kVmsMax || vm(key.vm).id == memory::Id{} || version == 0 || version > kVersionMax) {
    return Put::kInvalid;
  }
  const std::uint32_t old = find(key);
  if (old != PageIndex::kNone && version_of(record(old)) >= version) {
    return version_of(record(old)) == version ? Put::kHeld : Put::kOlder;
  }
  const Kind kind = pages::is_zero_page(content) ? Kind::kZero : Kind::kWhole;
  const auto at = take_record();
  const auto place = at ? take_units(kind) : std::nullopt;
  if (!place) {
    return Put::kFull;
  }
  if (kind == Kind::kWhole) {
    std::memcpy(unit(*place), content.data(), content.size());
  }
  const Record fields{.page = key.page,
                      .vm = key.vm,
                      .region = key.region,
                      .unit = *place,
                      .content_hash = hash_content(content),
                      .stamp = 0};
  hold(*at, fields, version, kind, old);
  warm_.set(*at);
  ++changes_;
  return Put::kHeld;
}

std::expected<std::optional<Version>, Error> PageStore::get(const PageKey& key, pages::MutablePageBytes out) {
  const std::uint32_t at = find(key);
  if (at == PageIndex::kNone) {
    return std::nullopt;
  }
  const Record& held = record(at);
  bool right = true;
  switch (kind_of(held)) {
    case Kind::kZero:
      std::ranges::fill(out, std::byte{0});
      break;
    case Kind::kWhole:
      std::memcpy(out.data(), unit(held.unit), out.size());
      break;
    case Kind::kHalf: {
      std::uint16_t length = 0;
      std::memcpy(&length, unit(held.unit), sizeof length);
      right = length <= kUnitBytes - sizeof length &&
              pages::inflate({unit(held.unit) + sizeof length, length}, std::span<std::byte>(out));
      break;
    }
  }
  if (!right || hash_content(out) != held.content_hash) {
    return std::unexpected(Error{ErrorCode::kLost, "page store: the content of page " + std::to_string(key.page) +
                                                       " of region " + std::to_string(key.region) + " is damaged"});
  }
  warm_.set(at);
  return version_of(held);
}

void PageStore::remove(const PageKey& key, Version version) {
  const std::uint32_t at = find(key);
  if (at != PageIndex::kNone && version_of(record(at)) <= version) {
    forget(at);
  }
}

std::uint64_t PageStore::compress_cold(std::uint64_t records) {
  std::uint64_t compressed = 0;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(records, records_end_); ++i) {
    hand_ = hand_ + 1 < records_end_ ? hand_ + 1 : 0;
    if (record(hand_).stamp == 0 || kind_of(record(hand_)) != Kind::kWhole) {
      continue;
    }
    if (warm_.test(hand_)) {
      warm_.clear(hand_);
    } else {
      compressed += compress(hand_) ? 1U : 0U;
    }
  }
  return compressed;
}

bool PageStore::compress(std::uint32_t at) {
  constexpr std::size_t kRoom = kUnitBytes - sizeof(std::uint16_t);
  if (!pages::deflate({unit(record(at).unit), pages::kPageSize}, kRoom, deflated_)) {
    return false;
  }
  const auto fresh = take_record();
  const auto place = fresh ? take_units(Kind::kHalf) : std::nullopt;
  if (!place) {
    return false;
  }
  const auto length = static_cast<std::uint16_t>(deflated_.size());
  std::memcpy(unit(*place), &length, sizeof length);
  std::memcpy(unit(*place) + sizeof length, deflated_.data(), length);
  Record fields = record(at);
  fields.unit = *place;
  hold(*fresh, fields, version_of(record(at)), Kind::kHalf, at);
  return true;
}

StoreStats PageStore::stats() const {
  return {.pages = held_,
          .zero_pages = zero_,
          .compressed_pages = compressed_,
          .pages_max = pages_max_,
          .resident_bytes = records_file_.allocated_bytes() + pages_file_.allocated_bytes(),
          .index_bytes = index_.bytes() + records_.bytes() + units_.bytes() + warm_.bytes()};
}

// ---- records, units, index ----

std::optional<std::uint32_t> PageStore::take_record() {
  const std::uint64_t at = records_.find_free(1);
  if (at == records_.size() || !records_file_.need(kHeadBytes + at * sizeof(Record), sizeof(Record))) {
    return std::nullopt;
  }
  return static_cast<std::uint32_t>(at);
}

std::optional<std::uint32_t> PageStore::take_units(Kind kind) {
  if (kind == Kind::kZero) {
    return 0;
  }
  const unsigned width = kind == Kind::kWhole ? 2 : 1;
  const std::uint64_t first = units_.find_free(width);
  if (first == units_.size() || !pages_file_.need(first * kUnitBytes, width * kUnitBytes)) {
    return std::nullopt;
  }
  return static_cast<std::uint32_t>(first);
}

void PageStore::hold(std::uint32_t at, Record fields, Version version, Kind kind, std::uint32_t old) {
  Record& fresh = record(at);
  fields.stamp = 0;
  std::memcpy(&fresh, &fields, sizeof fields);
  std::atomic_ref(fresh.stamp).store(stamp_of(fields, version, kind));  // after all before it
  records_.set(at);
  records_end_ = std::max(records_end_, at + 1);
  for (std::uint32_t i = 0; kind != Kind::kZero && i < (kind == Kind::kWhole ? 2U : 1U); ++i) {
    units_.set(fields.unit + i);
  }
  ++held_;
  zero_ += kind == Kind::kZero ? 1 : 0;
  compressed_ += kind == Kind::kHalf ? 1 : 0;
  if (old != PageIndex::kNone) {
    forget(old);
  }
  index_.insert(hash_of(key_of(fields)), at);
}

void PageStore::forget(std::uint32_t at) {
  Record& gone = record(at);
  const Kind kind = kind_of(gone);
  index_.erase(hash_of(key_of(gone)), at, [this](std::uint32_t other) { return hash_of(key_of(record(other))); });
  std::atomic_ref(gone.stamp).store(0);
  records_.clear(at);
  warm_.clear(at);
  for (std::uint32_t i = 0; kind != Kind::kZero && i < (kind == Kind::kWhole ? 2U : 1U); ++i) {
    units_.clear(gone.unit + i);
  }
  --held_;
  zero_ -= kind == Kind::kZero ? 1 : 0;
  compressed_ -= kind == Kind::kHalf ? 1 : 0;
}

std::uint64_t PageStore::stamp_of(const Record& told, Version version, Kind kind) {
  const std::uint64_t stamp = version << 16 | static_cast<std::uint64_t>(kind) << 14;
  return stamp | (XXH3_64bits_withSeed(&told, offsetof(Record, stamp), stamp) & 0x3fff);
}

std::uint64_t PageStore::hash_of(const PageKey& key) {
  // Keys come from other hosts, and may be chosen: what they cost then is theirs to pay, one VM's pages at most.
  const std::uint64_t word = std::uint64_t{key.vm} << 48 | std::uint64_t{key.region} << 32 | key.page;
  return XXH3_64bits(&word, sizeof word);
}

std::uint32_t PageStore::find(const PageKey& key) const {
  return index_.find(hash_of(key), [&](std::uint32_t at) { return key_of(record(at)) == key; });
}

PageStore::Head& PageStore::head() const { return *reinterpret_cast<Head*>(records_file_.data()); }

PageStore::Vm& PageStore::vm(VmNumber number) const { return reinterpret_cast<Vm*>(records_file_.data() + 64)[number]; }

PageStore::Record& PageStore::record(std::uint32_t at) const {
  return reinterpret_cast<Record*>(records_file_.data() + kHeadBytes)[at];
}

std::byte* PageStore::unit(std::uint32_t number) const { return pages_file_.data() + number * kUnitBytes; }

void PageStore::FreeMap::clear(std::uint64_t at) {
  words_[at / 64] &= ~(std::uint64_t{1} << at % 64);
  for (std::uint64_t& before : full_before_) {
    before = std::min(before, at / 64);
  }
}

std::uint64_t PageStore::FreeMap::find_free(unsigned width) {
  std::uint64_t& before = full_before_[width - 1];
  for (; before < words_.size(); ++before) {
    std::uint64_t free = ~words_[before];
    if (width == 2) {
      free &= free >> 1 & 0x5555555555555555U;  // both of an aligned pair
    }
    if (free != 0) {
      const std::uint64_t at = before * 64 + static_cast<std::uint64_t>(std::countr_zero(free));
      return std::min(at, size_);
    }
  }
  return size_;
}

bool PageStore::FreeMap::any(std::uint64_t first, std::uint64_t count) const {
  return std::any_of(words_.begin() + static_cast<std::ptrdiff_t>(first / 64),
                     words_.begin() + static_cast<std::ptrdiff_t>((first + count) / 64),
                     [](std::uint64_t word) { return word != 0; });
}

}  // namespace godwit::memserver
