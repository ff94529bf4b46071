#pragma once
// The memory side of post-copy: a guest runs here while pages of it are still elsewhere. Whoever in QEMU touches one of
// them (vCPU, device model, KVM, the kernel in a system call) waits in a page fault until place() has put it in.
//
// Owner: the guest's post-copy. It shares the userfaultfds and their reader with the guest's tracker, which outlives
// it. Thread: read_faults() from one lcore; place() and place_zero() from any, each with its own number; wants(), the
// counts and descriptors() from any; everything else from a job, the first three before the guest runs. Units: pages;
// times in nanoseconds. Failure: error values; nothing is ever lost by one, as what could not be placed stays missing.
//
// What a caller must keep to:
//   * From the first add_missing() to arm() nobody touches guest RAM: not QEMU, unless guard() says true, and not the
//     transfer through GuestRam, as on a tmpfs of huge pages a write brings its neighbours into being. From then on
//     pages come by place() only.
//   * From arm() to end() somebody reads faults; accesses to missing pages wait for it.
//   * The source serves every page that it is asked for until end(): after a crash pages may be asked for again.
//   * The tracker reports what the guest writes. A page placed here is unwritten, and keeps the generation that the
//     caller knows; memory that QEMU gave back counts as written. Only of pages that are not missing is the content in
//     the RAM files the guest's.
//
// On tmpfs a missing page is a hole, filled by UFFDIO_COPY. UFFDIO_ZEROPAGE is not used: it takes no write protection
// along. A hole that is not missing is a page of zeros, and put in at once. A punch is looked at afterwards: part of a
// huge page of tmpfs that somebody has pinned is zeroed and stays, so that no fault would ever come.
//
// On hugetlbfs the kernel knows faults by 2 MiB only. A huge page that lacks some of its 4 KiB keeps the others in the
// file: QEMU has no entry of it, so its accesses wait (minor faults, Linux 5.13), while pages are written into the file
// through our mapping, which nobody else sees. With the last one QEMU gets its entry (UFFDIO_CONTINUE). So nothing is
// staged elsewhere, and what was reusable outlives this process. The price: the first touch of each huge page that was
// here already asks us too, and is answered at once.
//
// Eviction (evictor.h) makes pages missing again, while the guest runs. A page that is being placed or evicted is
// claimed, so that only one of them is under way; what was told of as removed last may not be removed yet, and stays.
// From the first eviction on, one thread answers for a page, and with what was asked for since it was evicted: a late
// copy of earlier content cannot be told from the last one here. What is not missing is here, whatever anybody else
// keeps of it: QEMU may have given it back.
//
// A guest that is split and pulls pages too (await()) has two who answer: each page that is awaited comes by them alone
// who pull, until it has been here once, so that what they bring late is never taken for the content of a page that was
// evicted since.
//
// Which pages are missing is in a file that outlives us (missing_pages.h). Whoever takes over wakes all: faults that we
// had read come again.

#include <array>
#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "base/single_writer.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/latency_histogram.h"
#include "dataplane/memory/missing_pages.h"
#include "dataplane/memory/page_flags.h"
#include "dataplane/memory/resident_room.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {

struct PagerRequest {
  GuestRam* ram = nullptr;            // outlives the pager
  WrittenTracker* tracker = nullptr;  // outlives the pager; has the userfaultfds
  /// The userfaultfds were made without UFFD_USER_MODE_ONLY: else virtio and KVM would get EFAULT instead of a page.
  bool sees_kernel_accesses = false;
  std::string file;  // of the missing pages, on tmpfs
  MissingOf of;
  std::uint32_t lcores = 1;
  ResidentRoom* room = nullptr;  // outlives the pager; without it what is placed has no limit
};

struct PagerStats {
  std::uint64_t faults = 0;            // read
  std::uint64_t demand_pages = 0;      // placed while a thread waited
  std::uint64_t background_pages = 0;  // placed before anybody asked
  std::uint64_t zero_pages = 0;        // missing, then told of as zero
  std::uint64_t local_pages = 0;       // put in from here: zeros, and huge pages that were here already
  std::uint64_t removed_pages = 0;     // given back while missing
  std::uint64_t dropped_pages = 0;     // arrived, and were not missing any more
  std::uint64_t missing_pages = 0;     // now
  std::uint64_t waiting_faults = 0;    // for missing pages, now
  std::uint64_t waiting_ns = 0;        // how long those have waited so far, all together
  LatencyFigures latency;              // of each fault that met a missing page, read to placed; the sum is blocked time
};

class DemandPager final : private MissingFaultEvents {
 public:
  /// Begins, with nothing missing. kUnsupported: post-copy cannot be done to this guest, and why.
  static std::expected<std::unique_ptr<DemandPager>, Error> create(PagerRequest request);
  /// Goes on where a former process stopped. The tracker must have been armed (continuing) before.
  static std::expected<std::unique_ptr<DemandPager>, Error> take_over(PagerRequest request);
  /// Leaves everything as it is: a successor may take over.
  ~DemandPager() override;

  // ---- before the guest runs; the latest word on a page counts ----
  /// Takes the memory of these pages away.
  std::expected<void, Error> add_missing(const pages::Bitmap& pages);
  /// On tmpfs, of pages that are missing: those come by Only::kAwaited. After take_over() too.
  void await(const pages::Bitmap& pages);
  /// It comes from elsewhere after all, while it is missing. Any thread.
  void stop_awaiting(pages::PageNumber page) { not_awaited(page); }
  /// These pages are zero.
  std::expected<void, Error> add_zero(const pages::Bitmap& pages);
  /// From here on whoever touches memory that is not present waits for arm(). True: none is, so that nothing can be
  /// read that may still change at the source.
  std::expected<bool, Error> guard();
  /// From here on whoever touches a missing page waits.
  std::expected<void, Error> arm();

  // ---- while it runs ----
  /// Reads faults without waiting, answers those that need no other host, and appends to `demanded` every missing page
  /// that somebody waits for, each once. What an error (kNoMemory, say) left unanswered the next call tries again.
  std::expected<void, Error> read_faults(std::vector<pages::PageNumber>& demanded);
  enum class Only : std::uint8_t { kMissing, kAwaited };
  /// Puts whole pages in place; contiguous ones together. Those that are not missing are dropped without a system call.
  /// An error, kNoMemory above all, leaves the rest missing. So does a false: QEMU is changing its mappings, or there
  /// is no room. Who gets either asks for those pages again. `placed`, where not null, gets the pages that this call
  /// has put in, in the order of `writes`, also if it fails.
  std::expected<bool, Error> place(std::uint32_t lcore, std::span<const PageWrite> writes,
                                   std::vector<PageRange>* placed = nullptr, Only only = Only::kMissing);
  /// What of these is missing is zero; nothing of it needs to come. `placed` gets what was missing.
  std::expected<void, Error> place_zero(std::uint32_t lcore, PageRange pages, std::vector<PageRange>* placed = nullptr,
                                        Only only = Only::kMissing);
  [[nodiscard]] bool wants(pages::PageNumber page) const { return missing_.test(page) && !claimed_.test(page); }
  /// Not in place yet, though somebody may be at it.
  [[nodiscard]] bool is_missing(pages::PageNumber page) const { return missing_.test(page); }
  /// On tmpfs. While a page is put in place it is still missing for a moment in which QEMU may write it already. So who
  /// copies a missing page (to move it on) asks this before and after reading what is kept elsewhere.
  [[nodiscard]] std::expected<bool, Error> is_away(pages::PageNumber page) const {
    return missing_.test(page) ? ram_.is_hole({page, 1}) : std::expected<bool, Error>(false);
  }
  [[nodiscard]] std::uint64_t missing_count() const { return missing_.count(); }
  [[nodiscard]] bool is_awaited(pages::PageNumber page) const { return awaited_.test(page); }
  [[nodiscard]] std::uint64_t awaited_count() const { return awaited_count_.load(std::memory_order_relaxed); }
  [[nodiscard]] pages::Bitmap missing() const { return missing_.all(); }
  /// To wait on while asleep; level-triggered.
  [[nodiscard]] std::vector<int> descriptors() const { return userfaults_->descriptors(); }
  /// Faults were read that could not be answered: the next read_faults() is to come without waiting on descriptors().
  [[nodiscard]] bool has_unanswered() const;
  [[nodiscard]] PagerStats stats() const;

  // ---- eviction, from the evictor's thread; on tmpfs ----
  /// To be held from hold() to release(); it keeps removals waiting.
  [[nodiscard]] std::shared_lock<RemovalGate> keep_removals_out() { return userfaults_->reader().keep_removals_out(); }
  /// Nobody places or evicts the page until release(). False: it is missing, being placed, or perhaps being removed.
  [[nodiscard]] bool hold(pages::PageNumber page);
  /// Pages that are held are missing from now on: their memory may be taken away.
  void make_missing(PageRange pages);
  /// A page that is held is not missing after all: its memory is there, or it is zero and a hole.
  void make_not_missing(pages::PageNumber page) { missing_.clear(page); }
  /// True: somebody waits for the page; who reads faults must be woken to answer.
  [[nodiscard]] bool release(pages::PageNumber page);

  /// Nothing may be missing. While somebody still reads faults, takes all of this off QEMU's RAM, but for the tracker's
  /// marks. The file stays, as the only proof that nothing is missing; its owner removes it when nobody asks any more.
  std::expected<void, Error> end();

 private:
  /// Pages that QEMU's faults come in: one page on tmpfs, 512 on hugetlbfs.
  struct Unit {
    const Region* region;
    PageRange pages;
  };
  struct Waiting {
    pages::PageNumber first;  // of the unit
    std::uint64_t since_ns;
  };
  struct alignas(64) PerLcore {
    SingleWriter<std::uint64_t> demand, background, zero, local, dropped;
    LatencyHistogram latency;
    std::vector<std::byte> joined;  // contiguous pages from different places, for one call
  };
  enum class Outcome : std::uint8_t { kDone, kAgain };
  static constexpr std::uint64_t kJoinedPagesMax = 16;

  DemandPager(PagerRequest request, std::shared_ptr<UserfaultSet> userfaults, MissingPages missing);
  static std::expected<std::shared_ptr<UserfaultSet>, Error> check(const PagerRequest& request);
  static std::uint64_t now_ns();
  std::expected<void, Error> wake_all();
  std::expected<void, Error> catch_faults();

  // demand_pager_prepare.cpp
  std::expected<void, Error> take_away(PageRange pages);
  std::expected<void, Error> take_away_huge(const Region& region, const pages::Bitmap& pages);
  std::expected<void, Error> hold_back(const Unit& unit);
  std::expected<void, Error> forget_present();
  void count_units();

  // demand_pager_faults.cpp
  void on_missing_fault(std::uint64_t address) override;
  void on_memory_removed(QemuRange range) override;
  void on_read_failed(Error error) override;
  std::expected<void, Error> answer(const Waiting& fault, std::vector<pages::PageNumber>& demanded);
  /// `fresh`: all of it was put in place by us since QEMU last had an entry of it.
  std::expected<void, Error> answer_here(const Unit& unit, bool fresh, PerLcore& lcore);
  std::expected<Outcome, Error> fill_with_zeros(pages::PageNumber page, PerLcore& lcore);
  std::expected<Outcome, Error> show_huge(const Unit& unit, bool fresh, PerLcore& lcore);
  std::expected<Outcome, Error> map_huge(const Unit& unit, bool protect);
  std::expected<Outcome, Error> outcome_of(const Mapped& mapped, QemuRange range);

  // demand_pager_place.cpp
  bool claim(pages::PageNumber page, Only only);
  [[nodiscard]] bool wants(pages::PageNumber page, Only only) const {
    return wants(page) && (only == Only::kMissing || awaited_.test(page));
  }
  /// It is here, or zero.
  void not_awaited(pages::PageNumber page);
  [[nodiscard]] std::expected<bool, Error> place_protected(pages::PageNumber page);
  void give_back_claims(std::span<const PageWrite> run, Only only);
  std::size_t claim_run(std::span<const PageWrite> writes, Only only);
  std::expected<Outcome, Error> copy_run(std::span<const PageWrite> run, PerLcore& lcore, std::size_t& placed);
  std::expected<Outcome, Error> copy_pages(std::span<const PageWrite> run, const std::byte* from, PerLcore& lcore,
                                           std::size_t& placed);
  template <class F>
  std::expected<Outcome, Error> with_room(std::uint64_t pages, F f) {
    if (room_ == nullptr) {
      return f();
    }
    const auto room = room_->take(pages);
    if (!room) {
      return std::unexpected(room.error());
    }
    if (!*room) {
      return Outcome::kAgain;
    }
    auto outcome = f();
    room_->done(pages);
    return outcome;
  }
  std::expected<Outcome, Error> write_huge_run(std::span<const PageWrite> run, PerLcore& lcore, std::size_t& placed);
  std::expected<void, Error> zero_page(pages::PageNumber page, PerLcore& lcore);
  std::expected<void, Error> settle(pages::PageNumber page, PerLcore& lcore);
  void finish_waiting(pages::PageNumber first, PerLcore& lcore);

  [[nodiscard]] Unit unit_of(pages::PageNumber page) const;
  [[nodiscard]] std::atomic<std::uint32_t>& lacking(pages::PageNumber first_of_unit);

  GuestRam& ram_;
  WrittenTracker& tracker_;
  const std::shared_ptr<UserfaultSet> userfaults_;
  ResidentRoom* const room_;
  const bool protects_;
  const bool maps_protected_;  // this kernel can give QEMU an entry that is write-protected
  MissingPages missing_;
  PageFlags claimed_;  // somebody places or evicts it
  PageFlags evicted_;  // and not placed since: its marks are the tracker's to say
  PageFlags asked_;    // somebody waits for it
  PageFlags awaited_;  // missing, and was never here
  std::atomic<std::uint64_t> awaited_count_{0};
  std::vector<std::atomic<std::uint32_t>> lacking_;  // of 2 MiB in the numbering, how many pages the huge page lacks
  std::vector<PerLcore> lcores_;
  SingleWriter<std::uint64_t> faults_, removed_;
  bool attached_ = false;
  bool guarded_ = false;
  std::atomic<bool> ending_{false};

  mutable std::mutex faults_mutex_;  // all below
  std::vector<Waiting> fresh_;       // read, not answered
  std::vector<Waiting> waiting_;     // for pages that are missing
  PageRange removal_newest_;         // told of, perhaps not done yet
  std::optional<Error> failure_;
};

}  // namespace godwit::memory
