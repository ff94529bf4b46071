#pragma once
// One flow from the main host to a page store: the user of its two lanes. It keeps what its lanes may send again, and
// gives what arrives to the MainHost that owns it; only the two know each other. Thread, failure: main_host.h.

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/time.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/placement/page_directory.h"
#include "dataplane/split/link_lanes.h"
#include "dataplane/split/messages.h"
#include "dataplane/split/page_parts.h"
#include "dataplane/transfer/outbox.h"
#include "dataplane/transport/lane.h"

namespace godwit::split {

class MainHost;

struct PutPage {
  pages::PageNumber page = 0;
  Version version = 0;
  std::vector<std::byte> bytes;
};

class MainLink final : public transport::LaneUser {
 public:
  static constexpr std::size_t kPutsMax = 256;  // with the lane, of 4 KiB each
  static constexpr std::size_t kAsksMax = 128;  // not answered
  static constexpr Duration kKeepaliveEvery = milliseconds(500);

  MainLink(MainHost& host, placement::SubId sub, std::uint64_t page_count)
      : host_(host), sub_(sub), listed_(page_count) {}

  // ---- as its lanes' user ----
  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

  // ---- for its host ----
  void start(Instant now, transport::Lane& priority, transport::Lane& bulk, const StoreId& store, Version base);
  /// Says what it has to say; why it is lost, if it is.
  std::optional<std::string> turn(Instant now);
  [[nodiscard]] Instant deadline() const { return started() && failure_.empty() ? keepalive_at_ : kNever; }
  /// Asks for it with the next turn(); its ticket.
  std::uint32_t get(const Entry& entry);
  void drop(const Entry& entry) { drops_.push_back(entry); }
  void fail(const std::string& why) {
    if (failure_.empty()) {
      failure_ = why;
    }
  }
  [[nodiscard]] placement::SubId sub() const { return sub_; }
  [[nodiscard]] bool started() const { return lanes_.priority != nullptr; }
  /// It may be asked, and holds what it held.
  [[nodiscard]] bool open() const { return replied_ && failure_.empty(); }
  /// It has told all that it holds, so pages may be put.
  [[nodiscard]] bool ready() const { return listed_all_ && failure_.empty(); }
  [[nodiscard]] bool holds_work(pages::PageNumber page) const { return with_lane_.contains(page); }
  [[nodiscard]] pages::Bitmap& listed() { return listed_; }
  std::size_t asked = 0;  // not answered yet

 private:
  MainHost& host_;
  const placement::SubId sub_;
  LinkLanes lanes_;
  transfer::Outbox outbox_;
  PageParts parts_;
  std::unordered_map<pages::PageNumber, PutPage> with_lane_;
  std::vector<Entry> gets_, drops_;  // not in a message yet
  std::uint32_t tickets_ = 0;        // given
  std::uint32_t first_ticket_ = 0;   // of gets_
  Version base_ = 0;
  bool replied_ = false, listed_all_ = false;
  pages::Bitmap listed_;  // of what the copies say it has
  std::string failure_;
  bool told_failure_ = false;
  Instant keepalive_at_{};
};

}  // namespace godwit::split
