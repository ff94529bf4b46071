#include "tests/simulation/generations_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "dataplane/pages/compare.h"
#include "dataplane/pages/table_codec.h"

namespace godwit::simulation {

namespace {

using pages::Bitmap;
using pages::Generation;
using pages::GenerationTable;
using pages::kUnknownGeneration;
using pages::PageNumber;

constexpr std::array<std::string_view, static_cast<std::size_t>(Mutation::kCount)> kNames{"none",
                                                                                          "without-epoch-raise",
                                                                                          "without-round-raise",
                                                                                          "unknown-is-equal",
                                                                                          "balloon-not-counted",
                                                                                          "generation-when-named",
                                                                                          "image-id-ignored",
                                                                                          "stray-write-takes-epoch",
                                                                                          "history-lost-ignored"};

/// Of a page: drawn anew by every write. 0 is a page of zeros.
using Version = std::uint64_t;
using Ram = std::vector<Version>;

struct Image {
  std::uint64_t image_id;
  Ram ram;
  GenerationTable table;
};

class Life {
 public:
  Life(std::uint64_t seed, Mutation mutation, Totals& totals)
      : random_(seed), mutation_(mutation), totals_(totals), page_count_(1 + below(40)), hosts_(2 + below(4)) {
    boot();
  }

  std::optional<std::string> live() {
    const std::uint64_t steps = 10 + below(50);
    for (step_ = 0; step_ < steps && violation_.empty(); ++step_) {
      act();
      if (violation_.empty()) check_images();
    }
    if (violation_.empty()) return std::nullopt;
    return fmt::format("step {}: {}", step_, violation_);
  }

 private:
  /// How far a round gets: a failure strikes after any of the steps before kDone.
  enum class Reach : std::uint8_t { kScanned, kNamed, kPartlyPlaced, kPlaced, kDone };

  std::uint64_t below(std::uint64_t bound) {
    return std::uniform_int_distribution<std::uint64_t>(0, bound - 1)(random_);
  }
  bool chance(std::uint64_t of) { return below(of) == 0; }

  void fail(std::string text) {
    if (violation_.empty()) violation_ = std::move(text);
  }

  void boot() {
    ++image_id_;
    // A new image id is a new history: its epochs start again.
    epoch_next_ = 1;
    epoch_ = epoch_next_++;
    oracle_.assign(page_count_, 0);
    for (Version& version : oracle_) version = chance(3) ? 0 : ++version_last_;
    ram_ = oracle_;
    table_ = GenerationTable(page_count_, epoch_);
    written_ = Bitmap(page_count_);
  }

  void act() {
    switch (below(16)) {
      case 0:
        hosts_[below(hosts_.size())].reset();  // its image dropped
        break;
      case 1:
        lose_history();
        break;
      case 2:
        if (chance(4)) boot();
        break;
      case 3:
      case 4:
        give_back();
        break;
      case 5:
      case 6:
      case 7:
      case 8:
        write_some();
        break;
      default:
        move();
    }
  }

  void write_some() {
    // Few pages again and again: what is written twice is where it goes wrong.
    for (std::uint64_t i = below(4); i > 0; --i) {
      const PageNumber page = chance(2) ? below(page_count_) : below(std::min<std::uint64_t>(page_count_, 3));
      oracle_[page] = ram_[page] = ++version_last_;
      written_.set(page);
    }
  }

  /// Balloon: the guest gives memory back, and it reads as zero.
  void give_back() {
    const PageNumber first = below(page_count_);
    const std::uint64_t count = std::min(1 + below(3), page_count_ - first);
    for (PageNumber page = first; page < first + count; ++page) oracle_[page] = ram_[page] = 0;
    if (mutation_ != Mutation::kBalloonNotCounted) written_.set_range(first, count);
  }

  /// Data plane and tracker are gone, the guest lives: nobody knows what was written. Both answers are sound:
  /// everything is of a new epoch, or everything is unknown.
  void lose_history() {
    written_.clear_all();
    if (mutation_ == Mutation::kHistoryLostIgnored) return;
    epoch_ = epoch_next_++;
    table_.fill(chance(2) ? epoch_ : kUnknownGeneration);
  }

  /// What was written since the last scan takes this epoch; tracking goes on.
  Bitmap scan(Generation epoch) {
    Bitmap found = written_;
    written_.clear_all();
    table_.set_written(found, epoch);
    return found;
  }

  Generation epoch_of_round(Generation base, std::uint32_t round) const {
    if (mutation_ == Mutation::kWithoutEpochRaise || round == 1) return epoch_;
    return mutation_ == Mutation::kWithoutRoundRaise ? base : base + round;
  }

  void visit_begins(Generation base, std::uint32_t round) {
    if (mutation_ == Mutation::kWithoutEpochRaise) return;
    epoch_next_ = base + round + 1;
    epoch_ = epoch_next_++;
  }

  Bitmap to_send(const GenerationTable& retained) {
    Bitmap out(page_count_);
    pages::find_not_reusable(retained, table_, out);
    if (mutation_ == Mutation::kUnknownIsEqual) {
      for (PageNumber page = 0; page < page_count_; ++page) {
        if (retained.get(page) == table_.get(page)) out.clear(page);
      }
    }
    return out;
  }

  /// The table as the other host has it after it crossed the wire.
  GenerationTable cross(const GenerationTable& table) {
    GenerationTable arrived(page_count_, kUnknownGeneration);
    std::vector<std::byte> piece;
    const pages::CodecOptions options{.link_bps = chance(8) ? std::uint64_t{1'000'000} : 0};
    for (PageNumber at = 0; at < page_count_;) {
      const PageNumber next = pages::encode_table_piece(table, at, options, piece);
      const auto decoded = pages::decode_table_piece(piece, at, arrived);
      if (!decoded || *decoded != next) {
        fail("the table codec lost its way");
        break;
      }
      at = next;
    }
    return arrived;
  }

  /// One round: `names` goes to the destination, which forgets those pages until they are placed.
  void send_round(Image& image, const Bitmap& names, const GenerationTable& generations, Reach reach) {
    if (reach == Reach::kScanned) return;
    if (mutation_ == Mutation::kGenerationWhenNamed) {
      image.table.set_from(names, generations);
    } else {
      image.table.set_written(names, kUnknownGeneration);
    }
    if (reach == Reach::kNamed) return;
    std::vector<PageNumber> order;
    names.for_each_run([&](PageNumber first, std::uint64_t count) {
      for (PageNumber page = first; page < first + count; ++page) order.push_back(page);
    });
    std::shuffle(order.begin(), order.end(), random_);
    if (reach == Reach::kPartlyPlaced) order.resize(below(order.size() + 1));
    for (const PageNumber page : order) {
      if (!stopped_ && chance(6)) write_some();
      if (!stopped_ && chance(30)) give_back();
      image.ram[page] = ram_[page];  // as it is when it is sent
      image.table.set(page, generations.get(page));
      ++totals_.pages_sent;
    }
  }

  /// What the destination starts from: its retained image, changed in place, or empty memory.
  Image take_image(std::optional<Image>& kept) {
    const bool usable = kept && (kept->image_id == image_id_ || mutation_ == Mutation::kImageIdIgnored);
    Image image = usable ? std::move(*kept)
                         : Image{image_id_, Ram(page_count_, 0), GenerationTable(page_count_, kUnknownGeneration)};
    image.image_id = image_id_;
    kept.reset();
    return image;
  }

  void move() {
    std::size_t destination = below(hosts_.size() - 1);
    if (destination >= here_) ++destination;
    Image image = take_image(hosts_[destination]);
    const Generation base = epoch_next_;
    const std::uint32_t rounds = 1 + static_cast<std::uint32_t>(below(4));
    // The round that fails, if any, and how far it gets.
    const bool aborts = chance(2);
    const std::uint32_t failing = aborts ? 1 + static_cast<std::uint32_t>(below(rounds + 2)) : 0;
    stopped_ = false;
    std::uint32_t round = 0;
    while (violation_.empty()) {
      ++round;
      const bool last = round == rounds + 2;  // after the stop there are two: once stopped, and what QEMU wrote after
      if (round > rounds) stop_guest(last);
      const Bitmap written = scan(epoch_of_round(base, round));
      const GenerationTable generations = round == 1 ? cross(table_) : table_;
      const Bitmap names = round == 1 ? to_send(cross(image.table)) : written;
      if (round == 1) totals_.pages_reused += page_count_ - names.count();
      const Reach reach = round == failing ? static_cast<Reach>(below(4)) : Reach::kDone;
      send_round(image, names, generations, reach);
      if (round == failing) return abort(base, round, destination, std::move(image));
      if (last) break;
      write_some();
    }
    if (violation_.empty()) commit(base, round, destination, std::move(image));
  }

  /// QEMU itself still writes after the guest has stopped: drained I/O, devices before they are saved.
  void stop_guest(bool last) {
    stopped_ = true;
    if (last && chance(2)) write_some();
  }

  void abort(Generation base, std::uint32_t round, std::size_t destination, Image image) {
    ++totals_.aborts;
    stopped_ = false;
    visit_begins(base, round);
    if (!chance(4)) hosts_[destination] = std::move(image);
  }

  void commit(Generation base, std::uint32_t round, std::size_t destination, Image image) {
    ++totals_.moves;
    for (PageNumber page = 0; page < page_count_; ++page) {
      if (image.ram[page] != oracle_[page]) {
        return fail(fmt::format("moved to host {} with page {} of version {} where {} is right", destination, page,
                                image.ram[page], oracle_[page]));
      }
    }
    // The source's QEMU wrote once more before it quit; nobody has that content, nor should.
    if (chance(3)) {
      const PageNumber page = below(page_count_);
      ram_[page] = ++version_last_;
      table_.set(page, mutation_ == Mutation::kStrayWriteTakesEpoch ? base + round + 1 : kUnknownGeneration);
    }
    hosts_[here_] = Image{image_id_, std::move(ram_), std::move(table_)};
    here_ = destination;
    ram_ = std::move(image.ram);
    table_ = std::move(image.table);
    written_.clear_all();
    stopped_ = false;
    visit_begins(base, round);
    if (mutation_ == Mutation::kWithoutEpochRaise) epoch_ = epoch_next_++;  // that of the departure is kept
  }

  /// Whatever a retained image claims is true: a page of the VM's generation, not written since, has the VM's content.
  void check_images() {
    for (std::size_t host = 0; host < hosts_.size(); ++host) {
      const auto& image = hosts_[host];
      if (!image || image->image_id != image_id_) continue;
      for (PageNumber page = 0; page < page_count_; ++page) {
        const Generation generation = table_.get(page);
        if (written_.test(page) || !pages::reusable(image->table.get(page), generation)) continue;
        if (image->ram[page] != oracle_[page]) {
          return fail(fmt::format("the image on host {} claims page {} of generation {}, but has version {}, not {}",
                                  host, page, generation, image->ram[page], oracle_[page]));
        }
      }
    }
  }

  std::mt19937_64 random_;
  Mutation mutation_;
  Totals& totals_;
  std::string violation_;
  std::uint64_t step_ = 0;

  std::uint64_t page_count_;
  std::vector<std::optional<Image>> hosts_;  // what each keeps
  Version version_last_ = 0;
  Ram oracle_;  // every page's content, whatever the hosts believe

  std::size_t here_ = 0;  // where the VM runs
  std::uint64_t image_id_ = 0;
  Generation epoch_ = 0;       // of this visit
  Generation epoch_next_ = 0;  // the first that was never used
  Ram ram_;
  GenerationTable table_;
  Bitmap written_;
  bool stopped_ = false;
};

}  // namespace

std::string_view name_of(Mutation mutation) { return kNames[static_cast<std::size_t>(mutation)]; }

std::optional<Mutation> mutation_named(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Mutation>(i);
  }
  return std::nullopt;
}

std::optional<std::string> simulate(std::uint64_t seed, Mutation mutation, Totals& totals) {
  return Life(seed, mutation, totals).live();
}

}  // namespace godwit::simulation
