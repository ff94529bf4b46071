#include "perf/swap_end.h"

#include <unistd.h>

#include <expected>
#include <memory>
#include <utility>

#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/split_flow.h"
#include "dataplane/port/poll_loop.h"
#include "perf/fault_pager.h"
#include "perf/processes.h"

namespace godwit::perf {
namespace {

constexpr std::uint32_t kMtu = 9000;
constexpr split::SubId kSub = 1;
constexpr split::StoreId kStore{std::byte{1}};

/// The lcore's loop, for either end.
class SwapEnd : public port::PollLoopUser {
 public:
  SwapEnd(const SwapEndOptions& options, SwapShared& shared, EndPort& end)
      : options_(options),
        shared_(shared),
        path_(end.port->queue(0), end_data_path(*end.port, options.is_store)),
        // As a data plane whose guest waits for pages: it polls.
        loop_(*this, end.doorbell, {.mode = port::IdleMode::kPoll}) {
    path_.join({&path_});
  }

  void run() { loop_.run(); }
  [[nodiscard]] const std::string& error() const { return error_; }

  bool turn(Instant now) final {
    if (shared_.stop.load(std::memory_order_relaxed)) {
      loop_.stop();
      return false;
    }
    work(now);
    return path_.turn(now);
  }
  [[nodiscard]] Instant deadline() const final { return path_.deadline(); }

 protected:
  virtual void work(Instant now) = 0;
  void fail(const std::string& text) {
    if (error_.empty()) error_ = text;
    shared_.stop = true;
  }

  const SwapEndOptions& options_;
  SwapShared& shared_;
  daemon::DataPath path_;

 private:
  port::PollLoop loop_;
  std::string error_;
};

class StoreEnd final : public SwapEnd {
 public:
  using SwapEnd::SwapEnd;

  std::expected<void, std::string> prepare() {
    const memserver::StoreOptions where{.records_file = options_.directory + "/records",
                                        .pages_file = options_.directory + "/pages",
                                        .budget_bytes = options_.pages * pages::kPageSize * 9 / 8 + (1U << 20),
                                        .boot_id = {}};
    auto store = memserver::PageStore::create(where);
    if (!store) return std::unexpected(store.error().text);
    const auto vm = store->add_vm({std::byte{1}}).value();
    store_ = std::make_shared<daemon::OpenStore>(std::move(*store), vm);
    return {};
  }

 private:
  void work(Instant now) override {
    if (!added_) {
      path_.add(std::make_unique<daemon::StoreFlow>(
                    end_flow_config(options_.is_store, kMtu, options_.cipher), store_, kStore, options_.pages,
                    [this](const std::string& why) { fail("the main host is lost: " + why); }, now),
                now);
      added_ = true;
      shared_.begin = true;
    }
  }

  std::shared_ptr<daemon::OpenStore> store_;
  bool added_ = false;
};

class MainEnd final : public SwapEnd {
 public:
  MainEnd(const SwapEndOptions& options, SwapShared& shared, EndPort& end, TrackedRam tracked)
      : SwapEnd(options, shared, end),
        guest_(std::move(tracked.ram), std::move(tracked.tracker), std::move(tracked.hashes), std::nullopt, false) {}
  ~MainEnd() {
    if (split_) split_->stop_evicting();
  }

  std::expected<void, std::string> prepare() {
    for (pages::PageNumber page = 0; page < options_.pages; ++page) {
      FaultGuest::number_page(page, guest_.ram().mapped(page));
    }
    for (const auto& done : {guest_.arm(), guest_.refresh_present()}) {
      if (!done) return std::unexpected(done.error().text);
    }
    auto pipe = memory::PinPipe::make();
    if (!pipe) return std::unexpected(pipe.error().text);
    memory::MissingOf of;
    of.page_count = options_.pages;
    auto split = daemon::LiveSplit::create(guest_, options_.directory, of, std::move(*pipe));
    if (!split) return std::unexpected(split.error().text);
    split_ = std::move(*split);
    return {};
  }

  /// Its evictor's thread gets the calling thread's CPUs.
  void begin() {
    split_->begin(path_.inbox(), {.sub_lost = [this](split::SubId, const std::string& why) { fail(why); },
                                  .sub_full = [this](split::SubId) { fail("the store is full"); },
                                  .pages_lost = [this](split::SubId, std::uint64_t) { fail("the store lost pages"); },
                                  .gathered = [] {}});
    split_->main().add_sub(kSub, kStore);
  }

 private:
  enum class Phase : std::uint8_t { kConnecting, kEvicting, kRunning };

  void work(Instant now) override {
    if (const std::string problem = split_->problem(); !problem.empty()) fail(problem);
    switch (phase_) {
      case Phase::kConnecting:
        if (!shared_.begin) return;
        path_.watch(split_);
        path_.add(std::make_unique<daemon::MainFlow>(end_flow_config(options_.is_store, kMtu, options_.cipher), split_,
                                                     kSub, now),
                  now);
        set_limits({.budget_pages = options_.pages, .high_pages = 1, .low_pages = 0});
        since_ = now;
        phase_ = Phase::kEvicting;
        return;
      case Phase::kEvicting:
        if (split_->missing_count() < options_.pages || split_->main().sub_stats(kSub).held_pages < options_.pages) {
          return;
        }
        shared_.evict_all_s = static_cast<double>((now - since_).ns) * 1e-9;
        let_run();
        return;
      case Phase::kRunning:
        if (options_.guest->done()) {
          shared_.evicted_pages = split_->figures().evictor.evicted_pages;  // since the limits were set
          shared_.refetched_pages = split_->main().stats().refetched_pages;
          shared_.stop = true;
        }
    }
  }

  void let_run() {
    const std::uint64_t budget = options_.budget_pages;
    const std::uint64_t margin = budget / 16;  // as a data plane that is told no watermarks
    set_limits(budget == 0
                   ? daemon::SplitLimits{.budget_pages = options_.pages + 1,
                                         .high_pages = options_.pages,
                                         .low_pages = options_.pages - 1}
                   : daemon::SplitLimits{
                         .budget_pages = budget, .high_pages = budget - margin, .low_pages = budget - 2 * margin});
    options_.guest->begin();
    phase_ = Phase::kRunning;
  }

  void set_limits(const daemon::SplitLimits& limits) {
    if (auto set = split_->set_limits(limits); !set) fail(set.error().text);
  }

  daemon::LiveGuest guest_;
  std::shared_ptr<daemon::LiveSplit> split_;
  Phase phase_ = Phase::kConnecting;
  Instant since_{};
};

std::unexpected<std::string> run_store(const SwapEndOptions& options, SwapShared& shared) {
  wait_for_memif_server(shared.ready[0], shared.stop);
  auto parts = open_end_port(end_memif(options.socket, true, kMtu), options.cpus);
  if (!parts) return std::unexpected(parts.error());
  StoreEnd end(options, shared, *parts);
  if (auto prepared = end.prepare(); !prepared) return std::unexpected(prepared.error());
  shared.ready[1] = true;
  return run_on_end_lcore(
      *parts, [&] { end.run(); }, end.error());
}

std::unexpected<std::string> run_main(const SwapEndOptions& options, SwapShared& shared) {
  auto tracked = track(*options.guest);
  if (!tracked) return std::unexpected(tracked.error());
  auto parts = open_end_port(end_memif(options.socket, false, kMtu), options.cpus);
  if (!parts) return std::unexpected(parts.error());
  MainEnd end(options, shared, *parts, std::move(*tracked));
  if (auto prepared = end.prepare(); !prepared) return std::unexpected(prepared.error());
  pin_to(options.evictor_cpu);
  end.begin();
  shared.ready[0] = true;
  return run_on_end_lcore(
      *parts, [&] { end.run(); }, end.error());
}

}  // namespace

int run_swap_end(const SwapEndOptions& options, SwapShared& shared) {
  const auto done = options.is_store ? run_store(options, shared) : run_main(options, shared);
  tell_error(done.error(), shared.errors[options.is_store ? 1 : 0]);
  shared.stop = true;
  return 1;
}

}  // namespace godwit::perf
