#pragma once
// The client of a lane that always has a page to send on bulk lanes, or none ever, on the priority lane what is
// demanded, and looks at nothing that comes: for simulations of how lanes share a link. Owner: one end; no failure.

#include "dataplane/transport/lane.h"

namespace godwit::simulation {

class EndlessUser final : public transport::LaneUser {
 public:
  explicit EndlessUser(bool source, bool background = false) : source_(source), background_(background) {}
  bool next_work(std::uint16_t lane, transport::Work& out) override {
    out = {.page = next_++ % kPages, .round = 1, .background = background_};
    return lane == transport::kPriorityLane ? demanded > 0 && demanded-- > 0 : source_;
  }
  void read_page(pages::PageNumber, std::uint32_t, std::span<std::byte>) override {}
  void on_acknowledged(const transport::Work&) override { ++acknowledged; }
  void on_page(std::uint16_t lane, std::uint32_t, pages::PageNumber, std::uint32_t,
               std::span<const std::byte>) override {
    demand_pages += lane == transport::kPriorityLane ? 1 : 0;
  }
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {}
  void on_message(std::span<const std::byte>) override { ++messages; }

  std::uint64_t demanded = 0;
  std::uint64_t acknowledged = 0, messages = 0, demand_pages = 0;

 private:
  static constexpr pages::PageNumber kPages = 1024;
  const bool source_, background_;
  pages::PageNumber next_ = 0;
};

}  // namespace godwit::simulation
