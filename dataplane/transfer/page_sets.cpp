#include "dataplane/transfer/page_sets.h"

#include <utility>

#include "dataplane/pages/bitmap_codec.h"

namespace godwit::transfer {
namespace {
/// The codec's worst case is raw, and heads.
constexpr std::uint64_t set_bytes_max(std::uint64_t page_count) { return page_count / 4 + (1 << 20); }
}  // namespace

void encode_page_set(const pages::Bitmap& pages, std::uint32_t round, wire::PageSet kind, std::uint64_t link_bps,
                     std::vector<std::vector<std::byte>>& messages) {
  std::vector<std::byte> piece;
  pages::PageNumber at = 0;
  do {
    at = pages::encode_bitmap_piece(pages, at, {.link_bps = link_bps}, piece);
    messages.push_back(wire::encode_message(
        wire::PageSetPiece{.round = round, .kind = kind, .last = at == pages.size(), .bytes = piece}));
  } while (at < pages.size());
}

std::string PageSetPieces::add(const wire::PageSetPiece& piece) {
  if (complete_ || (!pieces_.empty() && (piece.round != round_ || piece.kind != kind_))) {
    return "a piece of another set before the end of one";
  }
  bytes_ += piece.bytes.size();
  if (bytes_ > set_bytes_max(page_count_)) {
    return "a set longer than any can be";
  }
  round_ = piece.round;
  kind_ = piece.kind;
  pieces_.emplace_back(piece.bytes.begin(), piece.bytes.end());
  complete_ = piece.last;
  return {};
}

std::vector<std::vector<std::byte>> PageSetPieces::take() {
  auto pieces = std::exchange(pieces_, {});
  clear();
  return pieces;
}

void PageSetPieces::clear() {
  pieces_.clear();
  bytes_ = 0;
  complete_ = false;
}

std::expected<pages::Bitmap, std::string> decode_page_set(const std::vector<std::vector<std::byte>>& pieces,
                                                          std::uint64_t page_count) {
  pages::Bitmap set(page_count);
  pages::PageNumber at = 0;
  for (const auto& piece : pieces) {
    const auto next = pages::decode_bitmap_piece(piece, at, set);
    if (!next) {
      return std::unexpected("a set of pages, from page " + std::to_string(at) + ": " +
                             std::string(pages::to_string(next.error())));
    }
    at = *next;
  }
  if (at != page_count) {
    return std::unexpected("a set of pages ends at page " + std::to_string(at) + " of " + std::to_string(page_count));
  }
  return set;
}

void forget_announced(pages::PageHashes& hashes, const pages::Bitmap& missing, const pages::Bitmap& zero) {
  hashes.forget(missing);
  zero.for_each_run([&](pages::PageNumber first, std::uint64_t count) { hashes.set_zero(first, count); });
}

}  // namespace godwit::transfer
