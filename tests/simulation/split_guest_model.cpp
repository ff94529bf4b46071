#include "tests/simulation/split_guest_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace godwit::simulation {

std::vector<std::byte> SplitGuestModel::content_of(std::uint64_t written) {
  std::vector<std::byte> bytes(pages::kPageSize);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof written) {
    const std::uint64_t word = written == 0 ? 0 : written * 0x9e3779b97f4a7c15ULL + at;
    std::memcpy(&bytes[at], &word, sizeof word);
  }
  return bytes;
}

bool SplitGuestModel::touch(pages::PageNumber page, Random& random) {
  Page& its = pages_[page];
  if (missing_.test(page)) {
    return !std::exchange(its.asked, true);
  }
  if (its.claimed) {
    return false;  // it waits until the evictor is done
  }
  if (!its.resident) {
    if (no_room_ || resident_pages() >= budget_pages_) {
      return false;
    }
    its.resident = true;
  }
  switch (random.below(4)) {
    case 0:
      its.written = random.below(8) == 0 ? 0 : ++writes_;
      break;
    case 1:
      its.written = 1'000'000 + page;  // the same again and again
      break;
    default:
      break;  // reads
  }
  return false;
}

void SplitGuestModel::remove(pages::PageNumber page) {
  Page& its = pages_[page];
  if (its.claimed) {
    return;  // removals wait
  }
  missing_.clear(page);
  its = {};
}

std::uint64_t SplitGuestModel::resident_pages() const {
  return static_cast<std::uint64_t>(std::ranges::count_if(pages_, [](const Page& page) { return page.resident; }));
}

void SplitGuestModel::begin_eviction(Random& random) {
  if (!batch_.empty()) {
    return;
  }
  for (std::uint64_t i = random.between(1, 16); i > 0 && leaving_.size() + batch_.size() < slots_; --i) {
    const pages::PageNumber page = random.below(pages_.size());
    if (pages_[page].resident && !missing_.test(page) && !pages_[page].claimed) {
      pages_[page].claimed = true;
      pages_[page].resident = false;
      pages_[page].asked = false;
      missing_.set(page);
      batch_.push_back(page);
    }
  }
}

std::vector<pages::PageNumber> SplitGuestModel::finish_eviction() {
  std::vector<pages::PageNumber> out;
  for (const pages::PageNumber page : std::exchange(batch_, {})) {
    if (pages_[page].written == 0) {
      missing_.clear(page);
    } else {
      leaving_[page] = {.version = version_next_, .written = pages_[page].written};
      out.push_back(page);
    }
    ++version_next_;
    pages_[page].claimed = false;
  }
  leaving_max = std::max(leaving_max, std::uint64_t{leaving_.size()});
  return out;
}

void SplitGuestModel::restart() {
  static_cast<void>(finish_eviction());  // what the pipe still had
  std::erase_if(leaving_, [this](const auto& leaving) { return !missing_.test(leaving.first); });
}

/// Whoever waits faults again.
std::vector<pages::PageNumber> SplitGuestModel::take_asked_again() {
  std::vector<pages::PageNumber> asked;
  for (pages::PageNumber page = 0; page < pages_.size(); ++page) {
    if (pages_[page].asked && missing_.test(page)) {
      asked.push_back(page);
    }
  }
  return asked;
}

std::expected<split::MainMemory::Placed, std::string> SplitGuestModel::place(pages::PageNumber page,
                                                                             pages::PageBytes bytes) {
  if (!wants(page)) {
    return Placed::kNotWanted;
  }
  if (no_room_ || resident_pages() >= budget_pages_) {
    return Placed::kAgain;
  }
  const std::vector<std::byte> expected = truth(page);
  verdict_.require(std::memcmp(expected.data(), bytes.data(), bytes.size()) == 0, "last-content",
                   "page " + std::to_string(page) + " was placed with what the guest did not write last");
  lost_.erase(page);  // it had come, and waited for room
  missing_.clear(page);
  pages_[page].resident = true;
  pages_[page].asked = false;
  ++placed;
  return Placed::kPlaced;
}

std::optional<split::Version> SplitGuestModel::find_leaving(pages::PageNumber page, pages::MutablePageBytes out) const {
  const auto found = leaving_.find(page);
  if (found == leaving_.end()) {
    return std::nullopt;
  }
  const std::vector<std::byte> bytes = content_of(found->second.written);
  std::ranges::copy(bytes, out.begin());
  return found->second.version;
}

void SplitGuestModel::forget_leaving(pages::PageNumber page, split::Version version) {
  const auto found = leaving_.find(page);
  if (found != leaving_.end() && found->second.version == version) {
    leaving_.erase(found);
  }
}

std::vector<split::Entry> SplitGuestModel::all_leaving() const {
  std::vector<split::Entry> all;
  for (const auto& [page, leaving] : leaving_) {
    all.push_back({.page = page, .version = leaving.version});
  }
  return all;
}

}  // namespace godwit::simulation
