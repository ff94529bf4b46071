#pragma once
// The end of a pre-copy migration that has the guest: compares, sends rounds, says when it is time to stop the guest, sends the rest.
// See migration.h for owner and thread, docs/architecture.md for the message sequence.

#include <memory>

#include "dataplane/transfer/migration.h"

namespace godwit::transfer {

/// What the source host knows of the guest's history; owned by the daemon's guest, lent for the time of the migration.
struct SourceGuest {
  GuestMemory& memory;
  pages::GenerationTable& table;     // brought up to date by every scan
  std::uint32_t epoch_now;           // generation for what the first scan finds written (this visit's epoch)
};

class Source final : public transport::LaneUser {
 public:
  Source(const MigrationConfig& config, const Policy& policy, SourceGuest guest, Executor& executor, MigrationEvents& events);
  ~Source() override;

  /// lanes[0] is the priority lane, the others bulk. Owned by the caller, which outlives this object's use of them.
  void start(Instant now, std::span<transport::Lane* const> lanes);
  /// QEMU's STOP event is in: the guest writes no more; collect and send what is left.
  void guest_stopped(Instant now);
  /// Next piece of QEMU's stream; false: no room now, offer it again later (on_room in tick).
  [[nodiscard]] bool device_state(std::span<const std::byte> data);
  /// QEMU has closed the stream: scan once more, send, then tell the destination that all is placed.
  void device_state_end(Instant now);
  void cancel(Instant now, const std::string& reason);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  void flush() {}
  [[nodiscard]] Stats stats(Instant now) const;
  /// First epoch that no copy of this attempt has used.
  [[nodiscard]] std::uint32_t epoch_next() const;

  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint32_t round, pages::PageNumber page, std::uint32_t offset, std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace godwit::transfer
