#pragma once
// The end of a migration that has the guest: compares, sends rounds, says when it is time to stop the guest, sends the
// rest, or announces it and gives it when the destination asks. See migration.h for owner, thread and time,
// docs/architecture.md for the message sequence.
//
// The table. Every scan, also one whose migration was cancelled meanwhile, is entered into the table by the job that
// made it, so a page that was armed again is never forgotten. If a scan fails the whole table becomes unknown. At scan
// 1 unknown pages count as written in this visit: no copy anywhere has the visit's epoch, so their new generation is
// true and equal to none.
//
// Why the destination need not be told which pages a newer round will replace: a page that it placed in round r keeps
// generation g. If the guest writes it afterwards, the next scan, of this attempt or of the next, gives it an epoch
// that no copy has (E + r + 1 or higher; epoch_next() raises the visit's epoch after an abort). So the VM's table never
// holds g for that page again, and the stale copy is never taken for reusable. If the source forgets its history
// (crash), all its pages get a fresh epoch: the same argument.
//
// Order. What is likely to be written again goes last: a page that a scan has found, and the scan before it too (before
// the first one: that was accessed in half of the scans that the guest's history knows), is put off by a round. Then it
// goes as the guest has made it by then, and is not sent for nothing; no page waits longer than that, nor does any once
// what is left fits the downtime. Not in round 1: what does not come with it counts as known at the destination.
//
// Stores. While a split guest is still above its budget (kept_stores.h) there is round 1, without what is apart; then
// the stores come to rest, one scan lists them, and with round 2 all goes on as for a guest that was split long ago.
//
// Post-copy. After STOP the source sends no content until all of it is announced: what is in flight is acknowledged,
// what is left of the open round and what the last scans found are sets of pages (wire::PageSetPiece). From then on it
// gives any page that it is asked for, also one that it never announced, as it is in RAM, which nobody may change, and
// streams the others; until on_complete(). What stays with stores (kept_stores.h) it never gives. Memory that turns out
// to be cut short gives zeros: whoever sends asks GuestMemory::damaged() between poll_transmit() and the port, and
// drops the frames. What resume() needs after a restart: the guest's RAM and MigrationConfig; of the table nothing
// changes any more.

#include <memory>

#include "dataplane/pages/access_history.h"
#include "dataplane/transfer/kept_stores.h"
#include "dataplane/transfer/migration.h"
#include "dataplane/transfer/share.h"

namespace godwit::transfer {

/// What the source host knows of the guest's history; owned by the daemon's guest, lent for the time of the migration.
struct SourceGuest {
  GuestMemory& memory;
  pages::GenerationTable& table;  // brought up to date by every scan
  std::uint32_t epoch_now;  // generation for what the first scan finds written (this visit's epoch); below epoch_base
  const pages::AccessHistory* accesses = nullptr;  // if there is one; read by jobs alone
  KeptStores* stores = nullptr;                    // of a guest that is split; not with Mode::kPrecopy
};

class Source final : public transport::LaneUser {
 public:
  Source(const MigrationConfig& config, const Policy& policy, SourceGuest guest, Executor& executor,
         MigrationEvents& events);
  ~Source() override;

  /// For these lanes of one more lcore; before start().
  [[nodiscard]] std::unique_ptr<SourceShare> make_share(const std::vector<std::uint16_t>& lanes);
  /// Fetches what the shares tell, and gives them work: often. True: there was something.
  bool pump();
  /// lanes[0] is the priority lane, the others bulk. Owned by the caller, which outlives this object's use of them.
  void start(Instant now, std::span<transport::Lane* const> lanes);
  /// QEMU's STOP event is in: the guest writes no more; collect and send what is left.
  void guest_stopped(Instant now);
  /// Next piece of QEMU's stream, at most 64 KiB; false: no room now, offer it again after the next tick(). All of it
  /// or nothing.
  [[nodiscard]] bool device_state(std::span<const std::byte> data);
  /// QEMU has closed the stream: scan once more, send, then tell the destination that all is placed.
  void device_state_end(Instant now);
  /// The rest by post-copy, as soon as can be. False: neither policy nor destination allow it, or it is too late.
  bool switch_to_postcopy(Instant now);
  void cancel(Instant now, const std::string& reason);
  /// The store's word: the guest goes on there. Sooner nothing flows in the background, for QEMU's load and `cont` are
  /// to have processors and link for themselves; who never hears it begins a little later all the same.
  void committed(Instant now);
  /// All is announced: a dead connection is no failure any more, and detach() is allowed.
  [[nodiscard]] bool serves() const;
  /// The lanes and shares may go when this returns. Only once all is announced.
  void detach(Instant now);
  /// Goes on with new lanes, and shares made in between. In a new object instead of start().
  void resume(Instant now, std::span<transport::Lane* const> lanes);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  void flush() {}
  [[nodiscard]] Stats stats(Instant now) const;
  /// First epoch that no copy of this attempt has used.
  [[nodiscard]] std::uint32_t epoch_next() const;

  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override;
  [[nodiscard]] bool wants_hash(pages::PageNumber page, std::uint32_t offset) const override;
  void note_sent(pages::PageNumber page, pages::PageHash hash) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // shared: a job's `done` looks whether it is still there
};

}  // namespace godwit::transfer
