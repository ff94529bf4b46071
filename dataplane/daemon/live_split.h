#pragma once
// A guest that runs here within a resident budget: pager, evictor on a thread of its own, pages on their way out, and
// the main host's side of its stores (split/main_host.h), put together.
//
// Shared by the guest and the home lcore; the guest's LiveGuest outlives it. Threads: what each part says; the
// evictor's tells the lcore through its inbox. Units: pages. Failure: memory::Error at the beginning; later problem(),
// one line, after which pages that are away stay away.
//
// When its main part moves, the stores stay (transfer/kept_stores.h). At the source hold() comes before: nothing leaves
// its memory any more, and the budget holds all the same (widen_room()). If it is still above its budget it goes on to
// shrink during round 1, and is brought to rest after it. The destination begins with arrive(): as soon
// as all is announced the three files lie there as if a former process had left them, and SplitGuest goes on with them.
// Meanwhile pages are pulled from the source, too: those are the pager's awaited ones, and LivePaging places them.
//
// Three files on tmpfs outlive the daemon: what is missing, what is on its way out, and where the rest is. The first is
// armed last, so that it is never there without the others. If the last cannot be believed it is made anew from what
// the stores list, and is left to a successor once it is whole.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <expected>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/uuid.h"
#include "dataplane/daemon/fault_watch.h"
#include "dataplane/daemon/inbox.h"
#include "dataplane/daemon/live_guest.h"
#include "dataplane/memory/coldest_first.h"
#include "dataplane/memory/demand_pager.h"
#include "dataplane/memory/evictor.h"
#include "dataplane/memory/guest_state_file.h"
#include "dataplane/memory/highest_first.h"
#include "dataplane/memory/leaving_pages.h"
#include "dataplane/split/main_host.h"
#include "dataplane/transfer/kept_stores.h"

namespace godwit::daemon {

constexpr std::uint64_t kBudgetBytesMin = 16U << 20;  // of a resident budget

struct SplitLimits {
  std::uint64_t budget_pages = 0;
  std::uint64_t high_pages = 0;  // eviction begins above
  std::uint64_t low_pages = 0;   // and goes on down to
  bool gather = false;           // no budget, and all comes back
  memory::EvictionOrder order = memory::EvictionOrder::kColdestFirst;
};

struct SplitFigures {
  memory::PagerStats pager;
  memory::EvictorStats evictor;
  split::MainStats main;
  std::map<split::SubId, split::SubStats> subs;
  std::uint64_t leaving_pages = 0;
};

/// What it tells, on the home lcore.
struct SplitTold {
  std::function<void(split::SubId sub, const std::string& why)> sub_lost;
  std::function<void(split::SubId sub)> sub_full;
  std::function<void(split::SubId sub, std::uint64_t pages)> pages_lost;
  std::function<void(std::uint64_t pages)> blocked;
  std::function<void()> gathered;  // again and again, until it is ended or not to be gathered
};

class LiveSplit final : public split::MainMemory,
                        public FaultWatch,
                        public split::MainEvents,
                        public transfer::KeptStores,
                        public transfer::TakenStores {
 public:
  /// Of what a former process left.
  static bool left_behind(const std::string& directory, const Id128& vm);
  static void remove_files(const std::string& directory, const Id128& vm);

  // ---- jobs; `lcores`: that may place pages ----
  /// Nothing is missing yet; from here on faults wait for the lcore.
  static std::expected<std::shared_ptr<LiveSplit>, memory::Error> create(LiveGuest& guest, const std::string& directory,
                                                                         const memory::MissingOf& of,
                                                                         memory::PinPipe pipe);
  /// What is missing stays so, and faults wait; continue_with() must follow.
  static std::expected<std::shared_ptr<LiveSplit>, memory::Error> take_over(LiveGuest& guest,
                                                                            const std::string& directory,
                                                                            const memory::MissingOf& of,
                                                                            std::uint32_t lcores);
  /// A guest that still arrives, split: nothing is missing yet, and nothing waits before settle() and the pager's
  /// arm(). The budget holds from SplitGuest on: sooner nothing makes room, and QEMU must answer for it to come.
  static std::expected<std::shared_ptr<LiveSplit>, memory::Error> arrive(LiveGuest& guest, const std::string& directory,
                                                                         const memory::MissingOf& of,
                                                                         std::uint64_t budget_pages,
                                                                         std::uint32_t lcores);
  /// After take_over(), or of one that arrived. The same pipe as before.
  std::expected<void, memory::Error> continue_with(memory::PinPipe pipe);
  /// Once it is all there. `lcore`: of the home lcore.
  void begin(Inbox& lcore, SplitTold told);
  /// From now on; the order counts the first time. Fails the first time alone, as an evictor's creation does.
  std::expected<void, memory::Error> set_limits(const SplitLimits& limits);
  /// Begun: evicts down to the low watermark, within some seconds; from then on nothing is evicted, nor does any store
  /// get or lose anything. `then` on the home lcore, once it is so and all that was on its way out is in a store or
  /// back. Unless `at_once`, of a guest above its budget `then` is called now, and come_to_rest() says when.
  void hold(bool at_once, std::function<void()> then);
  void release();
  [[nodiscard]] bool at_rest() const override { return at_rest_; }
  std::expected<pages::Bitmap, transfer::GuestError> set_apart() override;
  void come_to_rest() override;
  std::expected<Stored, transfer::GuestError> list(const pages::Bitmap& written) override;
  std::expected<void, transfer::GuestError> keep_stored(pages::Bitmap& stored, const pages::Bitmap& written) override;
  [[nodiscard]] std::uint64_t budget_pages() const override { return limits().budget_pages; }
  [[nodiscard]] std::uint64_t budget_there_pages() const override { return arrival_budget_pages_; }
  [[nodiscard]] bool short_of_room() const override { return short_of_room_; }
  void fetch(pages::PageNumber page) override;
  [[nodiscard]] bool is_here(pages::PageNumber page) override;
  void note(std::span<const wire::StoredPage> pages) override;
  std::expected<void, transfer::GuestError> settle(const pages::Bitmap& missing, const pages::Bitmap& stored,
                                                   std::uint64_t version_next) override;
  [[nodiscard]] bool serve() const override { return begun(); }
  /// After continue_with() of one that was taken over: what is neither in a store nor on its way there comes from where
  /// it was pulled before.
  std::expected<void, memory::Error> await_rest();
  /// Nothing is missing any more: takes all of this off the guest. While the lcore polls.
  std::expected<void, memory::Error> end();
  /// The evictor does nothing any more, and has told all; before the lcore stops polling.
  void stop_evicting();
  ~LiveSplit() override;

  // ---- the home lcore ----
  bool poll_faults(Instant now) override;
  [[nodiscard]] Instant deadline(Instant polled_at) const override;
  [[nodiscard]] split::MainHost& main() { return *main_; }
  /// figures() are as of now; otherwise they are some 100 ms old.
  void tell_figures();
  /// Since the last call: faults on awaited pages, and awaited pages that a store has given.
  void take_awaited(std::vector<pages::PageNumber>& faults, std::vector<transfer::PageRun>& here);

  // ---- any thread ----
  [[nodiscard]] std::vector<int> descriptors() const override { return pager_->descriptors(); }
  [[nodiscard]] bool begun() const { return begun_.load(std::memory_order_acquire); }
  [[nodiscard]] bool complete() const { return leaving_ != nullptr; }
  [[nodiscard]] const std::shared_ptr<memory::DemandPager>& pager() const { return pager_; }
  /// The guest is ours: who touches what a store has waits for SplitGuest. Before, the source gives it.
  void stop_asking_source() { asks_source_.store(false, std::memory_order_release); }
  /// Somebody waits for a page, and there is no room for it; or for rest.
  void want_room();
  /// What is known of the guest's accesses, before anything leaves.
  void learn(const pages::AccessHistory& history) { policy_.learn(history); }
  /// What a scan found accessed: those stay longest.
  void end_scan(const pages::Bitmap& accessed) { policy_.end_scan(accessed); }
  [[nodiscard]] SplitLimits limits() const;
  [[nodiscard]] SplitFigures figures() const;
  [[nodiscard]] std::string problem() const;
  [[nodiscard]] std::uint64_t missing_count() const override { return pager_->missing_count(); }

 private:
  static constexpr const char* kLeaving = ".split-leaving";
  /// On their way out at once: 8 MiB, some milliseconds of a 10 Gbit/s link.
  static constexpr std::uint32_t kSlots = 2048;
  static constexpr std::uint64_t kNoBudget = UINT64_MAX / 2;  // pages
  LiveSplit(LiveGuest& guest, std::string directory, const memory::MissingOf& of, std::uint32_t lcores);
  std::expected<void, memory::Error> open_pager(bool fresh);
  std::expected<void, memory::Error> open_rest(bool fresh, memory::PinPipe pipe);
  std::expected<void, memory::Error> open_places(bool fresh);
  std::expected<void, transfer::GuestError> drop_present(pages::Bitmap& missing, const pages::Bitmap& written) const;
  [[nodiscard]] std::string file(const char* ending) const;
  void widen_room(Instant now);
  void ask_source(std::size_t from);
  void leave_to_stores();
  void keep_evicting(const std::stop_token& stop);
  std::chrono::milliseconds evict_once();
  [[nodiscard]] std::uint64_t resident_pages() const;
  [[nodiscard]] std::uint64_t room_for(const SplitLimits& limits) const;
  [[nodiscard]] bool is_above_budget() const;
  [[nodiscard]] bool rest_due() const;
  void calm_down(const std::stop_token& stop);
  void bring_to_rest();
  std::expected<void, memory::Error> make_evictor(const SplitLimits& limits);
  void fail(const std::string& why);
  void publish(Instant now);

  bool is_missing(pages::PageNumber page) const override { return pager_->is_missing(page); }
  bool wants(pages::PageNumber page) const override { return pager_->wants(page); }
  std::expected<Placed, std::string> place(pages::PageNumber page, pages::PageBytes bytes) override;
  std::optional<split::Version> find_leaving(pages::PageNumber page, pages::MutablePageBytes out) const override {
    return leaving_->find(page, out);
  }
  void forget_leaving(pages::PageNumber page, split::Version version) override { leaving_->forget(page, version); }
  std::vector<split::Entry> all_leaving() const override;
  split::Version draw_version() override { return leaving_->draw_version(); }

  void on_sub_lost(split::SubId sub, const std::string& why) override { told_.sub_lost(sub, why); }
  void on_sub_full(split::SubId sub) override { told_.sub_full(sub); }
  void on_pages_lost(split::SubId sub, std::uint64_t pages) override { told_.pages_lost(sub, pages); }
  void on_blocked(std::uint64_t pages) override {
    tell_figures();  // who hears of it asks
    told_.blocked(pages);
  }

  LiveGuest& guest_;
  const std::string directory_;
  const memory::MissingOf of_;
  memory::PagerRequest request_;
  memory::ResidentRoom room_;
  std::shared_ptr<memory::DemandPager> pager_;
  std::unique_ptr<memory::LeavingPages> leaving_;
  std::unique_ptr<memory::GuestStateFile> places_;
  split::Copies copies_ = split::Copies::kKept;  // in places_; until begin()
  memory::ColdestFirst policy_;                  // learns, whatever the order is
  memory::HighestFirst by_address_;
  std::unique_ptr<split::MainHost> main_;          // the home lcore's, once begun
  std::vector<pages::PageNumber> demanded_;        // not told to main_ yet
  std::vector<pages::PageNumber> awaited_faults_;  // not taken yet
  std::vector<transfer::PageRun> awaited_here_;    // the same
  std::vector<pages::PageNumber> early_;           // that a store has, and the source was asked for before the commit
  std::function<void()> held_then_;
  pages::Bitmap noted_;  // of a guest that arrives: the jobs', until settle()
  std::vector<memory::PageRange> placed_;
  bool narrow_ = false;         // held
  bool at_rest_ = false;        // and nothing is on its way any more
  bool short_of_room_ = false;  // the same
  bool stands_still_ = false;   // the guest, and QEMU loads at the destination
  Instant widen_at_{};
  Instant publish_at_{};
  Instant gathered_at_{};  // then it is told, or told again
  SplitTold told_;
  Inbox* lcore_ = nullptr;
  std::uint64_t arrival_budget_pages_ = 0;  // of one that arrives
  std::atomic<bool> begun_{false};
  std::atomic<bool> asks_source_{true};

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable_any changed_;
  std::atomic<bool> room_wanted_{false};  // somebody waits for a page that the budget has no room for, or for rest
  SplitLimits limits_;
  bool held_ = false;
  bool rest_wanted_ = false, rest_at_once_ = false;
  bool lift_apart_ = false;  // the evictor is to be told that any page may leave
  std::function<void()> rest_then_;
  SplitFigures figures_;
  std::string problem_;

  std::mutex evicting_;  // held by the thread of a batch; before mutex_
  std::unique_ptr<memory::Evictor> evictor_;
  std::jthread thread_;
};

}  // namespace godwit::daemon
