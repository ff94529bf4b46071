#pragma once
// Which bytes have arrived of pages that the MTU forces into fragments. One thread. Bounded: a peer that leaves too
// many pages unfinished, or cuts one into too many separate pieces, is refused.

#include <array>
#include <cstdint>
#include <unordered_map>

#include "dataplane/pages/page.h"

namespace godwit::transfer {

class PageAssembly {
 public:
  enum class Result : std::uint8_t { kPartial, kComplete, kNothingNew, kRefused };
  static constexpr std::size_t kPagesMax = 65536;
  static constexpr std::size_t kPiecesMax = 8;

  /// Bytes [offset, offset + length) of the page, inside it and not empty. Complete pages are forgotten.
  Result add(pages::PageNumber page, std::uint32_t offset, std::uint32_t length);
  void forget(pages::PageNumber page) { partial_.erase(page); }
  [[nodiscard]] bool partial(pages::PageNumber page) const { return !partial_.empty() && partial_.contains(page); }
  [[nodiscard]] std::size_t size() const { return partial_.size(); }

 private:
  struct Piece {
    std::uint32_t begin, end;
  };
  struct Pieces {
    std::array<Piece, kPiecesMax + 1> at;  // apart from each other, in no order; one spare for merging
    std::size_t count = 0;
  };
  std::unordered_map<pages::PageNumber, Pieces> partial_;
};

}  // namespace godwit::transfer
