#pragma once
// Sets of pages that one end tells the other: cut into messages, put together again, decoded. Pure, but that encoding
// and decoding take long for large guests: in jobs. One thread at a time.

#include <expected>
#include <string>
#include <vector>

#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

/// Appends the messages of one set; an empty one has a message too. `link_bps`: as pages::CodecOptions has it.
void encode_page_set(const pages::Bitmap& pages, std::uint32_t round, wire::PageSet kind, std::uint64_t link_bps,
                     std::vector<std::vector<std::byte>>& messages);

/// One set's pieces as they arrive. Bounded: a bitmap of the guest and some heads.
class PageSetPieces {
 public:
  explicit PageSetPieces(std::uint64_t page_count) : page_count_(page_count) {}
  /// Empty, or what is wrong with it. Pieces of a round and a kind come together.
  std::string add(const wire::PageSetPiece& piece);
  /// Nothing has come of a set that is not complete.
  [[nodiscard]] bool idle() const { return pieces_.empty(); }
  [[nodiscard]] bool complete() const { return complete_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// The pieces of a complete set; begins anew.
  std::vector<std::vector<std::byte>> take();
  void clear();

 private:
  const std::uint64_t page_count_;
  std::vector<std::vector<std::byte>> pieces_;
  std::uint64_t bytes_ = 0;
  std::uint32_t round_ = 0;
  wire::PageSet kind_{};
  bool complete_ = false;
};

/// The set of `page_count` pages that the pieces are, or what is wrong with them.
[[nodiscard]] std::expected<pages::Bitmap, std::string> decode_page_set(
    const std::vector<std::vector<std::byte>>& pieces, std::uint64_t page_count);

/// What both ends know of contents once the pages of a set are announced: nothing of the missing ones.
void forget_announced(pages::PageHashes& hashes, const pages::Bitmap& missing, const pages::Bitmap& zero);

}  // namespace godwit::transfer
