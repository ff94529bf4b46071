#pragma once
// The sub host's side of a flow: a page store answers a main host. Sans-IO; the user of the flow's two lanes. Pages
// that are put come on the bulk lane, and are confirmed once the store has them; pages that are asked for leave on the
// priority lane.
//
// Owner: the daemon, one a flow; the store outlives it. Thread: the one that calls the lanes. Failure: turn() says once
// why the link is of no use any more; the store keeps what it has.

#include <cstdint>
#include <deque>
#include <expected>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/time.h"
#include "dataplane/split/link_lanes.h"
#include "dataplane/split/messages.h"
#include "dataplane/split/page_parts.h"
#include "dataplane/transfer/outbox.h"
#include "dataplane/transport/lane.h"

namespace godwit::split {

/// A store as the sub host's side needs it: pages of one VM.
class StoreAccess {
 public:
  virtual ~StoreAccess() = default;
  virtual PutResult put(pages::PageNumber page, Version version, pages::PageBytes content) = 0;
  /// Copies the page and returns its version; nothing if it is not held, an error if it is damaged.
  virtual std::expected<std::optional<Version>, std::string> get(pages::PageNumber page,
                                                                 pages::MutablePageBytes out) = 0;
  virtual void remove(pages::PageNumber page, Version version) = 0;
  /// Appends some of the pages that are held, on from `cursor` (0: from the beginning); false: those were the last.
  virtual bool list(std::uint64_t& cursor, std::vector<Entry>& out) const = 0;
};

struct SubHostStats {
  std::uint64_t put_pages = 0, refused_pages = 0, answered_pages = 0, lacked_pages = 0, dropped_pages = 0;
};

class SubHost final : public transport::LaneUser {
 public:
  /// A main host says something each half second.
  static constexpr Duration kSilenceMax = milliseconds(10'000);

  SubHost(StoreAccess& access, const StoreId& store, std::uint64_t pages)
      : access_(access), store_(store), pages_(pages) {}

  void start(Instant now, transport::Lane& priority, transport::Lane& bulk);
  /// After packets and when deadline() is reached, before lanes are polled. Why the link is lost, once.
  std::optional<std::string> turn(Instant now);
  [[nodiscard]] Instant deadline() const;
  [[nodiscard]] bool connected() const { return greeted_ && failure_.empty(); }
  /// The main host has heard of all that the store holds: from here on its records may move.
  [[nodiscard]] bool listed_all() const { return listed_all_; }
  [[nodiscard]] const SubHostStats& stats() const { return stats_; }

  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

 private:
  struct Answer {
    Entry entry;
    std::uint32_t ticket = 0;
  };
  static constexpr std::size_t kAnswersMax = 65536;         // asked for, not with the lane
  static constexpr std::size_t kListedBytesMax = 1U << 18;  // waiting for the lane

  void fail(const std::string& why) {
    if (failure_.empty()) {
      failure_ = why;
    }
  }
  void on_hello(const Message& hello);
  void on_get(const Message& get);
  void list_more();

  StoreAccess& access_;
  const StoreId store_;
  const std::uint64_t pages_;
  LinkLanes lanes_;
  transfer::Outbox outbox_;
  PageParts parts_;
  bool greeted_ = false;
  bool listed_all_ = false;
  std::uint64_t list_cursor_ = 0;
  Version base_ = 0;
  std::deque<Answer> answers_;
  std::unordered_map<pages::PageNumber, std::vector<std::byte>> with_lane_;
  std::vector<Entry> results_, lacks_;
  bool heard_ = true;  // since the last turn
  Instant heard_at_{};
  std::string failure_;
  bool told_failure_ = false;
  SubHostStats stats_;
};

}  // namespace godwit::split
