#pragma once
// The main host's side of a split VM, as a sans-IO state machine: pages that were evicted go to page stores, those that
// somebody waits for come back. One flow a store: evicted pages leave on its bulk lane, all else goes over the priority
// lane, on which the pages asked for come back.
//
// Owner: whoever pages the guest. Thread: the one that reads the guest's faults, which alone places pages; links are
// made, used and ended there. What the evictor took out is told by evicted(). Units: pages. Failure: that of one store
// ends its link (MainEvents::on_sub_lost), no other; what is on its way out stays with its owner until a store has it.
//
// Why no page is ever older than it must be:
//   * A page is missing, not being placed or evicted, and not among those on their way out: then a store has confirmed
//     what the guest last wrote, and the copies (page_copies.h) say which version that is and where. Nobody but this
//     thread ends that state.
//   * So an answer is placed only then, and only if it is of that very version: whatever came late, twice, or from a
//     store that was forgotten, is of another.
//   * Content that a lane may send again is kept for it, apart from everything else, until it has been acknowledged; a
//     page is with a lane once at a time.
//   * A copy counts for nothing from when another version of its page is sent to the same store until the answer.
//
// A page that was fetched stays in its store. If it is evicted again with the same hash, nothing is sent. A store that
// is full is told to drop copies of pages that are resident, before it counts as full.
//
// What somebody waits for, and no store can give (its link is down, or it has lost the page), blocks the guest: that is
// told once it has lasted, and when it is over.
//
// If the copies are lost, they are made anew once every store has listed what it holds: of a page that is missing and
// not on its way out the newest version is the last content, as no store ever confirmed one and lost it. Nobody is
// asked for anything before.
//
// A store can be drained: what it holds goes to the others, and it is given pages only while no other takes any, as
// the guest must go on. A page that moves is fetched, and put elsewhere in a version of its own, so that no word on an
// earlier one can mean it. The first store keeps it until the other has confirmed it: then one write makes the other's
// copy the one that counts, if the first's did until then.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/time.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/placement/page_directory.h"
#include "dataplane/placement/rebuild.h"
#include "dataplane/split/main_link.h"
#include "dataplane/split/messages.h"
#include "dataplane/split/page_copies.h"
#include "dataplane/transfer/guest.h"
#include "dataplane/transport/lane.h"

namespace godwit::split {

/// The guest's memory as the main host's side needs it.
class MainMemory {
 public:
  enum class Placed : std::uint8_t {
    kPlaced,
    kAgain,      // no room, or its mapping is being changed: later
    kNotWanted,  // it is here, or being placed or evicted
  };
  virtual ~MainMemory() = default;
  [[nodiscard]] virtual bool is_missing(pages::PageNumber page) const = 0;
  /// Missing, and neither being placed nor evicted.
  [[nodiscard]] virtual bool wants(pages::PageNumber page) const = 0;
  [[nodiscard]] virtual std::uint64_t missing_count() const = 0;
  virtual std::expected<Placed, std::string> place(pages::PageNumber page, pages::PageBytes bytes) = 0;
  // ---- pages on their way out ----
  /// Copies it and returns its version, if it is among them.
  virtual std::optional<Version> find_leaving(pages::PageNumber page, pages::MutablePageBytes out) const = 0;
  virtual void forget_leaving(pages::PageNumber page, Version version) = 0;
  /// All of them: what no store has confirmed.
  [[nodiscard]] virtual std::vector<Entry> all_leaving() const = 0;
  /// Above that of anything before, across processes.
  virtual Version draw_version() = 0;
};

class MainEvents {
 public:
  virtual ~MainEvents() = default;
  /// No link to this store any more.
  virtual void on_sub_lost(SubId sub, const std::string& why) = 0;
  virtual void on_sub_full(SubId sub) = 0;
  /// So many, all told, that this store should have and does not.
  virtual void on_pages_lost(SubId sub, std::uint64_t pages) = 0;
  /// So many pages block the guest, where none did; 0: none any more.
  virtual void on_blocked(std::uint64_t pages) = 0;
};

struct SubStats {
  bool connected = false;
  std::uint64_t held_pages = 0;     // missing here, and there
  std::uint64_t copied_pages = 0;   // resident, and there
  std::uint64_t leaving_pages = 0;  // queued for it, or sent and not confirmed
  std::uint64_t lost_pages = 0;
  std::vector<transfer::PageRun> lost, blocking;  // its pages; of either the first few
  bool full = false;
  bool draining = false;
  bool drained = false;  // nobody needs anything of it
};

struct MainStats {
  std::uint64_t refetched_pages = 0, recalled_pages = 0, prefetched_pages = 0, unsent_pages = 0, sent_pages = 0;
  std::uint64_t late_pages = 0;     // came, and were not placed
  std::uint64_t moved_pages = 0;    // from one store to another
  std::uint64_t waiting_pages = 0;  // somebody waits for them, now
  std::uint64_t blocked_pages = 0;  // of those: that nobody can give, for some time
  bool rebuilding = false;
};

enum class Copies : std::uint8_t { kKept, kLost };

class MainHost {
 public:
  /// `copies`, and what is missing and leaving, as a former process left them. All outlive this. kLost: all of them are
  /// clear, and `rebuilt` is called once they are what they were.
  MainHost(MainMemory& memory, PageCopies copies, const pages::Bitmap& missing, MainEvents& events,
           Copies state = Copies::kKept, std::function<void()> rebuilt = {});
  ~MainHost();
  MainHost(const MainHost&) = delete;
  MainHost& operator=(const MainHost&) = delete;

  /// Once for each store.
  void add_sub(SubId sub, const StoreId& store);
  [[nodiscard]] bool has_sub(SubId sub) const { return subs_.contains(sub); }
  /// What it holds goes elsewhere, until sub_stats() say that it is drained.
  void drain(SubId sub, bool on);
  /// False, and it stays: it is not drained.
  [[nodiscard]] bool remove_sub(SubId sub);
  /// Everything comes back, and nothing is sent any more; it is all here when nothing is missing.
  void gather(bool on) { gather_ = on; }
  /// Nobody evicts any more, and nothing moves from one store to another. What is on its way out goes to its store, or
  /// comes back where none takes it: for all to come back there may be no room. at_rest() once it has, and what was
  /// sent is answered or its link has ended: then no store is given anything, or told to drop anything.
  void hold(bool on);
  [[nodiscard]] bool at_rest() const;

  // ---- a link: the user of two lanes of one flow ----
  /// In place of a former one, whose lanes are called no more.
  transport::LaneUser& begin_link(SubId sub);
  /// Its lanes are there, and outlive it.
  void start_link(Instant now, SubId sub, transport::Lane& priority, transport::Lane& bulk);
  /// Before its lanes go.
  void end_link(SubId sub);

  // ---- what happens to pages ----
  /// The evictor has taken these out: they are on their way out, unless they came back meanwhile.
  void evicted(std::span<const pages::PageNumber> pages);
  /// Somebody waits for these.
  void demand(std::span<const pages::PageNumber> pages);

  /// After packets, faults and evictions, before lanes are polled; when deadline() is reached. True: it did something.
  bool turn(Instant now);
  [[nodiscard]] Instant deadline() const;

  [[nodiscard]] const placement::PageDirectory& directory() const { return directory_; }
  [[nodiscard]] const PageCopies& copies() const { return copies_; }
  [[nodiscard]] std::vector<SubId> subs() const;
  [[nodiscard]] SubStats sub_stats(SubId sub) const;
  [[nodiscard]] MainStats stats() const;
  /// Why nothing is placed any more; empty: it is.
  [[nodiscard]] const std::string& failure() const { return failure_; }
  /// Nothing is missing, and nothing on its way: all is here.
  [[nodiscard]] bool all_here() const;

 private:
  friend class MainLink;

  struct Sub {
    StoreId store{};
    std::unique_ptr<MainLink> link;
    std::deque<pages::PageNumber> to_put;
    std::deque<pages::PageNumber> to_move;  // of moving_, to here
    bool draining = false;
    bool full = false;
    bool told_full = false;
    Instant full_until{};             // then it is tried again
    pages::PageNumber drop_hand = 0;  // of copies
  };
  struct Outgoing {  // sent, and no answer yet
    Version version = 0;
    SubId sub = 0;
    pages::PageHash hash = 0;
  };
  struct Asked {
    SubId sub = 0;
    Version version = 0;
    std::uint32_t ticket = 0;
    bool demand = false;
  };
  struct Moving {  // from one store to another
    Copy from;
    SubId to = 0;
    Version version = 0;
    std::vector<std::byte> bytes;  // none: sent
  };
  struct Parked {
    Version version = 0;
    std::vector<std::byte> bytes;
  };

  // ---- out (main_host.cpp) ----
  void assign(pages::PageNumber page);
  [[nodiscard]] std::optional<SubId> choose_sub(pages::PageNumber page, bool draining) const;
  /// A page of this link's queue with its content; false: none now.
  bool next_put(MainLink& link, PutPage& out);
  bool prepare_put(MainLink& link, pages::PageNumber page, PutPage& out);
  /// It leaves in this version, and the store of the copy holds it.
  void confirm(pages::PageNumber page, Version leaving, const Copy& copy);
  void on_result(MainLink& link, const Entry& entry);
  void on_held(MainLink& link, pages::PageNumber page, const Copy& copy);
  void on_full(MainLink& link);
  std::size_t drop_copies(Sub& sub, MainLink& link);
  void set_copy(pages::PageNumber page, const Copy& copy);
  void clear_copy(pages::PageNumber page);
  [[nodiscard]] std::optional<Version> leaving_version(pages::PageNumber page) const;

  // ---- in (main_host_fetch.cpp) ----
  bool serve(pages::PageNumber page);
  void note_served(pages::PageNumber page, bool served);
  void look_at_blocked();
  void ask(pages::PageNumber page, bool demand);
  void ask_neighbours(pages::PageNumber page);
  void gather_more();
  void recall_unassigned();
  [[nodiscard]] bool awaits(const MainLink& link, std::uint32_t ticket, pages::PageNumber page) const;
  void on_answer(MainLink& link, pages::PageNumber page, pages::PageBytes bytes);
  void on_lacks(MainLink& link, const Entry& entry);
  [[nodiscard]] std::optional<Copy> copy_that_counts(pages::PageNumber page) const;
  void place(pages::PageNumber page, Version version, pages::PageBytes bytes, bool demand);
  void place_parked();
  void lose(pages::PageNumber page, SubId sub);

  // ---- from store to store (main_host_drain.cpp) ----
  void drain_more();
  bool drain_page(pages::PageNumber page);
  [[nodiscard]] bool drains(SubId sub) const;
  [[nodiscard]] bool is_drained(SubId sub) const;
  [[nodiscard]] bool still_at(const Copy& copy, pages::PageNumber page) const;
  void move(pages::PageNumber page, const Copy& from, pages::PageBytes bytes);
  bool next_move(MainLink& link, PutPage& out);
  /// Whether the answer was to a move.
  bool on_moved(MainLink& link, const Entry& entry);
  void forget_moves_to(SubId sub, bool sent);

  // ---- copies made anew (main_host_rebuild.cpp) ----
  struct Rebuild {
    std::function<void()> done;
    std::vector<placement::Listed> listed;
    std::set<SubId> complete;
  };
  void finish_rebuild();

  // ---- links (main_host.cpp) ----
  void on_listed(MainLink& link, std::span<const Entry> entries);
  void on_list_end(MainLink& link);
  void lose_link(SubId sub);
  void assign_again();

  MainMemory& memory_;
  PageCopies copies_;
  MainEvents& events_;
  placement::PageDirectory directory_;
  std::map<SubId, Sub> subs_;
  std::optional<Rebuild> rebuild_;
  bool gather_ = false;
  bool held_ = false;
  pages::PageNumber gather_hand_ = 0;
  pages::PageNumber drain_hand_ = 0;
  std::uint64_t drain_idle_ = 0;  // pages looked at since something was to be done
  Instant drain_at_{};            // it goes on

  std::unordered_set<pages::PageNumber> queued_;  // in a to_put, or in unassigned_
  std::deque<pages::PageNumber> unassigned_;      // no store can take them now
  std::unordered_map<pages::PageNumber, Outgoing> outgoing_;
  std::unordered_set<pages::PageNumber> wanted_;  // somebody waits
  std::unordered_map<pages::PageNumber, Asked> asked_;
  std::unordered_map<pages::PageNumber, Parked> parked_;  // came, and there was no room
  std::unordered_map<pages::PageNumber, Moving> moving_;
  std::map<SubId, std::set<pages::PageNumber>> lost_;
  struct Blocked {
    SubId sub = 0;
    Instant since{};
  };
  /// A link that is made again takes less.
  static constexpr Duration kBlockedAfter = milliseconds(2000);
  [[nodiscard]] bool blocks(const Blocked& page) const { return now_ - page.since >= kBlockedAfter; }
  std::map<pages::PageNumber, Blocked> blocked_;  // of wanted_
  std::map<SubId, std::uint64_t> copied_;         // entries of copies_
  pages::PageNumber last_demand_ = UINT64_MAX;
  std::uint64_t run_ = 0;  // demands in order, up to now
  std::string failure_;    // of memory: nothing is placed any more
  bool did_ = false;
  Instant now_{};                        // of the last turn
  mutable std::vector<std::byte> page_;  // of find_leaving()
  Version version_newest_ = 0;           // that was seen
  MainStats stats_;
};

}  // namespace godwit::split
