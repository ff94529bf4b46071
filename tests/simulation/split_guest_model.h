#pragma once
// The guest of a split VM on its main host, as a model: what memory/demand_pager.h, evictor.h and leaving_pages.h
// promise, no more. Content is known by what the guest wrote last. Evicting takes two steps, with all else in between.
// Owner: one simulation. A broken rule goes to the verdict.

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "dataplane/split/main_host.h"
#include "simulation/network.h"
#include "tests/simulation/faults.h"

namespace godwit::simulation {

class SplitGuestModel final : public split::MainMemory {
 public:
  SplitGuestModel(std::uint64_t page_count, std::uint64_t budget_pages, std::uint64_t slots, Verdict& verdict)
      : verdict_(verdict), budget_pages_(budget_pages), slots_(slots), pages_(page_count), missing_(page_count) {}

  // ---- the guest ----
  /// True: the page is missing, and nobody was told yet that it is wanted.
  bool touch(pages::PageNumber page, Random& random);
  /// QEMU gives it back.
  void remove(pages::PageNumber page);
  /// Its last content.
  [[nodiscard]] std::vector<std::byte> truth(pages::PageNumber page) const { return content_of(pages_[page].written); }
  [[nodiscard]] bool is_zero(pages::PageNumber page) const { return pages_[page].written == 0; }
  [[nodiscard]] bool is_lost(pages::PageNumber page) const { return lost_.contains(page); }
  void lose(pages::PageNumber page) { lost_.insert(page); }
  /// Somebody touched a page that is lost.
  [[nodiscard]] bool waits_for_good() const {
    return std::ranges::any_of(lost_, [this](auto page) { return missing_.test(page) && pages_[page].asked; });
  }

  // ---- the evictor ----
  void begin_eviction(Random& random);
  /// The pages that are on their way out from now on.
  std::vector<pages::PageNumber> finish_eviction();
  /// There is room for all.
  void all_may_come() { budget_pages_ = pages_.size(); }
  void no_room(bool none) { no_room_ = none; }
  [[nodiscard]] std::uint64_t resident_pages() const;
  [[nodiscard]] std::uint64_t page_count() const { return pages_.size(); }
  [[nodiscard]] const pages::Bitmap& missing() const { return missing_; }

  // ---- a new process ----
  void restart();
  std::vector<pages::PageNumber> take_asked_again();

  bool is_missing(pages::PageNumber page) const override { return missing_.test(page); }
  bool wants(pages::PageNumber page) const override { return missing_.test(page) && !pages_[page].claimed; }
  std::uint64_t missing_count() const override { return missing_.count(); }
  std::expected<Placed, std::string> place(pages::PageNumber page, pages::PageBytes bytes) override;
  std::optional<split::Version> find_leaving(pages::PageNumber page, pages::MutablePageBytes out) const override;
  void forget_leaving(pages::PageNumber page, split::Version version) override;
  std::vector<split::Entry> all_leaving() const override;
  split::Version draw_version() override { return version_next_++; }

  std::uint64_t placed = 0, leaving_max = 0;

 private:
  struct Page {
    std::uint64_t written = 0;  // stands for the content; 0: zeros
    bool resident = false;
    bool claimed = false;
    bool asked = false;
  };
  struct Leaving {
    split::Version version = 0;
    std::uint64_t written = 0;
  };
  static std::vector<std::byte> content_of(std::uint64_t written);

  Verdict& verdict_;
  std::uint64_t budget_pages_;
  const std::uint64_t slots_;
  std::vector<Page> pages_;
  pages::Bitmap missing_;
  std::map<pages::PageNumber, Leaving> leaving_;
  std::vector<pages::PageNumber> batch_;
  std::set<pages::PageNumber> lost_;
  split::Version version_next_ = 1;
  std::uint64_t writes_ = 0;
  bool no_room_ = false;
};

}  // namespace godwit::simulation
