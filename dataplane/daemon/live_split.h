#pragma once
// A guest that runs here within a resident budget: pager, evictor on a thread of its own, pages on their way out, and
// the main host's side of its stores (split/main_host.h), put together.
//
// Shared by the guest and the home lcore; the guest's LiveGuest outlives it. Threads: what each part says; the
// evictor's tells the lcore through its inbox. Units: pages. Failure: memory::Error at the beginning; later problem(),
// one line, after which pages that are away stay away.
//
// Three files on tmpfs outlive the daemon: what is missing, what is on its way out, and where the rest is. The first is
// armed last, so that it is never there without the others.

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
#include "dataplane/memory/leaving_pages.h"
#include "dataplane/split/main_host.h"

namespace godwit::daemon {

struct SplitLimits {
  std::uint64_t budget_pages = 0;
  std::uint64_t high_pages = 0;  // eviction begins above
  std::uint64_t low_pages = 0;   // and goes on down to
  bool gather = false;           // no budget, and all comes back
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
  std::function<void()> gathered;
};

class LiveSplit final : public split::MainMemory, public FaultWatch, public split::MainEvents {
 public:
  /// Of what a former process left.
  static bool left_behind(const std::string& directory, const Id128& vm);
  static void remove_files(const std::string& directory, const Id128& vm);

  // ---- jobs ----
  /// Nothing is missing yet; from here on faults wait for the lcore.
  static std::expected<std::shared_ptr<LiveSplit>, memory::Error> create(LiveGuest& guest, const std::string& directory,
                                                                         const memory::MissingOf& of,
                                                                         memory::PinPipe pipe);
  /// What is missing stays so, and faults wait; continue_with() must follow.
  static std::expected<std::shared_ptr<LiveSplit>, memory::Error> take_over(LiveGuest& guest,
                                                                            const std::string& directory,
                                                                            const memory::MissingOf& of);
  /// After take_over(). The same pipe as before.
  std::expected<void, memory::Error> continue_with(memory::PinPipe pipe);
  /// Once it is all there. `lcore`: of the home lcore.
  void begin(Inbox& lcore, SplitTold told);
  /// From now on; the same as for a new evictor.
  std::expected<void, memory::Error> set_limits(const SplitLimits& limits);
  /// Nothing is missing any more: takes all of this off the guest. While the lcore polls.
  std::expected<void, memory::Error> end();
  /// The evictor does nothing any more, and has told all; before the lcore stops polling.
  void stop_evicting();
  ~LiveSplit() override;

  // ---- the home lcore ----
  bool poll_faults(Instant now) override;
  [[nodiscard]] Instant deadline(Instant polled_at) const override;
  [[nodiscard]] split::MainHost& main() { return *main_; }

  // ---- any thread ----
  [[nodiscard]] std::vector<int> descriptors() const override { return pager_->descriptors(); }
  [[nodiscard]] bool begun() const { return begun_.load(std::memory_order_acquire); }
  [[nodiscard]] bool complete() const { return leaving_ != nullptr; }
  /// What a scan found accessed: those stay longest.
  void end_scan(const pages::Bitmap& accessed) { policy_.end_scan(accessed); }
  [[nodiscard]] SplitLimits limits() const;
  [[nodiscard]] SplitFigures figures() const;
  [[nodiscard]] std::string problem() const;
  [[nodiscard]] std::uint64_t missing_count() const override { return pager_->missing_count(); }

 private:
  LiveSplit(LiveGuest& guest, std::string directory, const memory::MissingOf& of);
  std::expected<void, memory::Error> open_pager(bool fresh);
  std::expected<void, memory::Error> open_rest(bool fresh, memory::PinPipe pipe);
  [[nodiscard]] std::string file(const char* ending) const;
  void keep_evicting(const std::stop_token& stop);
  std::chrono::milliseconds evict_once();
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

  LiveGuest& guest_;
  const std::string directory_;
  const memory::MissingOf of_;
  memory::PagerRequest request_;
  memory::ResidentRoom room_;
  std::unique_ptr<memory::DemandPager> pager_;
  std::unique_ptr<memory::LeavingPages> leaving_;
  std::unique_ptr<memory::GuestStateFile> places_;
  memory::ColdestFirst policy_;
  std::unique_ptr<split::MainHost> main_;  // the home lcore's, once begun
  std::vector<pages::PageNumber> demanded_;
  std::vector<memory::PageRange> placed_;
  bool gathered_ = false;
  Instant publish_at_{};
  SplitTold told_;
  Inbox* lcore_ = nullptr;
  std::atomic<bool> begun_{false};

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable_any changed_;
  std::atomic<bool> room_wanted_{false};  // somebody waits for a page that the budget has no room for
  SplitLimits limits_;
  SplitFigures figures_;
  std::string problem_;

  std::mutex evicting_;  // held by the thread of a batch
  std::unique_ptr<memory::Evictor> evictor_;
  std::jthread thread_;
};

}  // namespace godwit::daemon
