#pragma once
// What an lcore other than the home lcore does of a migration: it sends or places pages on bulk lanes of its own.
//
// Source and Destination live on the home lcore, alone and without locks. A share is the user of its lcore's lanes and
// speaks with them through rings: works and acknowledgements at the source, placed runs at the destination. Each method
// says on which of the two lcores it is called. The home lcore fetches with Source::pump() or Destination::pump().
//
// Order that everything rests on: a share tells before its lanes acknowledge. flush() comes after each receive burst
// and before poll_transmit(); while it says false nothing may be sent. So when the peer says that a round is over, all
// that was placed of it can be fetched. Owner: whoever drives the lanes; it outlives them, and Source or Destination
// outlives it. Failure: error(), which the home lcore turns into the migration's.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/spsc_ring.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/transfer/page_placer.h"
#include "dataplane/transfer/pull_placer.h"
#include "dataplane/transport/lane.h"

namespace godwit::transfer {

class Share : public transport::LaneUser {
 public:
  // ---- the share's lcore ----
  virtual bool flush() = 0;
  /// True once after something was put where the home lcore should look.
  [[nodiscard]] bool take_told() { return std::exchange(told_, false); }
  // ---- the home lcore ----
  /// Null: none so far.
  [[nodiscard]] const TransferError* error() const {
    return failed_.load(std::memory_order_acquire) ? &error_ : nullptr;
  }

 protected:
  void tell() { told_ = true; }
  void fail(const TransferError& error) {
    if (!failed_.load(std::memory_order_relaxed)) {
      error_ = error;
      failed_.store(true, std::memory_order_release);
      tell();
    }
  }

 private:
  bool told_ = false;
  TransferError error_;
  std::atomic<bool> failed_{false};
};

class SourceShare final : public Share {
 public:
  /// `hashes`: the content that is sent is to be verified.
  SourceShare(GuestMemory& memory, const std::vector<std::uint16_t>& lanes, bool hashes);

  struct Report {
    bool acknowledged = false;  // else read: `hash` is that of work.page
    transport::Work work;
    pages::PageHash hash = 0;
  };
  /// Works on their way to one lane.
  struct Feed {
    explicit Feed(std::uint16_t number) : lane(number), works(kWorksMax) {}
    std::uint16_t lane;
    SpscRing<transport::Work> works;
  };
  static constexpr std::size_t kWorksMax = 256;  // of one lane

  // ---- the share's lcore ----
  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override;
  [[nodiscard]] bool wants_hash(pages::PageNumber page, std::uint32_t offset) const override;
  void note_sent(pages::PageNumber page, pages::PageHash hash) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) override;
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override;
  void on_message(std::span<const std::byte> message) override;
  bool flush() override;
  // ---- the home lcore ----
  [[nodiscard]] std::vector<std::unique_ptr<Feed>>& feeds() { return feeds_; }
  [[nodiscard]] bool fetch(Report& out) { return reports_.pop(out); }

 private:
  void report(Report report);

  GuestMemory& memory_;
  const bool hashes_;
  std::vector<std::unique_ptr<Feed>> feeds_;
  SpscRing<Report> reports_;
  std::vector<Report> waiting_;  // for room in the ring
};

class DestinationShare final : public Share {
 public:
  /// `paging` null: no post-copy; `lcore` as it counts them.
  DestinationShare(GuestMemory& memory, PagingGuest* paging, std::uint32_t lcore, pages::GenerationTable& table,
                   const RoundGate& gate);

  // ---- the share's lcore ----
  bool next_work(std::uint16_t, transport::Work&) override { return false; }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  void on_acknowledged(const transport::Work&) override {}
  void on_page(std::uint16_t, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint16_t, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;
  bool flush() override;
  // ---- the home lcore ----
  [[nodiscard]] bool fetch(PlacedRun& out) { return reports_.pop(out); }
  [[nodiscard]] std::uint64_t partial_pages() const { return placer_.partial_pages(); }

 private:
  void report(std::vector<PlacedRun>& placed);

  PagePlacer placer_;
  PullPlacer pull_;
  SpscRing<PlacedRun> reports_;
};

}  // namespace godwit::transfer
