#pragma once
// What tests of Source and Destination share: a worker that runs when told, recorded events, fake lanes, a small guest.

#include <gtest/gtest.h>

#include <deque>
#include <optional>

#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/source.h"
#include "tests/simulation/transfer_model.h"
#include "tests/unit/transfer/fake_lane.h"

namespace godwit::transfer {

class ManualExecutor final : public Executor {
 public:
  void submit(std::function<void()> work, std::function<void()> done) override {
    jobs_.emplace_back(std::move(work), std::move(done));
    ++submitted_;
  }
  /// All that ever were.
  [[nodiscard]] std::size_t submitted() const { return submitted_; }
  [[nodiscard]] std::size_t waiting() const { return jobs_.size(); }
  void work_first() {
    jobs_.front().first();
    jobs_.front().first = [] {};
  }
  void run_all() {
    while (!jobs_.empty()) {
      const auto job = std::move(jobs_.front());
      jobs_.pop_front();
      job.first();
      job.second();
    }
  }

 private:
  std::deque<std::pair<std::function<void()>, std::function<void()>>> jobs_;
  std::size_t submitted_ = 0;
};

struct Events final : MigrationEvents {
  void on_ready_to_switch(Duration) override { ++ready; }
  void on_source_done(const Stats& s) override {
    ++done;
    stats = s;
  }
  void on_device_state(std::span<const std::byte> bytes, bool end) override {
    state_bytes += bytes.size();
    ended = ended || end;
  }
  void on_memory_guarded() override { ++guarded; }
  void on_memory_ready(std::uint64_t checked) override {
    ++memory_ready;
    pages_checked = checked;
  }
  void on_failed(Failure f, const std::string& t) override {
    ++failed;
    failure = f;
    text = t;
  }
  void on_connection_lost(const std::string& t) override {
    ++lost;
    text = t;
  }
  void on_complete(const Stats& s, bool e) override {
    ++complete;
    stats = s;
    equal = e;
  }
  int ready = 0, done = 0, guarded = 0, memory_ready = 0, failed = 0, lost = 0, complete = 0;
  bool equal = false;
  std::uint64_t state_bytes = 0, pages_checked = 0;
  bool ended = false;
  Failure failure{};
  std::string text;
  Stats stats;
};

struct NoUser final : transport::LaneUser {
  bool next_work(std::uint16_t, transport::Work&) override { return false; }
  void read_page(pages::PageNumber, std::uint32_t, std::span<std::byte>) override {}
  void on_acknowledged(const transport::Work&) override {}
  void on_page(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) override {}
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {}
  void on_message(std::span<const std::byte>) override {}
};

inline constexpr std::uint64_t kPages = 64;
inline constexpr std::uint32_t kVisit = 5;  // epoch of the visit
inline constexpr std::uint32_t kEpochBase = 100;

inline MigrationConfig make_config() {
  MigrationConfig config;
  config.id.fill(std::byte{1});
  config.regions = {{"ram0", 40}, {"ram1", 24}};
  config.epoch_base = kEpochBase;
  config.epoch_count = 32;
  return config;
}

inline wire::Hello make_hello(wire::TransferMode mode, wire::VerifyLevel verify = wire::VerifyLevel::kOff) {
  const MigrationConfig config = make_config();
  return {.verify = verify,
          .mode = mode,
          .id = config.id,
          .epoch_base = config.epoch_base,
          .epoch_count = config.epoch_count,
          .regions = config.regions};
}

/// One end's surroundings. `Self` drives it by now, tick() and jobs.
struct Surroundings {
  simulation::ModelMemory memory{kPages};
  ManualExecutor executor;
  Events events;
  NoUser nobody;
  transport::Lane priority{{}, nobody, Instant{}};
  transport::Lane bulk1{{}, nobody, Instant{}};
  transport::Lane bulk2{{}, nobody, Instant{}};
  std::array<transport::Lane*, 3> lanes{&priority, &bulk1, &bulk2};
  Instant now{1'000'000};
  std::size_t messages_read = 0;

  /// Ticks and runs jobs until nothing more is due.
  template <class End>
  void settle(End& end) {
    for (int i = 0; i < 100 && (executor.waiting() != 0 || end.deadline() <= now); ++i) {
      end.tick(now);
      executor.run_all();
    }
  }
  /// Messages sent since the last call, keepalives left out. Spans point into the fake lane.
  std::vector<wire::Message> sent() {
    std::vector<wire::Message> result;
    auto& all = transport::fake(priority).messages;
    for (; messages_read < all.size(); ++messages_read) {
      auto message = wire::decode_message(all[messages_read]);
      EXPECT_TRUE(message.has_value());
      if (message && !std::holds_alternative<wire::Keepalive>(*message)) {
        result.push_back(std::move(*message));
      }
    }
    return result;
  }
  /// The last of its kind.
  template <class M>
  std::optional<M> find(const std::vector<wire::Message>& messages) {
    std::optional<M> result;
    for (const auto& message : messages) {
      if (const M* found = std::get_if<M>(&message)) {
        result = *found;
      }
    }
    return result;
  }
};

template <class End, class M>
void tell(End& end, const M& message) {
  end.on_message(wire::encode_message(message));
}

}  // namespace godwit::transfer
