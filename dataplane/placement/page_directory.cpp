#include "dataplane/placement/page_directory.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "dataplane/pages/words.h"

namespace godwit::placement {
namespace {

constexpr std::uint8_t kVersion = 1;

std::uint64_t checksum(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

}  // namespace

Holders::Holders(std::span<const SubId> subs) : count_(static_cast<std::uint8_t>(subs.size())) {
  std::ranges::copy(subs, subs_.begin());
}

std::optional<Holders> Holders::of(std::span<const SubId> subs) {
  if (subs.empty() || subs.size() > kCountMax) return std::nullopt;
  for (std::size_t i = 0; i < subs.size(); ++i) {
    if (std::ranges::find(subs.first(i), subs[i]) != subs.begin() + static_cast<std::ptrdiff_t>(i)) return std::nullopt;
  }
  return Holders(subs);
}

bool Holders::contains(SubId sub) const { return std::ranges::find(subs(), sub) != subs().end(); }

PageDirectory::PageDirectory(std::uint64_t page_count) : entries_(page_count, kResidentEntry), resident_(page_count) {}

Place PageDirectory::place(pages::PageNumber page) const {
  GW_ASSERT(page < entries_.size());
  const Entry entry = entries_[page];
  return entry == kResidentEntry ? Place::kResident : entry == kZeroEntry ? Place::kZero : Place::kHeld;
}

const Holders& PageDirectory::holders(pages::PageNumber page) const {
  GW_ASSERT(place(page) == Place::kHeld);
  return list(entries_[page]).holders;
}

std::uint64_t PageDirectory::count(Place place) const {
  if (place == Place::kResident) return resident_;
  return place == Place::kZero ? zero_ : page_count() - resident_ - zero_;
}

std::uint64_t PageDirectory::count_held_by(SubId sub) const {
  std::uint64_t sum = 0;
  for (const auto& [holders, entry] : numbers_) {
    if (holders.contains(sub)) sum += list(entry).pages;
  }
  return sum;
}

std::uint64_t PageDirectory::bytes() const {
  constexpr std::uint64_t kMapNodeBytes = 64;  // of libstdc++: 32 of the tree, key and value
  return entries_.capacity() * sizeof(Entry) + lists_.capacity() * sizeof(List) + free_.capacity() * sizeof(Entry) +
         numbers_.size() * kMapNodeBytes;
}

void PageDirectory::count_pages(Entry entry, std::uint64_t more, std::uint64_t fewer) {
  if (entry == kResidentEntry) {
    resident_ += more - fewer;
  } else if (entry == kZeroEntry) {
    zero_ += more - fewer;
  } else {
    List& list = lists_[entry - kFirstList];
    list.pages += more - fewer;
    if (list.pages == 0) {
      numbers_.erase(list.holders);
      free_.push_back(entry);
    }
  }
}

void PageDirectory::set(pages::PageNumber first, std::uint64_t count, Entry entry) {
  GW_ASSERT(first <= entries_.size() && count <= entries_.size() - first);
  if (count == 0) return;
  count_pages(entry, count, 0);  // first: a list that only these pages name must not become free
  for (std::uint64_t i = 0; i < count; ++i) {
    count_pages(std::exchange(entries_[first + i], entry), 0, 1);
  }
}

bool PageDirectory::set_held(pages::PageNumber first, std::uint64_t count, const Holders& holders) {
  if (count == 0) return true;
  auto known = numbers_.find(holders);
  if (known == numbers_.end()) {
    if (free_.empty() && lists_.size() == kListsMax) return false;
    if (free_.empty()) {
      lists_.push_back({holders});
      free_.push_back(static_cast<Entry>(kFirstList + lists_.size() - 1));
    }
    known = numbers_.emplace(holders, free_.back()).first;
    free_.pop_back();
    lists_[known->second - kFirstList].holders = holders;
  }
  set(first, count, known->second);
  return true;
}

pages::Bitmap PageDirectory::held_only_by(SubId sub) const {
  pages::Bitmap gone(page_count());
  for_each_run(0, page_count(), [&](pages::PageNumber first, std::uint64_t count, Place, const Holders* holders) {
    if (holders != nullptr && *holders == Holders::of(sub)) gone.set_range(first, count);
  });
  return gone;
}

std::vector<std::byte> PageDirectory::encode() const {
  std::vector<std::byte> out;
  pages::put_byte(out, kVersion);
  pages::put_varint(out, page_count());
  pages::put_varint(out, numbers_.size());
  std::map<Entry, std::uint64_t> placements{{kResidentEntry, kResidentEntry}, {kZeroEntry, kZeroEntry}};
  for (const auto& [holders, entry] : numbers_) {
    placements.emplace(entry, placements.size());
    pages::put_varint(out, holders.subs().size());
    for (const SubId sub : holders.subs()) pages::put_varint(out, sub);
  }
  for_each_run(0, page_count(), [&](pages::PageNumber first, std::uint64_t count, Place, const Holders*) {
    pages::put_varint(out, count);
    pages::put_varint(out, placements.at(entries_[first]));
  });
  const std::uint64_t sum = checksum(out);
  pages::put_bytes(out, &sum, sizeof sum);
  return out;
}

std::expected<PageDirectory, pages::DecodeError> PageDirectory::decode(std::span<const std::byte> bytes,
                                                                       std::uint64_t page_count) {
  using pages::DecodeError;
  std::uint64_t sum = 0;
  if (bytes.size() < sizeof sum) return std::unexpected(DecodeError::kTruncated);
  std::memcpy(&sum, &bytes[bytes.size() - sizeof sum], sizeof sum);
  bytes = bytes.first(bytes.size() - sizeof sum);
  pages::ByteReader in(bytes);
  if (sum != checksum(bytes) || in.byte() != kVersion) return std::unexpected(DecodeError::kBadHead);
  const auto pages_told = in.varint();
  const auto list_count = in.varint();
  if (!pages_told || !list_count) return std::unexpected(DecodeError::kTruncated);
  if (*pages_told != page_count || *list_count > kListsMax) return std::unexpected(DecodeError::kBadCount);
  std::vector<Holders> lists;
  for (std::uint64_t i = 0; i < *list_count; ++i) {
    std::array<SubId, Holders::kCountMax> subs;
    const auto count = in.varint();
    if (!count || *count > subs.size()) return std::unexpected(DecodeError::kBadCount);
    for (std::size_t k = 0; k < *count; ++k) {
      const auto sub = in.varint();
      if (!sub || *sub > UINT16_MAX) return std::unexpected(DecodeError::kBadHead);
      subs[k] = static_cast<SubId>(*sub);
    }
    const auto holders = Holders::of(std::span(subs).first(*count));
    if (!holders) return std::unexpected(DecodeError::kBadHead);
    lists.push_back(*holders);
  }
  PageDirectory directory(page_count);
  pages::PageNumber first = 0;
  while (first < page_count) {
    const auto count = in.varint();
    const auto placement = in.varint();
    if (!count || !placement) return std::unexpected(DecodeError::kTruncated);
    if (*count == 0 || *placement >= kFirstList + lists.size()) return std::unexpected(DecodeError::kBadCount);
    if (*count > page_count - first) return std::unexpected(DecodeError::kBeyondSize);
    if (*placement == kZeroEntry) directory.set_zero(first, *count);
    // At most kListsMax lists were told of, so there is room for each.
    if (*placement >= kFirstList) GW_ASSERT(directory.set_held(first, *count, lists[*placement - kFirstList]));
    first += *count;
  }
  if (!in.left().empty()) return std::unexpected(DecodeError::kTrailing);
  return directory;
}

bool PageDirectory::operator==(const PageDirectory& other) const {
  if (page_count() != other.page_count()) return false;
  for (pages::PageNumber page = 0; page < page_count(); ++page) {
    if (place(page) != other.place(page)) return false;
    if (place(page) == Place::kHeld && holders(page) != other.holders(page)) return false;
  }
  return true;
}

}  // namespace godwit::placement
