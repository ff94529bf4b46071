// Goal: no sequence of moves, aborts, crashes and network faults ever lets a guest resume on memory that is not its
// own. Method: a VM moves between hosts that keep images; each attempt runs the real Source, Destination and Lanes
// (transfer_attempt.h). After every attempt each image that any host keeps is held against the running memory: a page
// that its table calls reusable must be equal.
//
//   transfer-sim [--seeds N] [--first S] [--seed S] [--large] [--trace]

#include <cstdio>
#include <optional>

#include "tests/simulation/seeds.h"
#include "tests/simulation/transfer_attempt.h"

namespace godwit::simulation {
namespace {

class World {
 public:
  World(std::uint64_t seed, bool large, bool trace);
  /// Empty, or what is wrong.
  std::string run();
  [[nodiscard]] std::uint64_t moves() const { return moves_; }
  [[nodiscard]] std::uint64_t trace_hash() const { return trace_hash_; }

 private:
  [[nodiscard]] Script draw_script();
  void draw_postcopy(Script& script);
  std::string attempt(std::size_t to);
  void committed(std::size_t to, AttemptResult& result, Image& arrived);
  void aborted(std::size_t to, AttemptResult& result, const Script& script);
  [[nodiscard]] std::string check_claims(const char* when) const;
  void visit();

  Random random_;
  const bool large_;
  const bool trace_;
  std::uint64_t page_count_;
  std::size_t here_ = 0;
  std::vector<std::optional<Image>> images_;  // by host; at here_ the running VM
  std::uint32_t epoch_ = 1;                   // of the visit
  std::uint32_t epochs_used_ = 1;             // the control plane's count
  std::uint64_t moves_ = 0;
  std::uint32_t attempts_ = 0;
  std::vector<Recorded> recorded_;  // of all attempts
  std::uint64_t trace_hash_ = 0;
};

World::World(std::uint64_t seed, bool large, bool trace)
    : random_(seed),
      large_(large),
      trace_(trace),
      page_count_(large ? random_.between(65, 1000) : random_.between(2, 130)),
      images_(random_.between(2, large ? 4 : 3)) {
  images_[0].emplace(page_count_, random_.below(2) == 0);
  for (std::uint64_t i = 0; i < page_count_; ++i) {
    images_[0]->memory->write(random_);
  }
  // A first attach: every present page has the visit's epoch.
  images_[0]->table.set_written(images_[0]->memory->written(), epoch_);
  images_[0]->memory->rearm();
}

Script World::draw_script() {
  Script script;
  using D = Script::Disturbance;
  if (random_.below(2) == 0) {
    script.disturbance = static_cast<D>(random_.between(1, static_cast<std::uint64_t>(D::kGuestErrorDestination)));
    script.disturbance_after =
        microseconds(static_cast<std::int64_t>(random_.below(random_.below(2) == 0 ? 5000 : 60'000)));
  }
  script.policy.verify = static_cast<transfer::Verify>(random_.below(3));
  script.policy.on_no_convergence = transfer::OnNoConvergence::kStopAnyway;
  script.policy.rounds_max = static_cast<std::uint32_t>(random_.between(1, 12));
  script.policy.downtime_limit = milliseconds(static_cast<std::int64_t>(random_.between(1, 300)));
  script.policy.bandwidth_limit_bps = random_.below(4) == 0 ? random_.between(50, 2000) * 1'000'000 : 0;
  script.policy.time_limit =
      random_.below(6) == 0 ? milliseconds(static_cast<std::int64_t>(random_.between(1, 100))) : Duration{0};
  script.write_interval = microseconds(
      static_cast<std::int64_t>(random_.below(2) == 0 ? random_.between(5, 100) : random_.between(100, 5000)));
  script.bulk_lanes = static_cast<std::uint32_t>(random_.between(1, 3));
  script.lcores = static_cast<std::uint32_t>(random_.between(1, script.bulk_lanes));
  constexpr std::array<std::uint32_t, 3> kDatagramBytes = {1472, 4240, 8972};
  script.datagram_bytes_max = kDatagramBytes[random_.below(3)];
  if (random_.below(2) == 0) {
    script.cipher = transport::Cipher::kNone;
    script.tear_ppm = random_.below(4) == 0 ? 1'000'000 : draw_rate(random_, 600'000, 300'000);
  }
  script.faults_end = microseconds(static_cast<std::int64_t>(random_.below(random_.below(2) == 0 ? 5000 : 60'000)));
  script.links = {draw_link(random_), draw_link(random_)};
  for (LinkConfig& link : script.links) {
    link.rate_bps = link.rate_bps == 0 ? random_.between(100, 10'000) * 1'000'000 : link.rate_bps;
  }
  script.pause_ppm = draw_rate(random_, 300'000, 10'000);
  script.stop_reading_ppm = draw_rate(random_, 200'000, 10'000);
  script.replay_ppm = draw_rate(random_, 500'000, 100'000);
  script.lane_dead = random_.below(8) == 0;
  script.mtu_shrinks = random_.below(6) == 0;
  constexpr std::array<std::uint32_t, 3> kNarrow = {1472, 1372, 1232};
  script.narrow_datagram_bytes = kNarrow[attempts_ % 3];
  script.shrinks_after = microseconds(static_cast<std::int64_t>(random_.below(20'000)));
  script.damage = script.policy.verify != transfer::Verify::kOff && random_.below(6) == 0;
  script.rot = script.policy.verify == transfer::Verify::kFull && random_.below(4) == 0;
  draw_postcopy(script);
  return script;
}

void World::draw_postcopy(Script& script) {
  using transfer::Mode;
  script.can_page = true;
  script.policy.mode = static_cast<Mode>(random_.below(4) % 3);
  if (script.policy.mode == Mode::kPrecopy) {
    script.can_page = random_.below(2) == 0;
    if (script.can_page && random_.below(3) == 0) {
      script.policy.on_no_convergence = transfer::OnNoConvergence::kPostcopy;
    }
  }
  script.policy.hybrid_rounds = static_cast<std::uint32_t>(random_.below(4));
  script.policy.hybrid_time =
      random_.below(3) == 0 ? milliseconds(static_cast<std::int64_t>(random_.between(1, 50))) : Duration{0};
  script.switch_after =
      random_.below(3) == 0 ? microseconds(static_cast<std::int64_t>(random_.between(1, 30'000))) : Duration{0};
  script.policy.pull_order = static_cast<transfer::PullOrderKind>(random_.below(3));
  for (std::uint64_t i = random_.below(6); i > 0; --i) {
    script.policy.pull_rank.push_back({random_.below(2 * page_count_), random_.below(page_count_)});
  }
  script.vcpus = static_cast<std::uint32_t>(random_.between(1, 6));
  script.breaks = static_cast<std::uint32_t>(random_.below(2) == 0 ? 0 : random_.between(1, large_ ? 8 : 3));
  script.refuse_one_in = static_cast<std::uint32_t>(random_.below(4) == 0 ? random_.between(2, 50) : 0);
  script.split = script.policy.mode != Mode::kPrecopy && random_.below(2) == 0;
}

void World::visit() {
  const std::uint64_t writes = random_.below(2) == 0 ? random_.below(10) : random_.below(300);
  for (std::uint64_t i = 0; i < writes; ++i) {
    random_.below(50) == 0 ? images_[here_]->memory->balloon(random_) : images_[here_]->memory->write(random_);
  }
}

std::string World::attempt(std::size_t to) {
  const Script script = draw_script();
  const bool has_retained = images_[to].has_value();
  if (!has_retained) {
    images_[to].emplace(page_count_, random_.below(2) == 0);
  }
  Image& source = *images_[here_];
  Image& destination = *images_[to];
  transfer::MigrationConfig config;
  const std::uint64_t first_pages = random_.between(1, page_count_ - 1);
  config.regions = {{"ram0", first_pages}, {"ram1", page_count_ - first_pages}};
  config.id.fill(static_cast<std::byte>(++attempts_));
  config.epoch_base = epochs_used_ + 1;
  config.epoch_count = static_cast<std::uint32_t>(random_.between(transfer::kEpochsMin, 64));
  epochs_used_ = config.epoch_base + config.epoch_count;
  if (script.damage) {
    destination.memory->damage_placement(random_.between(1, 60));
  }
  if (script.rot && has_retained) {
    destination.memory->flip_bit(random_.below(page_count_), random_.below(pages::kPageSize));
  }
  AttemptResult result =
      run_attempt({config, source, epoch_, destination, has_retained}, script, random_, recorded_, trace_);
  destination.memory->damage_placement(0);
  trace_hash_ = (trace_hash_ ^ result.trace_hash) * 0x100000001b3;
  if (!result.violation.empty()) {
    return result.violation;
  }
  // Commit needs both ends; the control plane may still say no when both are ready.
  // A destination that is killed when it has said its last word has no table any more, and is no destination.
  // Nor is one that was told to give up since: what stores have it claims no more.
  const bool both_done = result.memory_ready && result.source_done && !result.destination_killed &&
                         !(script.split && !result.destination_failure.empty());
  if (both_done && !(result.destination_table == source.table)) {
    return "tables: memory ready, but the two tables differ";
  }
  if (result.pulled || (both_done && random_.below(10) != 0)) {
    committed(to, result, destination);
  } else {
    aborted(to, result, script);
  }
  return {};
}

void World::committed(std::size_t to, AttemptResult& result, Image& arrived) {
  ++moves_;
  Image& left = *images_[here_];
  // Departure: a last scan, then the image is kept or not.
  left.table.set_written(left.memory->written(), result.epoch_next);
  left.memory->rearm();
  if (result.left_to_stores.size() != 0) {
    left.table.set_written(result.left_to_stores, pages::kUnknownGeneration);
  }
  arrived.table = std::move(result.destination_table);
  if (!result.pulled) {
    arrived.memory->rearm();  // else the visit began when its guest resumed
  }
  if (random_.below(6) == 0) {
    images_[here_].reset();
  }
  here_ = to;
  epoch_ = result.epoch_next;
}

void World::aborted(std::size_t to, AttemptResult& result, const Script& script) {
  const bool keep = !result.destination_killed && !script.damage && !script.rot && random_.below(4) != 0;
  if (keep) {
    images_[to]->table = std::move(result.destination_table);
    images_[to]->memory->rearm();
  } else {
    images_[to].reset();
  }
  if (result.source_killed) {
    // A new data plane attaches: the history is lost, and the control plane names an epoch above all that were
    // reserved.
    images_[here_]->table.fill(pages::kUnknownGeneration);
    images_[here_]->memory->rearm();
    epoch_ = ++epochs_used_;
  } else {
    epoch_ = result.epoch_next;
  }
}

std::string World::check_claims(const char* when) const {
  const Image& running = *images_[here_];
  const pages::Bitmap written = running.memory->written();
  for (std::size_t host = 0; host < images_.size(); ++host) {
    if (host == here_ || !images_[host]) {
      continue;
    }
    for (pages::PageNumber page = 0; page < page_count_; ++page) {
      const bool claimed =
          pages::reusable(images_[host]->table.get(page), running.table.get(page)) && !written.test(page);
      if (claimed && images_[host]->memory->page(page) != running.memory->page(page)) {
        return std::string("claims: ") + when + ", host " + std::to_string(host) + " claims page " +
               std::to_string(page) + " of generation " + std::to_string(running.table.get(page)) +
               ", and it is another";
      }
    }
  }
  return {};
}

std::string World::run() {
  const std::uint64_t attempts = large_ ? random_.between(4, 10) : random_.between(1, 3);
  for (std::uint64_t i = 0; i < attempts; ++i) {
    visit();
    const std::size_t to = (here_ + random_.between(1, images_.size() - 1)) % images_.size();
    if (trace_) {
      std::printf("attempt %llu: host %zu -> %zu, %llu pages, epoch %u\n", static_cast<unsigned long long>(i), here_,
                  to, static_cast<unsigned long long>(page_count_), epoch_);
    }
    for (const std::string& wrong : {attempt(to), check_claims("after the attempt")}) {
      if (!wrong.empty()) {
        return wrong + " (attempt " + std::to_string(i) + ")";
      }
    }
  }
  return {};
}

SeedResult run_seed(std::uint64_t seed, bool large, bool trace) {
  World world(seed, large, trace);
  SeedResult result;
  result.broken = world.run();
  result.completed = world.moves();
  result.trace_hash = world.trace_hash();
  return result;
}

}  // namespace
}  // namespace godwit::simulation

int main(int argc, char** argv) {
  return godwit::simulation::run_seeds(argc, argv, "A guest moves between hosts over a faulty network.",
                                       godwit::simulation::run_seed);
}
