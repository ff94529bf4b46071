#pragma once
// When the pages of a guest were accessed, as far as periodic scans tell, and what follows from it: how hot each is.
//
// The last kScans bitmaps are kept, turned: a byte a page, the last scan in its highest bit. Read as a number that byte
// is a count of the accesses that decays by half with each scan, the "aging" of page replacement (A. Tanenbaum, Modern
// Operating Systems, 3.4.7; as an estimate of a VM's working set over accessed bits: C. Waldspurger, OSDI 2002; the
// same byte of ages is what kstaled keeps: A. Lagar-Cavilla and others, ASPLOS 2019).
//
// 9 bits a page: 288 KiB for each GiB of guest. Owned by one thread at a time, no locks. Units: pages, heat 0 (not
// accessed in the last kScans scans) to 255 (in all of them). No failure: ranges are the caller's to check.

#include <cstdint>
#include <span>
#include <vector>

#include "dataplane/pages/bitmap.h"

namespace godwit::pages {

class AccessHistory {
 public:
  static constexpr unsigned kScans = 8;

  AccessHistory() = default;
  explicit AccessHistory(std::uint64_t page_count) : heat_(page_count), accessed_(page_count) {}

  [[nodiscard]] std::uint64_t page_count() const { return heat_.size(); }
  /// Pages found accessed by the scan that is under way. What is noted twice counts once.
  void note(PageNumber page) { accessed_.set(page); }
  void note(const Bitmap& accessed) { accessed_ |= accessed; }
  /// `accessed`: bit i of word j is page first + 64 j + i; `first` a multiple of 64, and no bit beyond the last page.
  void note(PageNumber first, std::span<const std::uint64_t> accessed);
  /// The scan is over: all pages have grown older by one. How many were accessed.
  std::uint64_t end_scan();

  /// How many scans there were; none: nothing is known, and all pages are as cold.
  [[nodiscard]] std::uint64_t scans() const { return scans_; }
  /// By the scan that is under way.
  [[nodiscard]] const Bitmap& noted() const { return accessed_; }
  [[nodiscard]] std::uint8_t heat(PageNumber page) const { return heat_[page]; }
  /// Whether it was, so many scans ago; 0: by the last. Less than kScans.
  [[nodiscard]] bool accessed(PageNumber page, unsigned scans_ago) const {
    return (heat_[page] << scans_ago & kLastScan) != 0;
  }
  [[nodiscard]] std::span<const std::uint8_t> heat() const { return heat_; }

 private:
  static constexpr std::uint8_t kLastScan = 0x80;

  std::vector<std::uint8_t> heat_;
  Bitmap accessed_;  // by the scan under way
  std::uint64_t scans_ = 0;
};

/// The mean heat of so many equal parts of all pages, or of each page if there are fewer; rounded up, so that a part is
/// 0 only if nothing in it was accessed. `cells` > 0.
[[nodiscard]] std::vector<std::uint8_t> heat_cells(const AccessHistory& history, std::uint64_t cells);

}  // namespace godwit::pages
