#include "dataplane/split/main_link.h"

#include <algorithm>
#include <cstring>

#include "dataplane/split/main_host.h"

namespace godwit::split {

bool MainLink::next_work(std::uint16_t lane, transport::Work& out) {
  if (lane == transport::kPriorityLane || !ready() || with_lane_.size() == kPutsMax) {
    return false;
  }
  PutPage put;
  if (!host_.next_put(*this, put)) {
    return false;
  }
  if (put.version <= base_ || put.version - base_ > UINT32_MAX) {
    fail("the versions of this connection are used up");
    return false;
  }
  out = {.page = put.page, .round = static_cast<std::uint32_t>(put.version - base_)};
  const bool fresh = with_lane_.emplace(put.page, std::move(put)).second;
  GW_ASSERT(fresh);
  return true;
}

void MainLink::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  const auto found = with_lane_.find(page);
  GW_ASSERT(found != with_lane_.end());
  std::memcpy(out.data(), found->second.bytes.data() + offset, out.size());
}

void MainLink::on_acknowledged(const transport::Work& work) { with_lane_.erase(work.page); }

void MainLink::on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                       std::span<const std::byte> bytes) {
  if (!failure_.empty()) {
    return;
  }
  if (lane != transport::kPriorityLane) {
    return fail("the store sent a page on a bulk lane");
  }
  if (!host_.awaits(*this, round, page)) {
    return;
  }
  std::optional<pages::PageBytes> whole;
  switch (parts_.add(round, offset, bytes, whole)) {
    case PageParts::Result::kRefused:
      return fail("the store left too many pages unfinished");
    case PageParts::Result::kWhole:
      return host_.on_answer(*this, page, *whole);
    case PageParts::Result::kWaits:
      return;
  }
}

void MainLink::on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) {
  fail("the store sent a zero run");
}

void MainLink::on_message(std::span<const std::byte> bytes) {
  if (!failure_.empty()) {
    return;
  }
  const auto message = decode(bytes);
  if (!message) {
    return fail("the store sent " + message.error());
  }
  const std::uint64_t page_count = listed_.size();
  if (std::ranges::any_of(message->entries, [&](const Entry& entry) { return entry.page >= page_count; })) {
    return fail("the store named a page that the VM does not have");
  }
  const bool in_order = message->type == Type::kAbort || (message->type == Type::kHelloReply) != replied_;
  if (!in_order) {
    return fail("the store did not begin with its answer to Hello, or did so twice");
  }
  switch (message->type) {
    case Type::kHelloReply:
      replied_ = true;
      return;
    case Type::kListing:
      if (listed_all_) {
        return fail("the store told more after the end of its list");
      }
      host_.on_listed(*this, message->entries);
      if (message->number == 1) {
        host_.on_list_end(*this);
        listed_all_ = true;
      }
      return;
    case Type::kLacks:
    case Type::kResults:
      for (const Entry& entry : message->entries) {
        message->type == Type::kLacks ? host_.on_lacks(*this, entry) : host_.on_result(*this, entry);
      }
      return;
    case Type::kAbort:
      return fail("the store has ended the connection: " + message->text);
    default:
      return fail("the store sent what only a main host sends");
  }
}

void MainLink::start(Instant now, transport::Lane& priority, transport::Lane& bulk, const StoreId& store,
                     Version base) {
  lanes_ = {.priority = &priority, .bulk = &bulk};
  base_ = base;
  keepalive_at_ = now + kKeepaliveEvery;
  Message hello{.type = Type::kHello, .number = kProtocolVersion, .store = store, .pages = listed_.size()};
  hello.version_base = base;
  outbox_.push_encoded(encode(hello));
  outbox_.pump(priority);
}

std::uint32_t MainLink::get(const Entry& entry) {
  if (gets_.empty()) {
    first_ticket_ = tickets_;
  }
  gets_.push_back(entry);
  if (tickets_ == UINT32_MAX) {
    fail("the tickets of this connection are used up");
  }
  return tickets_++;
}

std::optional<std::string> MainLink::turn(Instant now) {
  if (!started() || told_failure_) {
    return std::nullopt;
  }
  if (const auto why = lanes_.failure(now)) {
    fail(*why);
  }
  if (failure_.empty()) {
    push_list(outbox_, Type::kGet, first_ticket_, gets_);
    push_list(outbox_, Type::kDrop, 0, drops_);
    if (now >= keepalive_at_) {
      outbox_.push_encoded(encode(Message{}));
      keepalive_at_ = now + kKeepaliveEvery;
    }
    outbox_.pump(*lanes_.priority);
    return std::nullopt;
  }
  told_failure_ = true;
  push_abort(outbox_, failure_);
  outbox_.pump(*lanes_.priority);
  return failure_;
}

}  // namespace godwit::split
