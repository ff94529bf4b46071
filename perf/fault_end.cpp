#include "perf/fault_end.h"

#include <unistd.h>

#include <expected>
#include <memory>
#include <utility>
#include <vector>

#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/live_guest.h"
#include "dataplane/daemon/live_paging.h"
#include "dataplane/port/poll_loop.h"
#include "perf/fault_pager.h"
#include "perf/processes.h"

namespace godwit::perf {
namespace {

using transfer::GuestError;

constexpr std::uint32_t kEpoch = 1;        // of the visit that ends
constexpr std::uint32_t kEpochCount = 32;  // of the attempt

std::uint64_t now_ns() { return static_cast<std::uint64_t>(port::now().ns); }

/// The source's memory; notes when a page is first read.
class NotingMemory final : public transfer::GuestMemory {
 public:
  NotingMemory(daemon::LiveGuest& guest, FaultShared& shared) : guest_(guest), shared_(shared) {}
  [[nodiscard]] pages::PageNumber page_count() const override { return guest_.page_count(); }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override {
    note(page);
    guest_.read_page(page, offset, out);
  }
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override {
    note(page);
    return guest_.page_in_place(page, hash_in_tag);
  }
  std::expected<void, GuestError> place_pages(std::span<const transfer::Arrival> arrivals) override {
    return guest_.place_pages(arrivals);
  }
  std::expected<void, GuestError> zero_pages(pages::PageNumber first, std::uint64_t count) override {
    return guest_.zero_pages(first, count);
  }
  std::expected<void, GuestError> collect_written(pages::Bitmap& out) override { return guest_.collect_written(out); }
  std::expected<void, GuestError> find_zero(const pages::Bitmap& among, pages::Bitmap& out) override {
    return guest_.find_zero(among, out);
  }
  [[nodiscard]] bool damaged() const override { return guest_.damaged(); }
  [[nodiscard]] std::expected<void, GuestError> check_whole() const override { return guest_.check_whole(); }

 private:
  void note(pages::PageNumber page) {
    std::uint64_t& at = shared_.steps[page].answered_ns;
    at = at == 0 ? now_ns() : at;
  }

  daemon::LiveGuest& guest_;
  FaultShared& shared_;
};

/// The destination's; notes the way of each page that is waited for.
class NotingPaging final : public transfer::PagingGuest {
 public:
  NotingPaging(daemon::LivePaging& paging, FaultShared& shared) : paging_(paging), shared_(shared) {}
  std::expected<void, GuestError> punch(const pages::Bitmap& missing, const pages::Bitmap& zero) override {
    return paging_.punch(missing, zero);
  }
  std::expected<bool, GuestError> guard() override { return paging_.guard(); }
  std::expected<void, GuestError> arm(const pages::Bitmap& missing) override { return paging_.arm(missing); }
  std::expected<void, GuestError> disarm() override { return paging_.disarm(); }
  std::expected<void, GuestError> read_events(transfer::PagingEvents& out) override {
    auto read = paging_.read_events(out);
    for (const pages::PageNumber page : out.faults) {
      shared_.steps[page].read_ns = now_ns();
      asked_.push_back(page);
    }
    return read;
  }
  std::expected<void, GuestError> place(std::uint32_t lcore, std::span<transfer::PageWrite> pages) override {
    note(pages, &FaultSteps::arrived_ns);
    auto placed = paging_.place(lcore, pages);
    note(pages, &FaultSteps::placed_ns);
    shared_.last_placed_ns = now_ns();
    if (shared_.first_placed_ns == 0) {
      shared_.first_placed_ns = shared_.last_placed_ns;
    }
    shared_.placed_pages += pages.size();
    return placed;
  }
  std::expected<void, GuestError> place_zero(std::uint32_t lcore, pages::PageNumber first, std::uint64_t count,
                                             std::vector<transfer::PageRun>& placed) override {
    return paging_.place_zero(lcore, first, count, placed);
  }
  [[nodiscard]] bool missing(pages::PageNumber page) const override { return paging_.missing(page); }

  /// At the end of a turn, all that it had to send is with the driver.
  void turn_over() {
    for (const pages::PageNumber page : std::exchange(asked_, {})) {
      shared_.steps[page].asked_ns = now_ns();
    }
  }

 private:
  void note(std::span<const transfer::PageWrite> pages, std::uint64_t FaultSteps::*step) {
    for (const transfer::PageWrite& page : pages) {
      FaultSteps& steps = shared_.steps[page.page];
      if (steps.read_ns != 0) {
        steps.*step = now_ns();
      }
    }
  }

  daemon::LivePaging& paging_;
  FaultShared& shared_;
  std::vector<pages::PageNumber> asked_;
};

daemon::FlowConfig flow_config(const FaultEndOptions& options, const daemon::LiveGuest& guest) {
  daemon::FlowConfig config = end_flow_config(options.is_source, options.mtu, options.cipher);
  config.served = options.is_source ? &guest : nullptr;
  return config;
}

/// The lcore's loop, and what a bridge would answer to a migration's events.
class FaultEnd final : public port::PollLoopUser, public transfer::MigrationEvents {
 public:
  FaultEnd(const FaultEndOptions& options, FaultShared& shared, EndPort& end, TrackedRam tracked)
      : options_(options),
        shared_(shared),
        port_(*end.port),
        guest_(std::move(tracked.ram), std::move(tracked.tracker), std::move(tracked.hashes), std::nullopt, false),
        memory_(guest_, shared),
        table_(kFaultPages, kEpoch),
        path_(end.port->queue(0), end_data_path(*end.port, options.is_source)),
        // As a data plane with a post-copy under way: it polls.
        loop_(*this, end.doorbell, {.mode = port::IdleMode::kPoll}) {
    path_.join({&path_});
  }

  std::expected<void, std::string> prepare() {
    for (pages::PageNumber page = 0; options_.is_source && page < kFaultPages; ++page) {
      FaultGuest::number_page(page, guest_.ram().mapped(page));
    }
    for (const auto& done : {guest_.arm(), guest_.refresh_present()}) {
      if (!done) return std::unexpected(done.error().text);
    }
    if (options_.is_source) return {};
    memory::MissingOf of;
    of.page_count = kFaultPages;
    auto paging = daemon::LivePaging::create(guest_, missing_file(), of, 1);
    static_cast<void>(memory::MissingPages::remove(missing_file()));
    if (!paging) return std::unexpected(paging.error().text);
    paging_ = std::move(*paging);
    noting_ = std::make_unique<NotingPaging>(*paging_, shared_);
    auto local = LocalPager::make(*options_.local);
    if (!local) return std::unexpected(local.error());
    local_ = std::make_unique<LocalPager>(std::move(*local));
    return {};
  }

  /// On the lcore.
  void run() {
    if (!options_.is_source) answer_from_here();
    loop_.run();
  }
  [[nodiscard]] const std::string& error() const { return error_; }

  // ---- the loop ----
  bool turn(Instant now) override {
    if (shared_.stop.load(std::memory_order_relaxed)) {
      loop_.stop();
      return false;
    }
    if (!added_ && (!options_.is_source || shared_.begin)) add(now);
    const bool found = path_.turn(now);
    if (noting_) {
      noting_->turn_over();
      if (options_.guest->done()) shared_.stop = true;
    }
    return found;
  }
  [[nodiscard]] Instant deadline() const override { return path_.deadline(); }

  // ---- the migration ----
  void on_ready_to_switch(Duration /*estimated_downtime*/) override {
    path_.inbox().post([this] {
      transfer::Source& source = *path_.find(kEndFlowId)->source();
      source.guest_stopped(port::now());
      source.device_state_end(port::now());
    });
  }
  void on_memory_ready(std::uint64_t /*pages_checked*/) override { options_.guest->begin(); }
  void on_failed(transfer::Failure /*failure*/, const std::string& text) override { fail(text); }
  void on_connection_lost(const std::string& text) override { fail(text); }

 private:
  void answer_from_here() {
    while (!shared_.stop && (!shared_.ready[1] || !port_.link_up())) ::usleep(1000);
    if (const auto answered = local_->answer(*options_.local); !answered) fail(answered.error());
    local_.reset();
  }

  void add(Instant now) {
    transfer::MigrationConfig config;
    config.regions = {{"ram0", kFaultPages}};
    config.epoch_base = kEpoch + 1;
    config.epoch_count = kEpochCount;
    std::unique_ptr<daemon::MigrationPart> part;
    if (options_.is_source) {
      transfer::Policy policy;
      policy.mode = transfer::Mode::kPostcopy;
      policy.bandwidth_limit_bps = options_.background ? 0 : 1;  // demand pages know no limit
      part = std::make_unique<daemon::MigrationPart>(daemon::SourceRole{config, policy, {memory_, table_, kEpoch}},
                                                     worker_, path_.inbox(), *this);
    } else {
      path_.watch(paging_);
      part = std::make_unique<daemon::MigrationPart>(
          daemon::DestinationRole{config, {memory_, std::nullopt, noting_.get()}}, worker_, path_.inbox(), *this);
    }
    path_.add(std::make_unique<daemon::MigrationFlow>(flow_config(options_, guest_), std::move(part),
                                                      daemon::MigrationFlow::Begin::kStart, now),
              now);
    added_ = true;
    shared_.begin = true;
  }

  void fail(const std::string& text) {
    if (error_.empty()) error_ = text;
    shared_.stop = true;
  }

  const FaultEndOptions& options_;
  FaultShared& shared_;
  port::Port& port_;
  daemon::LiveGuest guest_;
  NotingMemory memory_;
  pages::GenerationTable table_;
  std::shared_ptr<daemon::LivePaging> paging_;  // destination, and the next two
  std::unique_ptr<NotingPaging> noting_;
  std::unique_ptr<LocalPager> local_;
  daemon::DataPath path_;
  port::PollLoop loop_;
  daemon::Worker worker_;  // jobs use all of the above
  bool added_ = false;
  std::string error_;
};

/// Comes back only if it fails.
std::unexpected<std::string> run_checked(const FaultEndOptions& options, FaultShared& shared) {
  auto tracked = track(*options.guest);
  if (!tracked) return std::unexpected(tracked.error());
  if (options.is_source) wait_for_memif_server(shared.ready[0], shared.stop);
  auto parts = open_end_port(end_memif(options.socket, options.is_source, options.mtu), options.cpus);
  if (!parts) return std::unexpected(parts.error());
  FaultEnd end(options, shared, *parts, std::move(*tracked));
  if (auto prepared = end.prepare(); !prepared) return std::unexpected(prepared.error());
  shared.ready[options.is_source ? 1 : 0] = true;
  return run_on_end_lcore(
      *parts, [&] { end.run(); }, end.error());
}

}  // namespace

int run_fault_end(const FaultEndOptions& options, FaultShared& shared) {
  const auto done = run_checked(options, shared);
  tell_error(done.error(), shared.errors[options.is_source ? 1 : 0]);
  shared.stop = true;
  return 1;
}

}  // namespace godwit::perf
