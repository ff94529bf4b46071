#pragma once
// What the simulation of transfers puts in place of a host: a guest's memory with its written set, an executor in
// virtual time, and the two images (running, retained) that hosts keep. Single thread; every choice from one Random.

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/memory/known_hashes.h"
#include "dataplane/pages/compare.h"
#include "dataplane/pages/generation_table.h"
#include "dataplane/transfer/executor.h"
#include "dataplane/transfer/guest.h"
#include "simulation/network.h"

namespace godwit::simulation {

using PageContent = std::array<std::byte, pages::kPageSize>;

/// RAM of one VM on one host. Writes by the guest are marked, or found by comparing content; placements by a migration
/// are not.
class ModelMemory final : public transfer::GuestMemory {
 public:
  explicit ModelMemory(std::uint64_t page_count, bool compares_content = false)
      : pages_(page_count), written_(page_count), known_(page_count), compares_content_(compares_content) {}

  // ---- the guest ----
  void write(Random& random);
  void write_page(pages::PageNumber page, Random& random);
  void balloon(Random& random);
  /// A word of these bytes of RAM.
  void write_at(std::span<const std::byte> bytes, Random& random);
  /// A page gets content that it had before a late write.
  void write_back(Random& random);
  void give_back(pages::PageNumber first, std::uint64_t count);
  void fill(pages::PageNumber page, std::byte value) {
    pages_[page].fill(value);
    written_.set(page);
  }
  /// Called with each page that the guest is about to write or give back; null: nobody is.
  void on_touch(std::function<void(pages::PageNumber)> touch) { touch_ = std::move(touch); }
  void rearm();
  /// What collect_written() would find.
  [[nodiscard]] pages::Bitmap written() const;
  [[nodiscard]] const PageContent& page(pages::PageNumber page) const { return pages_[page]; }
  [[nodiscard]] bool same_content(const ModelMemory& other) const { return pages_ == other.pages_; }
  [[nodiscard]] pages::PageNumber first_difference(const ModelMemory& other) const;

  // ---- faults ----
  void flip_bit(pages::PageNumber page, std::size_t byte) { pages_[page][byte] ^= std::byte{1}; }
  /// The n-th placement from now is damaged silently.
  void damage_placement(std::uint64_t n) { damage_in_ = n; }
  void fail_next_call(bool fail = true) { fail_next_ = fail; }
  /// From now on every page reads as zero. `noticed`: by an access, else only who looks finds out.
  void lose(bool noticed) {
    std::fill(pages_.begin(), pages_.end(), PageContent{});
    lost_ = true;
    damaged_ = noticed;
  }
  /// By a migration, whole.
  void place(pages::PageNumber page, std::span<const std::byte> content) {
    placed_while_frozen_ = placed_while_frozen_ || frozen_;
    std::copy(content.begin(), content.end(), pages_.at(page).begin());
    known_.set(page, pages::hash_page(pages_[page]));
  }
  /// A placement from now on is a bug: the object was told that the end has failed.
  void freeze() { frozen_ = true; }
  void thaw() { frozen_ = false; }
  [[nodiscard]] bool frozen() const { return frozen_; }
  [[nodiscard]] bool placed_while_frozen() const { return placed_while_frozen_; }

  [[nodiscard]] std::uint64_t place_calls() const { return place_calls_; }

  // ---- GuestMemory ----
  [[nodiscard]] pages::PageNumber page_count() const override { return pages_.size(); }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override {
    return compares_content_ && !hash_in_tag ? std::span<const std::byte>() : pages_.at(page);
  }
  [[nodiscard]] bool compares_content() const override { return compares_content_; }
  void note_sent(pages::PageNumber page, pages::PageHash hash) override { known_.note_sent(page, hash); }
  std::expected<void, transfer::GuestError> place_pages(std::span<const transfer::Arrival> arrivals) override;
  std::expected<void, transfer::GuestError> zero_pages(pages::PageNumber first, std::uint64_t count) override;
  std::expected<void, transfer::GuestError> collect_written(pages::Bitmap& out) override;
  std::expected<void, transfer::GuestError> find_zero(const pages::Bitmap& among, pages::Bitmap& out) override;
  [[nodiscard]] bool damaged() const override { return damaged_; }
  [[nodiscard]] std::expected<void, transfer::GuestError> check_whole() const override;

 private:
  struct Earlier {
    pages::PageNumber page;
    PageContent content;
  };
  [[nodiscard]] std::expected<void, transfer::GuestError> fault(const char* call);
  void keep(pages::PageNumber page);
  void touch(pages::PageNumber page) {
    if (touch_) {
      touch_(page);
    }
  }

  std::function<void(pages::PageNumber)> touch_;
  std::vector<PageContent> pages_;
  pages::Bitmap written_;
  memory::KnownHashes known_;
  std::deque<Earlier> earlier_;  // the last few that were overwritten
  bool compares_content_;
  std::uint64_t damage_in_ = 0, place_calls_ = 0;
  bool fail_next_ = false, frozen_ = false, placed_while_frozen_ = false;
  bool lost_ = false, damaged_ = false;
};

/// Jobs run one after the other, each as a whole at one moment between submission and the call of `done`.
class ModelExecutor final : public transfer::Executor {
 public:
  explicit ModelExecutor(Random& random) : random_(random) {}
  void submit(std::function<void()> work, std::function<void()> done) override;
  void set_now(Instant now) { now_ = now; }
  [[nodiscard]] Instant next() const {
    return queue_.empty() ? kNever : queue_.front().worked ? queue_.front().done_at : queue_.front().work_at;
  }
  void run(Instant now);
  /// Everything to its end at once: the daemon waits for its worker before it gives memory away.
  void drain();
  [[nodiscard]] std::size_t waiting_max() const { return waiting_max_; }
  /// When the last one is done; long ago if there is none.
  [[nodiscard]] Instant last() const { return queue_.empty() ? Instant{} : queue_.back().done_at; }

 private:
  struct Job {
    std::function<void()> work, done;
    Instant work_at, done_at;
    bool worked = false;
  };
  Random& random_;
  Instant now_{};
  std::deque<Job> queue_;
  std::size_t waiting_max_ = 0;
};

/// A VM's memory and its generations on one host.
struct Image {
  Image(std::uint64_t page_count, bool compares_content)
      : memory(std::make_unique<ModelMemory>(page_count, compares_content)), table(page_count, pages::kNeverWritten) {}
  std::unique_ptr<ModelMemory> memory;
  pages::GenerationTable table;
};

}  // namespace godwit::simulation
