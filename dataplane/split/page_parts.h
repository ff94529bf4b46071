#pragma once
// Pages that the MTU forces into parts, put together before anybody sees them: a page store and a guest get whole pages
// only. One thread. Bounded: a peer that leaves kPagesMax pages unfinished has broken the protocol.

#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "dataplane/pages/page.h"
#include "dataplane/transfer/page_assembly.h"

namespace godwit::split {

class PageParts {
 public:
  static constexpr std::size_t kPagesMax = 4096;
  /// A part of a page comes twice only while its sender has it in hand; those have far fewer.
  static constexpr std::size_t kDoneMax = 16384;

  enum class Result : std::uint8_t { kWaits, kWhole, kRefused };

  /// `key`: of the page in this content, never of another. kWhole: `whole` is the page, until the next call.
  Result add(std::uint64_t key, std::uint32_t offset, std::span<const std::byte> bytes,
             std::optional<pages::PageBytes>& whole) {
    if (bytes.size() == pages::kPageSize) {
      whole = pages::PageBytes(bytes.data(), pages::kPageSize);
      return Result::kWhole;
    }
    if (done_.contains(key)) {
      return Result::kWaits;
    }
    auto found = pages_.find(key);
    if (found == pages_.end()) {
      if (pages_.size() == kPagesMax) {
        return Result::kRefused;
      }
      found = pages_.emplace(key, std::vector<std::byte>(pages::kPageSize)).first;
    }
    std::memcpy(found->second.data() + offset, bytes.data(), bytes.size());
    switch (assembly_.add(key, offset, static_cast<std::uint32_t>(bytes.size()))) {
      case transfer::PageAssembly::Result::kRefused:
        return Result::kRefused;
      case transfer::PageAssembly::Result::kComplete:
        break;
      default:
        return Result::kWaits;
    }
    last_ = std::move(found->second);
    pages_.erase(found);
    done_.insert(key);
    order_.push_back(key);
    if (order_.size() > kDoneMax) {
      done_.erase(order_.front());
      order_.pop_front();
    }
    whole = pages::PageBytes(last_.data(), pages::kPageSize);
    return Result::kWhole;
  }

 private:
  transfer::PageAssembly assembly_;
  std::unordered_map<std::uint64_t, std::vector<std::byte>> pages_;
  std::unordered_set<std::uint64_t> done_;
  std::deque<std::uint64_t> order_;
  std::vector<std::byte> last_;
};

}  // namespace godwit::split
