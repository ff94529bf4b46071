#pragma once
// The end of a pre-copy migration that gets the guest: offers its retained table, places pages, keeps the table,
// verifies. See migration.h for owner, thread and time.
//
// The table. A page becomes unknown when its first byte of a round arrives and gets the round's generation (round 1:
// that of the source's table) when all of it is in RAM. A page that is wholly placed keeps its generation until then:
// source.h says why that is safe although the guest may have written it since. Pages of a round are placed once;
// packets of an older round are dropped; of a round not begun they end the migration.

#include <memory>
#include <optional>

#include "dataplane/transfer/migration.h"
#include "dataplane/transfer/share.h"

namespace godwit::transfer {

struct DestinationGuest {
  GuestMemory& memory;
  /// The retained image's table; nullopt: nothing to reuse, memory is all zero.
  std::optional<pages::GenerationTable> retained;
};

class Destination final : public transport::LaneUser {
 public:
  Destination(const MigrationConfig& config, DestinationGuest guest, Executor& executor, MigrationEvents& events);
  ~Destination() override;

  /// For the lanes of one more lcore; before start().
  [[nodiscard]] std::unique_ptr<DestinationShare> make_share();
  /// Fetches what the shares have placed: often, and before flush() matters to nobody else. True: there was something.
  bool pump();
  void start(Instant now, std::span<transport::Lane* const> lanes);
  void cancel(Instant now, const std::string& reason);
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
