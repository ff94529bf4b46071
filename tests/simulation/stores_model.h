#pragma once
// What the simulation of transfers puts in place of a split guest's page stores: pages that are not in the source's
// memory, come back when the guest touches them, and are told of to the destination, which fetches them when its guest
// touches them. In some runs pages still leave when the migration begins. It outlives both ends. Single thread.

#include <map>
#include <set>

#include "dataplane/transfer/kept_stores.h"
#include "tests/simulation/faults.h"
#include "tests/simulation/transfer_model.h"

namespace godwit::simulation {

class StoresModel final : public transfer::KeptStores, public transfer::TakenStores {
 public:
  /// Takes some pages out of the source's memory.
  StoresModel(ModelMemory& source, ModelMemory& destination, Random& random, Verdict& verdict);
  ~StoresModel() override;
  /// From now on pages leave; before the migration begins.
  void begin_shrinking();

  // ---- the source's guest ----
  /// The guest touches this page next: it is there afterwards.
  void touch_at_source(pages::PageNumber page);
  /// Somebody has finished placing, or takes pages out.
  void settle_in();
  [[nodiscard]] const pages::Bitmap& away() const { return away_; }
  /// Of the page, wherever it is.
  [[nodiscard]] const PageContent& last_content(pages::PageNumber page) const;
  /// The source goes on alone: all comes back.
  void all_back_at_source();

  // ---- KeptStores ----
  [[nodiscard]] bool at_rest() const override;
  std::expected<pages::Bitmap, transfer::GuestError> set_apart() override;
  void come_to_rest() override;
  std::expected<Stored, transfer::GuestError> list(const pages::Bitmap& written) override;
  std::expected<void, transfer::GuestError> keep_stored(pages::Bitmap& stored, const pages::Bitmap& written) override;

  [[nodiscard]] std::uint64_t budget_pages() const override { return 100; }
  [[nodiscard]] std::uint64_t budget_there_pages() const override { return 100 + room_there_; }
  [[nodiscard]] bool short_of_room() const override { return came_back_ > room_; }
  void fetch(pages::PageNumber page) override { fetching_.insert(page); }
  [[nodiscard]] bool is_here(pages::PageNumber page) override;

  // ---- TakenStores ----
  [[nodiscard]] bool serve() const override { return served_; }
  void serve_from_now_on() { served_ = true; }
  void note(std::span<const wire::StoredPage> pages) override;
  std::expected<void, transfer::GuestError> settle(const pages::Bitmap& missing, const pages::Bitmap& stored,
                                                   std::uint64_t version_next) override;
  /// At the destination: in no migration's hands.
  [[nodiscard]] const PageContent& copy_of(pages::PageNumber page) const { return copies_.at(page).content; }
  [[nodiscard]] bool is_stored(pages::PageNumber page) const { return stored_.size() != 0 && stored_.test(page); }
  /// Puts it into the destination's memory.
  void give(pages::PageNumber page);
  /// The guest has given it back.
  void forget(pages::PageNumber page) { stored_.clear(page); }

 private:
  struct Copy {
    std::uint64_t version = 0;
    PageContent content{};
  };
  void take_out(pages::PageNumber page);

  ModelMemory& source_;
  ModelMemory& destination_;
  Random& random_;
  Verdict& verdict_;
  std::map<pages::PageNumber, Copy> copies_;
  pages::Bitmap away_;       // from the source's memory
  pages::Bitmap lingering_;  // in place there, and still called missing
  pages::Bitmap may_leave_;  // before all is at rest
  std::uint64_t version_top_ = 0;
  mutable bool at_rest_ = true;
  bool rest_wanted_ = false;
  std::map<pages::PageNumber, wire::StoredPage> told_;
  std::set<pages::PageNumber> fetching_;  // by the source
  std::uint64_t came_back_ = 0;           // to the source
  std::uint64_t room_ = UINT64_MAX;       // for those
  std::uint64_t room_there_ = 0;          // at the destination, more than at the source
  pages::Bitmap stored_;                  // of the destination's guest
  bool served_ = false;
};

}  // namespace godwit::simulation
