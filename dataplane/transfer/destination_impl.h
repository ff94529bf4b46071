#pragma once
// Inside of Destination: its state and steps. Private to destination*.cpp.
//
// Threads, apart in time by the protocol: the lcores place pages, the home lcore sets generations; jobs decode the
// source's table before round 1 is acknowledged and complete the table between rounds 1 and 2. Hashes belong to jobs
// alone, which run one after the other. Sets of pages come when nothing is in flight; jobs punch them out and have the
// table to themselves until they are armed.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/pages/page_digest.h"
#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/migration_end.h"
#include "dataplane/transfer/page_placer.h"
#include "dataplane/transfer/page_requests.h"
#include "dataplane/transfer/page_sets.h"
#include "dataplane/transfer/pull_placer.h"
#include "dataplane/transfer/share.h"

namespace godwit::transfer {

inline constexpr Duration kSilenceMax = milliseconds(10'000);  // the source says something every half second
// Waiting before the next round is let in: bounds memory, and what full verification leaves for the downtime.
inline constexpr std::uint64_t kUnhashedPagesMax = 16384;

void hash_runs(GuestMemory& memory, const std::vector<PageRun>& runs, pages::PageHashes& hashes);

class Destination::Impl final : public MigrationEnd, public std::enable_shared_from_this<Destination::Impl> {
 public:
  Impl(const MigrationConfig& config, DestinationGuest guest, Executor& executor, MigrationEvents& events);

  std::unique_ptr<DestinationShare> make_share();
  void start(Instant now, std::span<transport::Lane* const> lanes);
  bool pump();
  [[nodiscard]] bool is_paging() const { return phase_ >= Phase::kPaging && phase_ != Phase::kFailed; }
  void detach(Instant now);
  void resume(Instant now, std::span<transport::Lane* const> lanes);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  void flush(Instant now);
  [[nodiscard]] Stats stats(Instant now) const;
  [[nodiscard]] const pages::GenerationTable& table() const { return table_; }
  [[nodiscard]] std::uint32_t epoch_next() const { return config_.epoch_base + std::max(round_, 1U) + 1; }

  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes);
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count);
  void on_message(std::span<const std::byte> bytes);

 private:
  enum class Phase : std::uint8_t { kIdle, kWaiting, kTables, kRounds, kPaging, kReady, kFailed };
  /// A set of the source: as it came, and once a job has decoded it.
  struct MissingSet {
    std::uint32_t round = 0;
    std::vector<std::vector<std::byte>> missing_pieces, zero_pieces;
    pages::Bitmap missing;
  };
  struct Armed {
    bool equal = false;
    std::vector<pages::PageDigest> chunks;
    std::optional<GuestError> error;
    std::string peer_error;
  };

  // ---- destination.cpp ----
  void on(const wire::Hello& message);
  void on(const wire::TablePiece& message);
  void on(const wire::RoundBegin& message);
  void on(const wire::DeviceState& message);
  void on(const wire::DeviceStateEnd& message);
  void on(const wire::AllPlaced& message);
  void on(const wire::Abort& message);
  void on(const wire::PageSetPiece& message);
  void on(const wire::AllAnnounced& message);
  void on(const wire::AllSent& message);
  void on(const wire::Completed& message);
  void on(const wire::StoredPages& message);
  void on(const wire::Keepalive& message);
  template <class Unexpected>
  void on(const Unexpected& message);
  void fail(Failure failure, std::string text) override;
  void before_cancel() override { pump(); }  // what is placed already may be kept
  void protocol_error(const std::string& text);
  void deliver();
  void check_peer();
  /// Why the source counts as lost; empty: it does not.
  [[nodiscard]] std::string silence(Duration silence_max);
  void send_chunk_digests(const std::vector<pages::PageDigest>& chunks);
  [[nodiscard]] std::string hello_mismatch(const wire::Hello& hello) const;
  void send_retained();
  void decode_source_table();
  void on_apart(const wire::PageSetPiece& message);
  void take_apart(std::vector<std::vector<std::byte>> pieces);
  void take_stored();
  /// A job. What memory has of these pages is not what they are; a table that says so outlives a migration that fails.
  std::expected<void, GuestError> clear_stored(const pages::Bitmap& pages);
  void submit_for(bool Impl::*done, std::function<std::expected<void, GuestError>(Impl&)> work);
  /// Of a guest that is not split nothing is.
  [[nodiscard]] bool is_split() const { return stores_ != nullptr; }
  void acknowledge_if_due();
  void verify_if_due();
  void verified(bool equal, const std::vector<pages::PageDigest>& chunks);
  void hash_if_due();

  // ---- destination_pages.cpp ----
  /// False: it is a protocol error.
  [[nodiscard]] bool expects_pages(std::uint16_t lane, std::uint32_t round);
  void place();
  /// Takes note of what this lcore has placed.
  void fetch_own();
  void on_placed(const PlacedRun& run);
  void on_error(const TransferError& error);
  [[nodiscard]] std::uint64_t partial_pages() const;
  void set_generation(pages::PageNumber first, std::uint64_t count);
  void hash_later(pages::PageNumber first, std::uint64_t count);
  void start_round(std::uint32_t round);
  void complete_first_round();
  void drop_source_table();
  /// Pages that no round has carried: reused, or zero.
  [[nodiscard]] pages::Bitmap not_carried() const;
  /// Those are to be hashed too, if all is to be verified.
  void hash_rest(pages::Bitmap not_carried);
  std::vector<PageRun> take_all_unhashed();
  /// Takes the pages that wait for their hash, and a stretch of those that no round carried.
  std::vector<PageRun> take_unhashed();
  [[nodiscard]] bool hashes() const { return verify_ != Verify::kOff; }

  // ---- destination_paging.cpp ----
  void take_set(MissingSet set);
  void punch(MissingSet& set, pages::Bitmap& not_carried, std::optional<GuestError>& guest_error,
             std::string& peer_error);
  void guard(bool& guarded, std::optional<GuestError>& guest_error);
  void acknowledge_set_if_due();
  void arm_if_due();
  void arm(const wire::AllAnnounced& announced, const std::vector<PageRun>& unhashed, Armed& result);
  void armed(Armed& result);
  void begin_paging();
  void forget_missing();
  void on_pulled(const PlacedRun& run);
  [[nodiscard]] bool wants(pages::PageNumber page) const { return wanted_.test(page); }
  /// It is there, or not missing any more. True: it was asked for.
  bool has(pages::PageNumber page);
  bool read_events();
  void page();
  void ask_for_rest();
  void leave_to_stores();
  void complete_if_due();
  void send_set(std::shared_ptr<pages::Bitmap> set, wire::PageSet kind);
  [[nodiscard]] Duration answer_time() const;

  PagingGuest* const paging_;
  TakenStores* const stores_;
  const bool has_retained_;
  Verify verify_ = Verify::kOff;

  Phase phase_ = Phase::kIdle;
  Instant heard_at_{};
  Instant ticked_at_{};
  std::uint64_t packets_heard_ = 0;
  bool device_state_ended_ = false;

  bool ready_told_ = false;

  // tables
  pages::GenerationTable table_;
  pages::GenerationTable source_table_;  // after scan 1; dropped when round 1 is complete
  std::vector<std::vector<std::byte>> table_pieces_;
  std::uint64_t table_piece_bytes_ = 0;
  bool table_ended_ = false, table_decoded_ = false;

  // what stays with stores; the jobs' while they punch and arm
  std::vector<wire::StoredPage> stored_come_;
  pages::Bitmap stored_;          // or apart
  pages::Bitmap stored_listed_;   // it is known where
  pages::Bitmap stored_written_;  // after the table
  std::uint64_t version_next_ = 1;
  std::vector<pages::PageNumber> asked_stored_;  // of the source, before the commit
  bool stored_ended_ = false, stored_taken_ = false;
  bool apart_come_ = false, apart_taken_ = false;

  // the round
  std::uint32_t round_ = 0;
  bool acknowledged_ = false;
  RoundGate gate_;
  PagePlacer placer_;  // of this lcore's lanes
  std::vector<DestinationShare*> shares_;
  pages::Bitmap placed_first_;      // in round 1
  std::uint64_t placed_pages_ = 0;  // of this round, wholly in RAM
  bool first_round_complete_ = false, completing_ = false;

  // verification
  std::shared_ptr<pages::PageHashes> hashes_;  // shared with jobs, which alone use it
  std::vector<PageRun> unhashed_;
  std::uint64_t unhashed_pages_ = 0;
  bool round_over_ = false;  // what it brought is hashed while the source looks for the next, not in the downtime
  pages::Bitmap rest_;       // full: pages that round 1 did not carry
  pages::PageNumber rest_from_ = 0;
  std::uint64_t rest_left_ = 0;
  bool hashing_ = false, verifying_ = false;
  bool doubtful_ = false;  // a digest differed, and none has been equal since
  std::optional<wire::AllPlaced> all_placed_;

  // post-copy, before the guest runs here; `missing_` and `sets_` are the jobs'
  wire::TransferMode mode_{};
  PageSetPieces pieces_;
  MissingSet coming_;
  bool ahead_punched_ = false, ahead_acknowledged_ = false;
  std::uint32_t punching_ = 0;
  std::optional<wire::AllAnnounced> all_announced_;
  bool arming_ = false;
  std::atomic<bool> failed_{false};  // jobs that wait need not begin
  pages::Bitmap missing_;
  std::vector<MissingSet> sets_;

  // once it may
  PullPlacer pull_placer_;
  PageRequests requests_;
  PagingEvents paging_events_;
  pages::Bitmap wanted_;  // not placed by us, not given back
  std::uint64_t wanted_count_ = 0;
  pages::Bitmap got_;  // verification: what the digest is of
  pages::PageDigest got_digest_;
  std::uint64_t got_count_ = 0;
  bool all_sent_ = false, resuming_ = false;
  bool complete_sent_ = false, disarming_ = false, disarmed_ = false, complete_told_ = false;
  std::uint32_t connection_ = 0;
  std::optional<bool> equal_;
};

}  // namespace godwit::transfer
