#include "dataplane/transfer/page_assembly.h"

#include <algorithm>

#include "base/check.h"

namespace godwit::transfer {

PageAssembly::Result PageAssembly::add(pages::PageNumber page, std::uint32_t offset, std::uint32_t length) {
  GW_ASSERT(length != 0 && offset < pages::kPageSize && length <= pages::kPageSize - offset);
  auto found = partial_.find(page);
  if (found == partial_.end()) {
    if (partial_.size() >= kPagesMax) {
      return Result::kRefused;
    }
    found = partial_.try_emplace(page).first;
  }
  Pieces& pieces = found->second;
  Piece merged{offset, offset + length};
  for (std::size_t i = 0; i < pieces.count;) {
    const Piece piece = pieces.at[i];
    if (piece.begin <= merged.begin && merged.end <= piece.end) {
      return Result::kNothingNew;
    }
    if (piece.begin <= merged.end && merged.begin <= piece.end) {
      merged = {std::min(piece.begin, merged.begin), std::max(piece.end, merged.end)};
      pieces.at[i] = pieces.at[--pieces.count];
      i = 0;
    } else {
      ++i;
    }
  }
  if (merged.begin == 0 && merged.end == pages::kPageSize) {
    partial_.erase(found);
    return Result::kComplete;
  }
  if (pieces.count == kPiecesMax) {
    return Result::kRefused;
  }
  pieces.at[pieces.count++] = merged;
  return Result::kPartial;
}

}  // namespace godwit::transfer
