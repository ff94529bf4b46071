#pragma once
// Inside of Destination: its state and steps. Private to destination*.cpp.
//
// Threads, apart in time by the protocol: the lcores place pages, the home lcore sets generations; jobs decode the
// source's table before round 1 is acknowledged and complete the table between rounds 1 and 2. Hashes belong to jobs
// alone, which run one after the other.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/pages/page_digest.h"
#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/migration_end.h"
#include "dataplane/transfer/page_placer.h"
#include "dataplane/transfer/share.h"

namespace godwit::transfer {

class Destination::Impl final : public MigrationEnd, public std::enable_shared_from_this<Destination::Impl> {
 public:
  Impl(const MigrationConfig& config, DestinationGuest guest, Executor& executor, MigrationEvents& events);

  std::unique_ptr<DestinationShare> make_share();
  void start(Instant now, std::span<transport::Lane* const> lanes);
  bool pump();
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
  enum class Phase : std::uint8_t { kIdle, kWaiting, kTables, kRounds, kReady, kFailed };

  // ---- destination.cpp ----
  void on(const wire::Hello& message);
  void on(const wire::TablePiece& message);
  void on(const wire::RoundBegin& message);
  void on(const wire::DeviceState& message);
  void on(const wire::DeviceStateEnd& message);
  void on(const wire::AllPlaced& message);
  void on(const wire::Abort& message);
  void on(const wire::Keepalive& message);
  template <class Unexpected>
  void on(const Unexpected& message);
  void fail(Failure failure, std::string text) override;
  void before_cancel() override { pump(); }  // what is placed already may be kept
  void protocol_error(const std::string& text);
  void deliver();
  void check_peer();
  [[nodiscard]] std::string hello_mismatch(const wire::Hello& hello) const;
  void send_retained();
  void decode_source_table();
  void acknowledge_if_due();
  void verify_if_due();
  void verified(bool equal, std::vector<pages::PageDigest> chunks);
  void hash_if_due();

  // ---- destination_pages.cpp ----
  /// False: it is a protocol error.
  [[nodiscard]] bool expects_pages(std::uint16_t lane);
  void place();
  /// Takes note of what this lcore has placed.
  void fetch_own();
  void on_placed(const PlacedRun& run);
  [[nodiscard]] std::uint64_t partial_pages() const;
  void set_generation(pages::PageNumber first, std::uint64_t count);
  void hash_later(pages::PageNumber first, std::uint64_t count);
  void start_round(std::uint32_t round);
  void complete_first_round();
  /// Takes the pages that wait for their hash, and a stretch of those that no round carried.
  std::vector<PageRun> take_unhashed();
  [[nodiscard]] bool hashes() const { return verify_ != Verify::kOff; }

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
};

}  // namespace godwit::transfer
