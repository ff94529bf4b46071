#include "dataplane/pages/page_digest.h"

#include <isa-l/mem_routines.h>

#include <algorithm>
#include <array>

#include "dataplane/pages/xxh3.h"

namespace godwit::pages {

PageHash hash_page(PageBytes page) { return hash_part(page); }

PageHash hash_part(std::span<const std::byte> bytes) {
  const PageHash hash = XXH3_64bits(bytes.data(), bytes.size());
  leave_vector_registers();
  return hash;
}

PageHash zero_page_hash() {
  static const PageHash hash = [] {
    const std::array<std::byte, kPageSize> zero{};
    return hash_page(zero);
  }();
  return hash;
}

bool is_zero_page(PageBytes page) { return is_zero(page); }

bool is_zero(std::span<const std::byte> bytes) {
  if (bytes.empty()) return true;
  // ISA-L's prototype lacks the const; it only reads.
  return isal_zero_detect(const_cast<std::byte*>(bytes.data()), bytes.size()) == 0;
}

PageDigest& PageDigest::operator+=(const PageDigest& other) {
  const std::uint64_t sum = low + other.low;
  high += other.high + (sum < low ? 1 : 0);
  low = sum;
  return *this;
}

PageDigest& PageDigest::operator-=(const PageDigest& other) {
  high -= other.high + (low < other.low ? 1 : 0);
  low -= other.low;
  return *this;
}

PageDigest digest_term(PageNumber page, PageHash hash) {
  const std::array<std::uint64_t, 2> key{page, hash};
  const XXH128_hash_t term = XXH3_128bits(key.data(), sizeof key);
  return {term.low64, term.high64};
}

PageHash PageHashes::get(PageNumber page) const {
  GW_ASSERT(known(page));
  return hashes_[page];
}

void PageHashes::set(PageNumber page, PageHash hash) {
  forget(page);
  known_.set(page);
  hashes_[page] = hash;
  ++known_count_;
  digest_ += digest_term(page, hash);
}

void PageHashes::set_zero(PageNumber first, std::uint64_t count) {
  GW_ASSERT(first <= size() && count <= size() - first);
  for (PageNumber page = first; page < first + count; ++page) set(page, zero_page_hash());
}

void PageHashes::forget(PageNumber page) {
  if (!known_.test(page)) return;
  digest_ -= digest_term(page, hashes_[page]);
  known_.clear(page);
  --known_count_;
}

void PageHashes::forget(const Bitmap& pages) {
  Bitmap gone = known_;
  gone &= pages;
  gone.for_each_run([this](PageNumber first, std::uint64_t count) {
    for (PageNumber page = first; page < first + count; ++page) forget(page);
  });
}

void PageHashes::forget_all() {
  known_.clear_all();
  known_count_ = 0;
  digest_ = {};
}

PageDigest PageHashes::chunk_digest(std::uint64_t chunk) const {
  GW_ASSERT(chunk < chunk_count());
  const PageNumber end = std::min(size(), (chunk + 1) * kDigestChunkPages);
  PageDigest sum;
  for (PageNumber page = known_.next_set(chunk * kDigestChunkPages); page < end; page = known_.next_set(page + 1)) {
    sum += digest_term(page, hashes_[page]);
  }
  return sum;
}

std::vector<PageDigest> PageHashes::chunk_digests() const {
  std::vector<PageDigest> digests(chunk_count());
  for (std::uint64_t chunk = 0; chunk < digests.size(); ++chunk) digests[chunk] = chunk_digest(chunk);
  return digests;
}

Bitmap PageHashes::mismatching_chunks(std::span<const PageDigest> peer) const {
  Bitmap mismatching(std::max<std::uint64_t>(chunk_count(), peer.size()));
  for (std::uint64_t chunk = 0; chunk < mismatching.size(); ++chunk) {
    const bool both = chunk < chunk_count() && chunk < peer.size();
    if (!both || chunk_digest(chunk) != peer[chunk]) mismatching.set(chunk);
  }
  return mismatching;
}

void PageHashes::find_mismatches(const PageHashes& peer, Bitmap& out) const {
  GW_ASSERT(peer.size() == size() && out.size() == size());
  for (PageNumber page = 0; page < size(); ++page) {
    const bool known_here = known(page);
    if (known_here != peer.known(page) || (known_here && hashes_[page] != peer.hashes_[page])) out.set(page);
  }
}

}  // namespace godwit::pages
