#include "dataplane/pages/codec.h"

namespace godwit::pages {

std::string_view to_string(DecodeError error) {
  switch (error) {
    case DecodeError::kTruncated:
      return "truncated";
    case DecodeError::kTrailing:
      return "bytes after its end";
    case DecodeError::kWrongFirst:
      return "does not continue the piece before";
    case DecodeError::kBeyondSize:
      return "beyond the last page";
    case DecodeError::kBadHead:
      return "unknown form or parameter";
    case DecodeError::kBadCount:
      return "counts do not add up";
    case DecodeError::kBadDeflate:
      return "damaged deflate stream";
  }
  return "unknown error";
}

}  // namespace godwit::pages
