#pragma once
// The home lcore's part of one migration: the priority lane, its part of the bulk lanes, and the Source or Destination
// behind them (a MigrationPart, which may outlive a flow that died and go on with the next one). It owns the shares of
// the other lcores too, which call them from when they are attached until they are detached. Owned and called by the
// home lcore's DataPath. Jobs run on the guest's worker and come back through that DataPath's inbox. Failure: whatever
// goes wrong reaches the owner as MigrationEvents::on_failed or on_connection_lost; the flow then only acknowledges,
// until it is taken away.

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/time.h"
#include "dataplane/daemon/flow.h"
#include "dataplane/daemon/worker.h"
#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/source.h"

namespace godwit::daemon {

struct SourceRole {
  transfer::MigrationConfig config;
  transfer::Policy policy;
  transfer::SourceGuest guest;
};
struct DestinationRole {
  transfer::MigrationConfig config;
  transfer::DestinationGuest guest;
};

/// One end of a migration, with one flow or with several after each other; goes on the home lcore.
struct MigrationPart {
  MigrationPart(const SourceRole& role, Worker& worker, Inbox& lcore, transfer::MigrationEvents& events);
  MigrationPart(DestinationRole role, Worker& worker, Inbox& lcore, transfer::MigrationEvents& events);
  [[nodiscard]] transfer::Stats stats(Instant now) const;
  /// It may go on without lanes, or with others.
  [[nodiscard]] bool may_detach() const;

  WorkerExecutor executor;
  transfer::MigrationEvents& events;
  std::unique_ptr<transfer::Source> source;  // or
  std::unique_ptr<transfer::Destination> destination;
  const bool pages;  // destination: post-copy may come
};

class MigrationFlow final : public Flow {
 public:
  enum class Begin : std::uint8_t { kStart, kResume };

  MigrationFlow(const FlowConfig& config, std::unique_ptr<MigrationPart> part, Begin begin, Instant now);
  ~MigrationFlow() override;

  [[nodiscard]] transfer::Source* source() { return part_->source.get(); }
  [[nodiscard]] transfer::Destination* destination() { return part_->destination.get(); }
  [[nodiscard]] const MigrationPart& part() const { return *part_; }

  void start(Instant now) override;
  /// Source: a piece of QEMU's stream, or its end; `done` is called when Source has taken it (true) or the migration
  /// has failed (false).
  void offer_device_state(std::string data, bool end, std::function<void(bool taken)> done);
  void cancel(Instant now, const std::string& reason);
  /// Tells everyone who waits that nothing will be taken any more.
  void refuse_device_state();
  /// Looks what the shares have to tell and gives them work.
  bool pump(Instant now) override;
  void flush(Instant now) override;
  void tick(Instant now) override;
  [[nodiscard]] Instant deadline() const override;
  [[nodiscard]] transfer::Stats stats(Instant now) const { return part_->stats(now); }
  [[nodiscard]] std::uint32_t epoch_next() const;
  /// Takes the part off its lanes; null if it has failed. No lcore calls the flow any more, which is good for nothing
  /// after that.
  std::unique_ptr<MigrationPart> detach(Instant now);

 private:
  struct Offer {
    std::string data;
    bool end = false;
    std::function<void(bool)> done;
  };
  void make_lanes(Instant now);
  void pump_device_state(Instant now);
  void publish(Instant now);

  const Begin begin_;
  std::unique_ptr<MigrationPart> part_;
  std::deque<Offer> offers_;  // wait for room
  Instant publish_at_{}, progress_at_{};
};

}  // namespace godwit::daemon
