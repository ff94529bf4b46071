#include "tests/unit/transfer/fake_lane.h"

#include <map>

namespace godwit::transport {
namespace {
std::map<const Lane*, FakeLane>& fakes() {
  static std::map<const Lane*, FakeLane> all;
  return all;
}
}  // namespace

FakeLane& fake(Lane& lane) { return fakes()[&lane]; }

class Lane::Impl {};
Lane::Lane(const LaneConfig&, LaneUser&, Instant) { fakes()[this] = {}; }
Lane::~Lane() { fakes().erase(this); }
bool Lane::send_message(std::span<const std::byte> message) {
  FakeLane& lane = fakes()[this];
  if (message.size() > lane.room) {
    return false;
  }
  lane.messages.emplace_back(message.begin(), message.end());
  return true;
}
std::size_t Lane::message_room() const { return fakes()[this].room; }
bool Lane::peer_dead(Instant) const { return fakes()[this].dead; }
LaneFault Lane::fault() const { return fakes()[this].fault; }
std::string_view to_string(LaneFault) { return "fault"; }
const LaneCounters& Lane::counters() const { return fakes()[this].counters; }
Duration Lane::smoothed_rtt() const { return microseconds(100); }

void send_page(transport::LaneUser& user, pages::PageNumber page) {
  std::array<std::byte, pages::kPageSize> copy;
  std::span<const std::byte> bytes;
  if (page % 2 == 0) {
    bytes = user.page_in_place(page, true);
  }
  if (bytes.empty()) {
    user.read_page(page, 0, copy);
    bytes = copy;
  }
  user.note_sent(page, pages::hash_part(bytes));
}

}  // namespace godwit::transport
