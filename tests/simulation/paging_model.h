#pragma once
// What the simulation of transfers puts in place of a guest that faults: memory with a missing set, as transfer knows
// it (transfer/paging_guest.h), and vCPUs that read and write any page, wait for those that are missing, and know what
// each page must contain. Both outlive the destination's object, as they outlive its process. Single thread.

#include <optional>
#include <string>
#include <vector>

#include "dataplane/transfer/paging_guest.h"
#include "tests/simulation/faults.h"
#include "tests/simulation/stores_model.h"
#include "tests/simulation/transfer_model.h"

namespace godwit::simulation {

class PagingModel final : public transfer::PagingGuest {
 public:
  PagingModel(ModelMemory& memory, Random& random, Verdict& verdict)
      : memory_(memory),
        random_(random),
        verdict_(verdict),
        missing_(memory.page_count()),
        awaited_(memory.page_count()) {}

  /// One in so many pages is not placed for want of memory; 0: all are.
  void refuse_one_in(std::uint32_t n) { refuse_one_in_ = n; }
  /// The guest is split.
  void take(StoresModel& stores) { stores_ = &stores; }
  /// Not here, and no migration's to bring.
  [[nodiscard]] bool stored(pages::PageNumber page) const {
    return stores_ != nullptr && stores_->is_stored(page) && !awaited_.test(page);
  }
  /// All that migrations have to bring is here.
  [[nodiscard]] bool none_to_come() const;
  void fetch_stored();
  /// From the commit on nobody asks the source for what a store has.
  void leave_to_stores();
  [[nodiscard]] bool armed() const { return armed_; }
  [[nodiscard]] const pages::Bitmap& missing_pages() const { return missing_; }

  // ---- the guest ----
  /// False: the page is missing, and the thread waits. `faults`: it has not told yet.
  bool touch(pages::PageNumber page, bool faults);
  void give_back(pages::PageNumber first, std::uint64_t count);

  // ---- PagingGuest ----
  std::expected<void, transfer::GuestError> punch(const pages::Bitmap& missing, const pages::Bitmap& zero) override;
  std::expected<bool, transfer::GuestError> guard() override;
  std::expected<void, transfer::GuestError> arm(const pages::Bitmap& missing) override;
  std::expected<void, transfer::GuestError> disarm() override;
  std::expected<void, transfer::GuestError> read_events(transfer::PagingEvents& out) override;
  std::expected<void, transfer::GuestError> place(std::uint32_t, std::span<transfer::PageWrite> pages) override;
  std::expected<void, transfer::GuestError> place_zero(std::uint32_t, pages::PageNumber first, std::uint64_t count,
                                                       std::vector<transfer::PageRun>& placed) override;
  [[nodiscard]] bool guarded() const { return guarded_; }
  [[nodiscard]] bool missing(pages::PageNumber page) const override { return missing_.test(page) && !stored(page); }

 private:
  [[nodiscard]] bool refused() { return refuse_one_in_ != 0 && random_.below(refuse_one_in_) == 0; }

  ModelMemory& memory_;
  Random& random_;
  Verdict& verdict_;
  pages::Bitmap missing_;
  pages::Bitmap awaited_;  // stored, and asked of the source too, as no store serves us yet
  void store_gives(pages::PageNumber page);
  transfer::PagingEvents events_;
  bool armed_ = false;
  bool guarded_ = false;
  std::uint32_t refuse_one_in_ = 0;
  StoresModel* stores_ = nullptr;
};

/// The threads of a guest that was moved by post-copy, and what its memory is in truth.
class Vcpus {
 public:
  Vcpus(std::size_t count, std::vector<PageContent> truth, ModelMemory& memory, PagingModel& paging, Random& random,
        Verdict& verdict);

  /// Before the guest runs only QEMU reads, loading its devices.
  void run() { running_ = true; }
  /// One thread does one thing, or waits on.
  void step();
  /// Whoever waits faults again: the process that had read the faults is gone.
  void wake_all();
  [[nodiscard]] std::size_t blocked() const;
  void check_all();

 private:
  struct Vcpu {
    std::optional<pages::PageNumber> waits_for;
    pages::PageNumber at = 0;
  };
  [[nodiscard]] pages::PageNumber choose(Vcpu& vcpu);
  void access(pages::PageNumber page);

  std::vector<PageContent> truth_;
  ModelMemory& memory_;
  PagingModel& paging_;
  Random& random_;
  Verdict& verdict_;
  std::vector<Vcpu> vcpus_;
  bool running_ = false;
};

}  // namespace godwit::simulation
