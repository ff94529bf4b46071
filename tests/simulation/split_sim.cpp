// Goal: whatever links, stores and daemons do, a page of a split VM that comes back is what the guest wrote last, and
// no page is ever without a place. Method: a model of a guest within its budget; the real MainHost, SubHost, PageStore
// and lanes over links with faults; links end and begin again, either end is restarted, a store fills up, is drained or
// lost, one that has been drained is dropped and made anew, the main host is held as before a move. In the end all is
// healed: every place that the directory names has the last content, what is held comes to rest, what is drained gets
// empty, and everything comes back.
//
//   split-sim [--seeds N] [--first S] [--seed S] [--large] [--trace]

#include <unistd.h>

#include <array>
#include <cstdio>
#include <deque>
#include <memory>

#include "dataplane/daemon/store_access.h"
#include "dataplane/placement/rebuild.h"
#include "dataplane/split/main_host.h"
#include "dataplane/split/sub_host.h"
#include "tests/simulation/seeds.h"
#include "tests/simulation/split_guest_model.h"

namespace godwit::simulation {
namespace {

constexpr std::uint64_t kStoreBytes = 5U << 20;  // 1024 pages: how many it takes is the scenario's to say

/// A store on a sub host, which outlives its daemon.
class SubModel final : public split::StoreAccess {
 public:
  SubModel(std::size_t index, std::uint64_t pages_max) : pages_max_(pages_max) {
    options_.records_file = "/dev/shm/godwit-split-sim-" + std::to_string(getpid()) + "-" + std::to_string(index);
    options_.pages_file = options_.records_file + "-pages";
    options_.budget_bytes = kStoreBytes;
    make();
  }
  ~SubModel() override {
    unlink(options_.records_file.c_str());
    unlink(options_.pages_file.c_str());
  }
  void make() {
    close();
    store_.emplace(std::move(memserver::PageStore::create(options_).value()));
    open_access();
  }
  void reopen() {
    close();
    store_.emplace(std::move(memserver::PageStore::open(options_).value()));
    open_access();
  }
  [[nodiscard]] bool has(pages::PageNumber page, split::Version version, std::span<const std::byte> content) {
    std::vector<std::byte> bytes(pages::kPageSize);
    const auto held = access_->get(page, std::span(bytes).first<pages::kPageSize>());
    return held && *held == version && std::ranges::equal(bytes, content);
  }

  split::PutResult put(pages::PageNumber page, split::Version version, pages::PageBytes content) override {
    if (store_->stats().pages >= pages_max_) {
      return split::PutResult::kFull;
    }
    return access_->put(page, version, content);
  }
  std::expected<std::optional<split::Version>, std::string> get(pages::PageNumber page,
                                                                pages::MutablePageBytes out) override {
    return access_->get(page, out);
  }
  void remove(pages::PageNumber page, split::Version version) override { access_->remove(page, version); }
  bool list(std::uint64_t& cursor, std::vector<split::Entry>& out) const override { return access_->list(cursor, out); }

 private:
  void close() {
    access_.reset();
    store_.reset();
  }
  void open_access() { access_.emplace(*store_, *store_->add_vm(memory::Id{std::byte{1}})); }

  const std::uint64_t pages_max_;
  memserver::StoreOptions options_;
  std::optional<memserver::PageStore> store_;
  std::optional<daemon::PageStoreAccess> access_;
};

/// Both ends of a flow in one of its lives.
struct Flow {
  std::unique_ptr<split::SubHost> sub;
  std::array<std::unique_ptr<transport::Lane>, 2> main_lanes, sub_lanes;
};

class World final : public split::MainEvents, public placement::World {
 public:
  World(std::uint64_t seed, bool large, bool trace);
  ~World() override { end_flows(); }
  std::string run();
  [[nodiscard]] std::uint64_t placed() const { return guest_.placed; }
  [[nodiscard]] std::uint64_t trace_hash() const { return trace_hash_; }

  void on_sub_lost(split::SubId sub, const std::string& why) override {
    note("sub " + std::to_string(sub) + " lost: " + why);
    begin_at_[sub] = now_ + microseconds(static_cast<std::int64_t>(random_.below(5000)));
  }
  void on_sub_full(split::SubId sub) override { note("sub " + std::to_string(sub) + " is full"); }
  void on_pages_lost(split::SubId sub, std::uint64_t pages) override {
    note("sub " + std::to_string(sub) + " lost pages: " + std::to_string(pages));
    verdict_.require(may_lose_, "nothing-lost", "the main host gave pages up, and every store had what it was given");
  }

  void on_blocked(std::uint64_t pages) override {
    note("blocked by " + std::to_string(pages));
    verdict_.require(blocked_ != (pages != 0), "blocked", "is told what it was told before");
    blocked_ = pages != 0;
  }

  bool main_has_last(pages::PageNumber page) const override {
    std::vector<std::byte> bytes(pages::kPageSize);
    return !guest_.is_missing(page) || guest_.is_lost(page) ||
           (guest_.find_leaving(page, std::span(bytes).first<pages::kPageSize>()) && bytes == guest_.truth(page));
  }
  bool sub_has_last(split::SubId sub, pages::PageNumber page) const override {
    const auto copy = copies_.get(page);
    return copy && copy->sub == sub && subs_[sub]->has(page, copy->version, guest_.truth(page));
  }
  bool last_is_zero(pages::PageNumber page) const override { return guest_.is_zero(page); }

 private:
  void note(const std::string& what) {
    for (const char c : what) {
      trace_hash_ = (trace_hash_ ^ static_cast<unsigned char>(c)) * std::uint64_t{0x100000001b3};
    }
    if (trace_) {
      std::printf("%12lld %s\n", static_cast<long long>(now_.ns / 1000), what.c_str());
    }
  }
  void start_main();
  void begin_flow(split::SubId sub);
  void end_flow(split::SubId sub);
  void end_flows();
  void disturb();
  void lose_store(split::SubId sub);
  void drain(split::SubId sub);
  void drop_drained();
  void check_drained();
  void hold(bool on);
  void check_rest();
  void check_comes_to_rest();
  void act();
  void step(Instant until);
  void settle(Duration time);
  void finish();
  void check_directory();

  Random random_;
  const bool trace_;
  Verdict verdict_;
  const std::uint64_t page_count_;
  SplitGuestModel guest_;
  std::vector<std::byte> copies_memory_;
  split::PageCopies copies_;
  std::unique_ptr<split::MainHost> main_;
  std::vector<std::unique_ptr<SubModel>> subs_;
  std::vector<std::optional<Flow>> flows_;
  std::vector<Instant> begin_at_;
  std::vector<bool> draining_;
  const std::uint64_t pages_max_;  // of a store
  Network network_;
  std::vector<std::array<std::size_t, 2>> links_;  // to the sub, to the main host
  const std::uint32_t datagram_bytes_;
  Instant now_{1'000'000};
  std::uint32_t lives_ = 0;
  std::deque<std::vector<pages::PageNumber>> posted_;  // evicted, not told to the main host yet
  bool may_lose_ = false;
  bool blocked_ = false;
  bool copies_lost_ = false;
  bool held_ = false;
  std::vector<split::Version> held_at_rest_;  // of missing pages; empty: not at rest
  std::uint64_t trace_hash_ = 0xcbf29ce484222325ULL;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(9000);
};

constexpr std::array<std::uint32_t, 3> kDatagramBytes = {1472, 4240, 8972};

World::World(std::uint64_t seed, bool large, bool trace)
    : random_(seed),
      trace_(trace),
      page_count_(random_.between(4, large ? 600 : 150)),
      guest_(page_count_, random_.between(page_count_ / 4 + 1, page_count_), random_.between(16, 80), verdict_),
      copies_memory_(split::PageCopies::bytes(page_count_)),
      copies_(copies_memory_, page_count_),
      begin_at_(random_.between(1, 3)),
      draining_(begin_at_.size()),
      pages_max_(random_.below(3) == 0 ? page_count_ / random_.between(2, 8) + 1 : page_count_ * 2),
      network_(seed * 31 + 7),
      datagram_bytes_(kDatagramBytes[random_.below(3)]) {
  flows_.resize(begin_at_.size());
  for (std::size_t sub = 0; sub < begin_at_.size(); ++sub) {
    subs_.push_back(std::make_unique<SubModel>(sub, pages_max_));
    links_.push_back({network_.add_link(draw_link(random_)), network_.add_link(draw_link(random_))});
  }
  start_main();
}

void World::start_main() {
  copies_lost_ = copies_lost_ || (lives_ > 0 && !may_lose_ && random_.below(4) == 0);
  if (copies_lost_) {
    note("its copies are lost");
    std::ranges::fill(copies_memory_, std::byte{0});
  }
  main_ = std::make_unique<split::MainHost>(guest_, copies_, guest_.missing(), *this,
                                            copies_lost_ ? split::Copies::kLost : split::Copies::kKept, [this] {
                                              note("and found again");
                                              copies_lost_ = false;
                                            });
  blocked_ = false;
  for (std::size_t sub = 0; sub < subs_.size(); ++sub) {
    main_->add_sub(static_cast<split::SubId>(sub), {static_cast<std::byte>(sub + 1)});
    main_->drain(static_cast<split::SubId>(sub), draining_[sub]);
  }
  main_->demand(guest_.take_asked_again());
}

void World::begin_flow(split::SubId sub) {
  end_flow(sub);
  note("sub " + std::to_string(sub) + " begins");
  begin_at_[sub] = kNever;
  Flow& flow = flows_[sub].emplace();
  flow.sub =
      std::make_unique<split::SubHost>(*subs_[sub], split::StoreId{static_cast<std::byte>(sub + 1)}, page_count_);
  ++lives_;
  transport::LaneUser& user = main_->begin_link(sub);
  for (std::uint16_t lane = 0; lane < 2; ++lane) {
    transport::LaneConfig config;
    config.lane = lane;
    config.datagram_bytes_max = datagram_bytes_;
    config.peer_timeout = milliseconds(200);
    config.secret[0] = static_cast<std::byte>(lives_);
    config.secret[1] = static_cast<std::byte>(lives_ >> 8);
    config.local_flow_id = 1;
    config.peer_flow_id = 2;
    config.initiator = true;
    flow.main_lanes[lane] = std::make_unique<transport::Lane>(config, user, now_);
    std::swap(config.local_flow_id, config.peer_flow_id);
    config.initiator = false;
    flow.sub_lanes[lane] = std::make_unique<transport::Lane>(config, *flow.sub, now_);
  }
  main_->start_link(now_, sub, *flow.main_lanes[0], *flow.main_lanes[1]);
  flow.sub->start(now_, *flow.sub_lanes[0], *flow.sub_lanes[1]);
}

void World::end_flow(split::SubId sub) {
  if (main_ && flows_[sub]) {
    main_->end_link(sub);
  }
  flows_[sub].reset();
}

void World::end_flows() {
  for (std::size_t sub = 0; sub < flows_.size(); ++sub) {
    end_flow(static_cast<split::SubId>(sub));
  }
}

/// The host of a store is started anew: exactly what it alone had is gone.
void World::lose_store(split::SubId sub) {
  note("sub " + std::to_string(sub) + " loses its store");
  end_flow(sub);
  may_lose_ = true;
  std::vector<std::byte> bytes(pages::kPageSize);
  for (pages::PageNumber page = 0; page < page_count_; ++page) {
    const auto copy = copies_.get(page);
    if (guest_.wants(page) && !guest_.find_leaving(page, std::span(bytes).first<pages::kPageSize>()) && copy &&
        copy->sub == sub) {
      guest_.lose(page);
    }
  }
  subs_[sub]->make();
  begin_at_[sub] = now_;
}

/// Begins or ends it.
void World::drain(split::SubId sub) {
  draining_[sub] = !draining_[sub];
  note("sub " + std::to_string(sub) + (draining_[sub] ? " is to be drained" : " is not drained any more"));
  main_->drain(sub, draining_[sub]);
}

/// What has been drained is not needed by anybody: its store goes, and an empty one comes under the same number.
void World::drop_drained() {
  for (std::size_t at = 0; at < subs_.size(); ++at) {
    const auto sub = static_cast<split::SubId>(at);
    if (!main_->remove_sub(sub)) {
      continue;
    }
    note("sub " + std::to_string(sub) + " is dropped");
    flows_[sub].reset();
    subs_[sub]->make();
    draining_[sub] = false;
    main_->add_sub(sub, {static_cast<std::byte>(sub + 1)});
    begin_at_[sub] = now_ + microseconds(static_cast<std::int64_t>(random_.below(5000)));
  }
}

void World::disturb() {
  const auto sub = static_cast<split::SubId>(random_.below(subs_.size()));
  switch (random_.below(40)) {
    case 0:
    case 1:
    case 2:
      note("flow of sub " + std::to_string(sub) + " is begun again");
      begin_at_[sub] = now_;
      break;
    case 3:
    case 4:
      note("sub " + std::to_string(sub) + " is restarted");
      end_flow(sub);
      subs_[sub]->reopen();
      begin_at_[sub] = now_ + milliseconds(static_cast<std::int64_t>(random_.below(20)));
      break;
    case 5:
    case 6:
      note("main host is restarted");
      end_flows();
      main_.reset();
      posted_.clear();
      guest_.restart();
      start_main();
      hold(false);
      std::ranges::fill(begin_at_, now_);
      break;
    case 7:
      if (random_.below(10) == 0 && !copies_lost_) {
        lose_store(sub);
      }
      break;
    case 8:
      network_.link(links_[sub][random_.below(2)]) = draw_link(random_);
      break;
    case 9:
      network_.link(links_[sub][random_.below(2)]).blackhole = random_.below(2) == 0;
      break;
    case 10:
      drain(sub);
      break;
    case 11:
      if (!held_) {
        drop_drained();
      }
      break;
    case 12:
    case 13:
      hold(!held_);
      break;
    default:
      break;
  }
}

/// As before a move: nobody evicts until it ends.
void World::hold(bool on) {
  note(on ? "is held" : "is not held any more");
  if (on) {
    posted_.push_back(guest_.finish_eviction());
  }
  for (; on && !posted_.empty(); posted_.pop_front()) {
    main_->evicted(posted_.front());
  }
  held_ = on;
  held_at_rest_.clear();
  main_->hold(on);
}

/// Once it rests, what is missing stays where it says that it is, in that version.
void World::check_rest() {
  if (!held_ || !main_->at_rest()) {
    return;
  }
  const bool first = held_at_rest_.empty();
  held_at_rest_.resize(page_count_);
  for (pages::PageNumber page = 0; page < page_count_; ++page) {
    const auto copy = copies_.get(page);
    const split::Version version = guest_.is_missing(page) && copy ? copy->version : 0;
    verdict_.require(first || version == 0 || version == held_at_rest_[page], "rest",
                     "page " + std::to_string(page) + " is elsewhere than it was when the main host came to rest");
    held_at_rest_[page] = version;
  }
}

/// Something of what the guest, QEMU and the evictor do.
void World::act() {
  const pages::PageNumber page = random_.below(page_count_);
  switch (random_.below(12)) {
    case 0:
      if (!guest_.is_lost(page)) {
        guest_.remove(page);
      }
      break;
    case 1:
    case 2:
    case 3:
      if (!held_) {
        guest_.begin_eviction(random_);
      }
      break;
    case 4:
    case 5:
      posted_.push_back(guest_.finish_eviction());
      break;
    case 6:
    case 7:
      if (!posted_.empty()) {
        main_->evicted(posted_.front());
        posted_.pop_front();
      }
      break;
    case 8:
      guest_.no_room(random_.below(3) == 0);
      break;
    default:
      for (std::uint64_t next = page; next < std::min(page_count_, page + random_.between(1, 6)); ++next) {
        if (guest_.touch(next, random_)) {
          main_->demand({&next, 1});
        }
      }
      break;
  }
}

/// All that happens up to then, and at that moment.
void World::step(Instant until) {
  while (!verdict_.broken()) {
    Instant next = std::min(network_.next_delivery(), main_->deadline());
    for (std::size_t sub = 0; sub < flows_.size(); ++sub) {
      next = std::min(next, begin_at_[sub]);
      if (flows_[sub]) {
        next = std::min(next, flows_[sub]->sub->deadline());
        for (std::size_t lane = 0; lane < 2; ++lane) {
          next = std::min({next, flows_[sub]->main_lanes[lane]->deadline(), flows_[sub]->sub_lanes[lane]->deadline()});
        }
      }
    }
    if (next > until) {
      now_ = until;
      return;
    }
    now_ = std::max(now_ + microseconds(1), next);
    while (auto delivered = network_.receive(now_)) {
      for (std::size_t sub = 0; sub < flows_.size(); ++sub) {
        const bool to_sub = delivered->link == links_[sub][0];
        if (flows_[sub] && (to_sub || delivered->link == links_[sub][1]) && delivered->bytes.size() > 2) {
          auto& lanes = to_sub ? flows_[sub]->sub_lanes : flows_[sub]->main_lanes;
          lanes[static_cast<std::size_t>(delivered->bytes[2]) % 2]->on_packet(now_, delivered->bytes);
        }
      }
      network_.recycle(std::move(delivered->bytes));
    }
    main_->turn(now_);
    check_rest();
    for (std::size_t sub = 0; sub < flows_.size(); ++sub) {
      if (begin_at_[sub] <= now_) {
        begin_flow(static_cast<split::SubId>(sub));
      }
      if (!flows_[sub]) {
        continue;
      }
      if (const auto why = flows_[sub]->sub->turn(now_)) {
        note("at sub " + std::to_string(sub) + ": " + *why);
        begin_at_[sub] = std::min(begin_at_[sub], now_ + milliseconds(1));
      }
      for (std::size_t lane = 0; lane < 2; ++lane) {
        for (const bool to_sub : {true, false}) {
          transport::Lane& its = to_sub ? *flows_[sub]->main_lanes[lane] : *flows_[sub]->sub_lanes[lane];
          if (its.deadline() <= now_) {
            its.tick(now_);
          }
          while (const std::size_t length = its.poll_transmit(now_, std::span(buffer_).first(datagram_bytes_))) {
            network_.send(now_, links_[sub][to_sub ? 0 : 1], std::span(buffer_).first(length));
          }
        }
      }
    }
  }
}

void World::settle(Duration time) {
  for (const Instant end = now_ + time; now_ < end && !verdict_.broken();) {
    if (!posted_.empty()) {
      main_->evicted(posted_.front());
      posted_.pop_front();
    }
    step(now_ + milliseconds(1));
  }
}

/// The directory counts for missing pages alone.
void World::check_directory() {
  placement::PageDirectory counts(page_count_);
  for (pages::PageNumber page = 0; page < page_count_; ++page) {
    if (guest_.is_missing(page) && !guest_.is_lost(page) && main_->directory().place(page) == placement::Place::kHeld) {
      GW_ASSERT(counts.set_held(page, 1, main_->directory().holders(page)));
    }
  }
  const pages::PageNumber wrong = placement::first_misplaced(counts, *this);
  if (wrong < page_count_) {
    const auto copy = copies_.get(wrong);
    verdict_.require(false, "directory",
                     "page " + std::to_string(wrong) + " is not where it says: missing " +
                         std::to_string(guest_.is_missing(wrong)) + ", its copy is of sub " +
                         (copy ? std::to_string(copy->sub) + ", version " + std::to_string(copy->version) : "-"));
  }
}

/// With all healed, a store is drained if the others have room.
void World::check_drained() {
  const bool room = std::ranges::find(draining_, false) != draining_.end() && pages_max_ > page_count_;
  for (std::size_t sub = 0; sub < subs_.size(); ++sub) {
    verdict_.require(!draining_[sub] || !room || may_lose_ || main_->sub_stats(static_cast<split::SubId>(sub)).drained,
                     "drained", "sub " + std::to_string(sub) + " is not drained, and the others have room");
  }
}

/// With all healed it does, though there is no room for anything to come back.
void World::check_comes_to_rest() {
  if (may_lose_ || pages_max_ <= page_count_ || std::ranges::find(draining_, false) == draining_.end()) {
    return;
  }
  guest_.begin_eviction(random_);
  guest_.no_room(true);
  hold(true);
  settle(milliseconds(1000));
  verdict_.require(main_->at_rest(), "comes-to-rest", "pages are still on their way out");
  hold(false);
  guest_.no_room(false);
}

void World::finish() {
  note("healed");
  if (held_) {
    hold(false);
  }
  posted_.push_back(guest_.finish_eviction());
  network_.heal();
  for (const auto& pair : links_) {
    for (const std::size_t link : pair) {
      network_.link(link).blackhole = false;
    }
  }
  guest_.no_room(false);
  settle(milliseconds(3000));
  check_directory();
  verdict_.require(blocked_ == guest_.waits_for_good(), "blocked", "whether the guest can go on is not what it says");
  check_comes_to_rest();
  guest_.all_may_come();
  settle(milliseconds(1000));  // what somebody waits for comes before it can move
  check_drained();
  drop_drained();
  note("gathers");
  main_->gather(true);
  settle(milliseconds(3000));
  for (pages::PageNumber page = 0; page < page_count_; ++page) {
    verdict_.require(!guest_.is_missing(page) || guest_.is_lost(page), "comes-back",
                     "page " + std::to_string(page) + " does not come");
  }
  verdict_.require(guest_.all_leaving().empty() || may_lose_, "comes-back", "pages are still on their way out");
}

std::string World::run() {
  for (std::uint64_t i = random_.between(100, 1500); i > 0 && !verdict_.broken(); --i) {
    act();
    disturb();
    step(now_ + microseconds(static_cast<std::int64_t>(random_.below(random_.below(20) == 0 ? 20'000 : 400))));
  }
  if (!verdict_.broken()) {
    finish();
  }
  return verdict_.text();
}

SeedResult run_seed(std::uint64_t seed, bool large, bool trace) {
  World world(seed, large, trace);
  SeedResult result;
  result.broken = world.run();
  result.trace_hash = world.trace_hash();
  result.completed = world.placed();
  return result;
}

}  // namespace
}  // namespace godwit::simulation

int main(int argc, char** argv) {
  return godwit::simulation::run_seeds(argc, argv, "split VMs: main host and page stores, with faults",
                                       &godwit::simulation::run_seed);
}
