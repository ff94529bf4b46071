#pragma once
// Hashes of pages, and digests of sets of pages that two hosts compare before the guest resumes.
//
// A digest is the sum modulo 2^128 of one XXH3_128 a page, over (page number, page hash): order does not matter, and
// replacing one page is O(1), so both ends keep it up to date while pages cross. It finds mistakes (lost, stale,
// misplaced pages), not forgery: who may send at all is settled by the seal of the transport. Pure; owned by one thread
// at a time.

#include <cstdint>
#include <span>
#include <vector>

#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/page.h"

namespace godwit::pages {

using PageHash = std::uint64_t;

/// XXH3 of the content.
[[nodiscard]] PageHash hash_page(PageBytes page);
/// The same of a page or a part of one.
[[nodiscard]] PageHash hash_part(std::span<const std::byte> bytes);
/// hash_page() of 4096 zero bytes.
[[nodiscard]] PageHash zero_page_hash();
[[nodiscard]] bool is_zero_page(PageBytes page);
/// Any length, e.g. a fragment or a 2 MiB page.
[[nodiscard]] bool is_zero(std::span<const std::byte> bytes);

/// An element of the integers modulo 2^128.
struct PageDigest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  PageDigest& operator+=(const PageDigest& other);
  PageDigest& operator-=(const PageDigest& other);
  bool operator==(const PageDigest&) const = default;
};

/// What one page adds to a digest.
[[nodiscard]] PageDigest digest_term(PageNumber page, PageHash hash);

/// Pages of one chunk digest, the unit in which two hosts that disagree look for where.
inline constexpr std::uint64_t kDigestChunkPages = 4096;

/// A hash a page where known, and the digest of the known ones. 8 bytes a page.
class PageHashes {
 public:
  PageHashes() = default;
  explicit PageHashes(std::uint64_t page_count) : known_(page_count), hashes_(page_count) {}

  [[nodiscard]] std::uint64_t size() const { return known_.size(); }
  [[nodiscard]] bool known(PageNumber page) const { return known_.test(page); }
  /// Of a known page.
  [[nodiscard]] PageHash get(PageNumber page) const;
  void set(PageNumber page, PageHash hash);
  void set_zero(PageNumber first, std::uint64_t count);
  /// The page's content is no longer known: it leaves the digest.
  void forget(PageNumber page);
  /// Of one size with this. Costs what is known of them, however many there are.
  void forget(const Bitmap& pages);
  void forget_all();

  [[nodiscard]] const Bitmap& known_pages() const { return known_; }
  [[nodiscard]] std::uint64_t known_count() const { return known_count_; }
  /// Of all known pages; two sides agree if digest and known_count() do.
  [[nodiscard]] const PageDigest& digest() const { return digest_; }

  [[nodiscard]] std::uint64_t chunk_count() const { return (size() + kDigestChunkPages - 1) / kDigestChunkPages; }
  /// Digest of the known pages of one chunk.
  [[nodiscard]] PageDigest chunk_digest(std::uint64_t chunk) const;
  [[nodiscard]] std::vector<PageDigest> chunk_digests() const;
  /// Chunks (a bit each) whose digest differs from the peer's; a chunk that only one side has differs.
  [[nodiscard]] Bitmap mismatching_chunks(std::span<const PageDigest> peer) const;
  /// Adds to `out` every page that is known to one side only or has another hash; both of one size.
  void find_mismatches(const PageHashes& peer, Bitmap& out) const;

 private:
  Bitmap known_;
  std::vector<PageHash> hashes_;
  std::uint64_t known_count_ = 0;
  PageDigest digest_;
};

}  // namespace godwit::pages
