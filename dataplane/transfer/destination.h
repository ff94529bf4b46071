#pragma once
// The end of a migration that gets the guest: offers its retained table, places pages, keeps the table, verifies, and
// fetches what is missing while the guest runs. See migration.h for owner, thread and time.
//
// The table. A page becomes unknown when its first byte of a round arrives and gets the round's generation (round 1:
// that of the source's table) when all of it is in RAM. A page that is wholly placed keeps its generation until then:
// source.h says why that is safe although the guest may have written it since. Pages of a round are placed once;
// packets of an older round are dropped; of a round not begun they end the migration.
//
// A guest that is split (kept_stores.h). What its stores have is taken for unknown, and its memory away, before round 1
// is acknowledged; a round or a set that has such a page takes it out. What is left when all is announced is missing
// like the sets, but is not asked for.
//
// Post-copy. The sets that the source announces are punched out of RAM by jobs; pages of the missing sets are unknown
// from then until PagingGuest::arm(), which makes the table the VM's table, though they are still missing: what is
// missing is known by PagingGuest alone. If the migration fails after that, what is missing is unknown again, and the
// rest may be kept. Each missing page that a thread of the guest waits for is asked for once, and again after two round
// trips. What resume() needs after a restart: the VM's table (as `retained`), PagingGuest with its missing set, as a
// predecessor armed it, and MigrationConfig; what came is not verified then.

#include <memory>
#include <optional>

#include "dataplane/transfer/kept_stores.h"
#include "dataplane/transfer/migration.h"
#include "dataplane/transfer/share.h"

namespace godwit::transfer {

struct DestinationGuest {
  GuestMemory& memory;
  /// The retained image's table; nullopt: nothing to reuse, memory is all zero.
  std::optional<pages::GenerationTable> retained;
  PagingGuest* paging = nullptr;  // null: post-copy is not possible here
  TakenStores* stores = nullptr;  // of a guest that is split, with `paging`; null: it is not
};

class Destination final : public transport::LaneUser {
 public:
  Destination(const MigrationConfig& config, DestinationGuest guest, Executor& executor, MigrationEvents& events);
  ~Destination() override;

  /// For the lanes of one more lcore; before start().
  [[nodiscard]] std::unique_ptr<DestinationShare> make_share();
  /// Fetches what the shares have placed, and faults: often, and before flush() matters to nobody else. True: there was
  /// something.
  bool pump();
  void start(Instant now, std::span<transport::Lane* const> lanes);
  void cancel(Instant now, const std::string& reason);
  /// The guest may run here and what is missing is being fetched, or all is there: detach() is allowed.
  [[nodiscard]] bool is_paging() const;
  /// The lanes and shares may go when this returns; their lcores have forgotten them before. Only after
  /// on_memory_ready() of a post-copy.
  void detach(Instant now);
  /// Goes on with new lanes, and shares made in between. In a new object instead of start().
  void resume(Instant now, std::span<transport::Lane* const> lanes);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  /// End of a receive burst: places what arrived in it. Before poll_transmit, so that acknowledged means placed.
  void flush(Instant now);
  [[nodiscard]] Stats stats(Instant now) const;
  /// The table as it is now: a page of which any part is doubtful is unknown. After on_memory_ready it is the VM's
  /// table; after a failure it says what of the partial image may be kept. After a failure read it in a job of the same
  /// executor: an earlier one may still run.
  [[nodiscard]] const pages::GenerationTable& table() const;
  [[nodiscard]] std::uint32_t epoch_next() const;

  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // shared: jobs in flight keep what they work on
};

}  // namespace godwit::transfer
