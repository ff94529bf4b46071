#include "dataplane/split/sub_host.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace godwit::split {

void SubHost::start(Instant now, transport::Lane& priority, transport::Lane& bulk) {
  lanes_ = {.priority = &priority, .bulk = &bulk};
  heard_at_ = now;
}

// ---- sending ----

bool SubHost::next_work(std::uint16_t lane, transport::Work& out) {
  if (lane != transport::kPriorityLane || !failure_.empty()) {
    return false;
  }
  for (std::size_t tries = answers_.size(); tries > 0; --tries) {
    const Answer answer = answers_.front();
    answers_.pop_front();
    if (with_lane_.contains(answer.entry.page)) {
      answers_.push_back(answer);  // an older answer is not acknowledged yet
      continue;
    }
    std::vector<std::byte> bytes(pages::kPageSize);
    const auto held = access_.get(answer.entry.page, std::span(bytes).first<pages::kPageSize>());
    if (!held || *held != answer.entry.version) {
      ++stats_.lacked_pages;
      lacks_.push_back(answer.entry);
      lacks_.back().note = held ? 0 : 1;
      continue;
    }
    ++stats_.answered_pages;
    with_lane_.emplace(answer.entry.page, std::move(bytes));
    out = {.page = answer.entry.page, .round = answer.ticket};
    return true;
  }
  return false;
}

void SubHost::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  const auto found = with_lane_.find(page);
  GW_ASSERT(found != with_lane_.end());
  std::memcpy(out.data(), found->second.data() + offset, out.size());
}

void SubHost::on_acknowledged(const transport::Work& work) { with_lane_.erase(work.page); }

void SubHost::list_more() {
  std::vector<Entry> entries;
  while (greeted_ && !listed_all_ && outbox_.bytes() < kListedBytesMax) {
    listed_all_ = !access_.list(list_cursor_, entries);
    push_list(outbox_, Type::kListing, 0, entries);
    if (listed_all_) {
      outbox_.push_encoded(encode(Message{.type = Type::kListing, .number = 1}));
    }
  }
}

// ---- receiving ----

void SubHost::on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                      std::span<const std::byte> bytes) {
  if (!failure_.empty()) {
    return;
  }
  heard_ = true;
  if (lane == transport::kPriorityLane || !greeted_ || page >= pages_ || base_ + round > kVersionMax || round == 0) {
    return fail("the main host sent a page out of turn, or one that the VM does not have");
  }
  std::optional<pages::PageBytes> whole;
  switch (parts_.add(round, offset, bytes, whole)) {
    case PageParts::Result::kRefused:
      return fail("the main host left too many pages unfinished");
    case PageParts::Result::kWaits:
      return;
    case PageParts::Result::kWhole:
      break;
  }
  const PutResult result = access_.put(page, base_ + round, *whole);
  ++(result == PutResult::kHeld ? stats_.put_pages : stats_.refused_pages);
  results_.push_back({.page = page, .version = base_ + round, .note = static_cast<std::uint16_t>(result)});
}

void SubHost::on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) {
  fail("the main host sent a zero run");
}

void SubHost::on_message(std::span<const std::byte> bytes) {
  if (!failure_.empty()) {
    return;
  }
  heard_ = true;
  const auto message = decode(bytes);
  if (!message) {
    return fail("the main host sent " + message.error());
  }
  if (message->type != Type::kAbort && (message->type == Type::kHello) == greeted_) {
    return fail("the main host did not begin with Hello, or did so twice");
  }
  if (std::ranges::any_of(message->entries, [this](const Entry& entry) { return entry.page >= pages_; })) {
    return fail("the main host named a page that the VM does not have");
  }
  switch (message->type) {
    case Type::kHello:
      return on_hello(*message);
    case Type::kGet:
      return on_get(*message);
    case Type::kDrop:
      for (const Entry& entry : message->entries) {
        ++stats_.dropped_pages;
        access_.remove(entry.page, entry.version);
      }
      return;
    case Type::kKeepalive:
      return;
    case Type::kAbort:
      return fail("the main host has ended the connection: " + message->text);
    default:
      return fail("the main host sent what only a sub host sends");
  }
}

void SubHost::on_hello(const Message& hello) {
  if (hello.number != kProtocolVersion) {
    return fail("the main host speaks version " + std::to_string(hello.number) + ", this data plane " +
                std::to_string(kProtocolVersion) + ": install one release on both");
  }
  if (hello.store != store_ || hello.pages != pages_) {
    return fail("the main host means another store, or its VM has another number of pages");
  }
  greeted_ = true;
  base_ = hello.version_base;
  outbox_.push_encoded(encode(Message{.type = Type::kHelloReply}));
}

void SubHost::on_get(const Message& get) {
  if (answers_.size() + get.entries.size() > kAnswersMax) {
    return fail("the main host asked for too many pages at once");
  }
  for (std::size_t i = 0; i < get.entries.size(); ++i) {
    answers_.push_back({.entry = get.entries[i], .ticket = get.number + static_cast<std::uint32_t>(i)});
  }
}

std::optional<std::string> SubHost::turn(Instant now) {
  if (lanes_.priority == nullptr || told_failure_) {
    return std::nullopt;
  }
  if (std::exchange(heard_, false)) {
    heard_at_ = now;
  }
  if (const auto why = lanes_.failure(now)) {
    fail(*why);
  } else if (now - heard_at_ >= kSilenceMax) {
    fail("nothing was heard of the main host any more");
  }
  if (failure_.empty()) {
    push_list(outbox_, Type::kResults, 0, results_);
    push_list(outbox_, Type::kLacks, 0, lacks_);
    list_more();
    outbox_.pump(*lanes_.priority);
    return std::nullopt;
  }
  told_failure_ = true;
  push_abort(outbox_, failure_);
  outbox_.pump(*lanes_.priority);
  return failure_;
}

Instant SubHost::deadline() const {
  if (lanes_.priority == nullptr || told_failure_) {
    return kNever;
  }
  // The lane's calls only take note; what follows from them happens in turn().
  const bool due = heard_ || !results_.empty() || !lacks_.empty() || !failure_.empty() ||
                   (greeted_ && !listed_all_ && outbox_.bytes() < kListedBytesMax);
  return due ? heard_at_ : heard_at_ + kSilenceMax;
}

}  // namespace godwit::split
