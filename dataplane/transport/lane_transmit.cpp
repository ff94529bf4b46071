#include <algorithm>

#include "dataplane/pages/page_copy.h"
#include "dataplane/transport/lane_impl.h"

namespace godwit::transport {

namespace {
/// Room that a full message packet leaves for an ack block of two words.
constexpr std::size_t kMessageAckRoom = wire::ack_block_bytes(2);

std::size_t page_count(const SentContent& content) { return content.second == kNoSlot ? 1 : 2; }
}  // namespace

std::size_t Lane::Impl::poll_transmit(Instant now, std::span<std::byte> out, PagesInPlace* in_place) {
  GW_ASSERT(out.size() >= config_.datagram_bytes_max);
  in_place_ = in_place;
  if (fault_ != LaneFault::kNone) {
    return 0;
  }
  if (recovery_.next_number() > config_.key_limits.packet_number_max) {
    fault_ = LaneFault::kNumbersUsedUp;
    return 0;
  }
  if (!sealer_->ready(now, recovery_.next_number())) {
    fault_ = LaneFault::kKeyUsedUp;
    return 0;
  }
  if (carries_messages()) {
    receiver_->release();  // what the coming acknowledgement allows the peer to send may take their place
  }
  const bool ack_due = acks_.due(now);
  if (!recovery_.has_room()) {
    return 0;  // the probe timeout frees the ring
  }
  if (early_probe_wanted_) {
    return send_bare_probe(now, out, ack_due);
  }
  const bool probing = probes_allowed_ > 0;
  const bool window_open = probing || recovery_.outstanding() < swift_.window();
  const bool credit_open = probing || credit_use_.allows(recovery_.next_number());
  if (credit_open) {
    if (const Next next = next_content(window_open); next != Next::kNothing) {
      const std::uint32_t probe_bytes = window_open && !probing ? path_mtu_.probe_due(now) : 0;
      if (probe_bytes != 0) {
        return send_mtu_probe(now, out, probe_bytes, ack_due);
      }
      if (ack_due && acks_.block_bytes() > ack_room(next)) {
        return send_ack(now, out);
      }
      const std::size_t length = send_content(now, out, next, ack_due);
      probes_allowed_ -= probing ? 1 : 0;
      return length;
    }
    probes_allowed_ = 0;
  }
  if (!window_open) {
    swift_.on_limited();
  } else if (!credit_open && recovery_.outstanding() == 0 && next_content(true) != Next::kNothing) {
    return send_bare_probe(now, out, ack_due);  // nothing else would bring us a new edge
  }
  return ack_due ? send_ack(now, out) : 0;
}

/// How large an ack block fits into it.
std::size_t Lane::Impl::ack_room(Next next) const {
  return next == Next::kMessage ? kMessageAckRoom : path_mtu_.bytes() - layout_.packet_bytes;
}

Lane::Impl::Next Lane::Impl::next_content(bool window_open) {
  if (!carries_messages()) {
    return window_open && has_work() ? Next::kWork : Next::kNothing;
  }
  if (works_.front_lost()) {
    return Next::kWork;
  }
  const bool message = sender_->has_chunk() && (window_open || messages_in_flight_ == 0);
  if (message && (sender_->has_lost() || page_packets_in_row_ >= kPagePacketsInRow)) {
    return Next::kMessage;
  }
  if (has_work()) {
    return Next::kWork;
  }
  return message ? Next::kMessage : Next::kNothing;
}

bool Lane::Impl::pull_work() {
  if (works_.full()) {
    return false;
  }
  Work& work = works_.next();
  if (!user_.next_work(config_.lane, work)) {
    return false;
  }
  GW_ASSERT(work.count >= 1 && (work.zero || work.count == 1));
  GW_ASSERT(work.page < wire::kPageNumberLimit && work.count <= wire::kPageNumberLimit - work.page);
  swift_.keep_queue_short(work.background);
  works_.add(work.zero ? 1 : layout_.all_parts());
  return true;
}

Lane::Impl::Draft Lane::Impl::begin_packet(Instant now, std::span<std::byte> out, wire::PacketType type,
                                           bool with_ack) {
  Draft draft{.out = out.first(config_.datagram_bytes_max), .at = wire::kHeaderBytes};
  draft.header = {.type = type,
                  .flags = sealer_->flags(),
                  .lane = config_.lane,
                  .flow_id = config_.peer_flow_id,
                  .packet_number = recovery_.next_number()};
  if (probes_allowed_ > 0) {
    draft.header.flags |= wire::kFlagAckNow;
  }
  if (with_ack) {
    draft.header.flags |= wire::kFlagAckBlock;
    const wire::AckBlock ack = acks_.build(now, credit_grant_.edge(acks_.window().largest()));
    draft.at += wire::write_ack_block(ack, draft.out.subspan(draft.at));
  }
  return draft;
}

std::size_t Lane::Impl::finish_packet(Instant now, Draft& draft, SentContent& content) {
  record(now, draft, content);
  return seal(draft);
}

/// The packet's header, and that it is sent. Before pages are copied: the processor's stores reach memory in order, and
/// what it reads back of them, in other units, waits for those of the pages.
void Lane::Impl::record(Instant now, Draft& draft, SentContent& content) {
  wire::write_header(draft.header, draft.out);
  const std::size_t length = draft.at + draft.in_place.bytes + wire::kTagBytes;
  if (carries_data(content.kind) && (!waiting_ || (recovery_.outstanding() == 0 && recovery_.probe_count() == 0))) {
    waiting_ = true;
    waiting_since_ = now;
  }
  content.packet_bytes = static_cast<std::uint32_t>(length);
  content.in_place = draft.in_place.count != 0 && !sealer_->encrypts();
  recovery_.on_sent(now, content);
  ++counters_.packets_sent;
  counters_.bytes_sent += length;
}

std::size_t Lane::Impl::seal(Draft& draft) {
  const bool in_room = draft.in_place.bytes != 0 && has_room();
  const bool in_place = draft.in_place.count != 0 && !sealer_->encrypts();
  const std::size_t apart = in_place || in_room ? 0 : draft.in_place.bytes;
  const std::size_t buffer_bytes = draft.at + apart + wire::kTagBytes;
  sealer_->seal(draft.header.packet_number, draft.out.first(buffer_bytes),
                {.at = draft.pages_at,
                 .into = in_room ? in_place_->room.subspan(draft.at) : std::span<std::byte>(),
                 .in_place = draft.in_place.view(),
                 .hashes = std::span(draft.hashes).first(draft.hash_count)});
  if (in_room) {
    *in_place_ = {.bytes = draft.in_place.bytes};
  } else if (in_place) {
    *in_place_ = draft.in_place;
  }
  return buffer_bytes;
}

void Lane::Impl::put_prefix(Draft& draft, std::uint8_t count, std::uint16_t length) {
  const wire::Prefix prefix{.count = count, .length = length, .floor = recovery_.floor()};
  draft.at += wire::write_prefix(prefix, draft.header.packet_number, draft.out.subspan(draft.at));
}

std::size_t Lane::Impl::send_ack(Instant now, std::span<std::byte> out) {
  if (!bare_probe_outstanding_ && recovery_.next_number() - recovery_.reported_end() > kUnreportedPacketsMax) {
    return send_bare_probe(now, out, true);
  }
  Draft draft = begin_packet(now, out, wire::PacketType::kAck, true);
  SentContent content;
  return finish_packet(now, draft, content);
}

std::size_t Lane::Impl::send_bare_probe(Instant now, std::span<std::byte> out, bool with_ack) {
  Draft draft = begin_packet(now, out, wire::PacketType::kProbe, with_ack);
  put_prefix(draft, 0, 0);
  draft.header.flags |= wire::kFlagAckNow;
  early_probe_wanted_ = false;
  bare_probe_outstanding_ = true;
  SentContent content{.kind = ContentKind::kProbe};
  return finish_packet(now, draft, content);
}

std::size_t Lane::Impl::send_mtu_probe(Instant now, std::span<std::byte> out, std::uint32_t bytes, bool with_ack) {
  Draft draft = begin_packet(now, out, wire::PacketType::kProbe, with_ack);
  const std::size_t padding = bytes - draft.at - wire::kPrefixBytes - wire::kTagBytes;
  put_prefix(draft, 0, static_cast<std::uint16_t>(padding));
  std::fill_n(draft.out.begin() + static_cast<std::ptrdiff_t>(draft.at), padding, std::byte{0});
  draft.at += padding;
  draft.header.flags |= wire::kFlagAckNow;
  path_mtu_.on_probe_sent();
  SentContent content{.kind = ContentKind::kMtuProbe};
  return finish_packet(now, draft, content);
}

std::size_t Lane::Impl::send_content(Instant now, std::span<std::byte> out, Next next, bool with_ack) {
  if (next == Next::kMessage) {
    page_packets_in_row_ = 0;
    return send_message_chunk(now, out, with_ack);
  }
  ++page_packets_in_row_;
  return works_.at(works_.front()).work.zero ? send_zero_runs(now, out, with_ack) : send_pages(now, out, with_ack);
}

/// Where the pages of a packet lie; empty if one of them has to be copied.
Lane::Impl::Lying Lane::Impl::find_in_place(const SentContent& content) {
  if (layout_.parts_per_page != 1 || (!sealer_->encrypts() && in_place_ == nullptr)) {
    return {};
  }
  Lying found;
  std::size_t count = 0;
  for (const std::uint32_t slot : {content.slot, content.second}) {
    if (slot == kNoSlot) {
      continue;
    }
    const WorkSlot& entry = works_.at(slot);
    // What goes out again is copied: then no tag can be wrong because the guest writes, however often it does.
    const bool again = entry.lost != 0 && !sealer_->encrypts() && !has_room();
    found[count] = again ? std::span<const std::byte>() : user_.page_in_place(entry.work.page, !sealer_->encrypts());
    if (found[count].empty()) {
      return {};
    }
    GW_ASSERT(found[count].size() == pages::kPageSize);
    ++count;
  }
  counters_.pages_in_place += count;
  return found;
}

void Lane::Impl::put_desc(Draft& draft, const WorkSlot& entry, std::uint32_t part) {
  const std::uint32_t length = layout_.length(part);
  draft.at += wire::write_page_desc({.page = entry.work.page,
                                     .round = entry.work.round,
                                     .offset = static_cast<std::uint16_t>(layout_.offset(part)),
                                     .length = static_cast<std::uint16_t>(length)},
                                    draft.out.subspan(draft.at));
  counters_.payload_bytes_sent += length;
  const bool again = (entry.lost >> part & 1) != 0;
  counters_.pages_retransmitted += again ? 1 : 0;
  counters_.pages_sent += !again && part == 0 ? 1 : 0;
}

/// All of the packet but its header and tag; with a room for the pages, all but those too.
void Lane::Impl::put_pages(Draft& draft, const SentContent& content, const Lying& lying) {
  const auto part = static_cast<std::uint32_t>(std::countr_zero(content.parts));
  for (const std::uint32_t slot : {content.slot, content.second}) {
    if (slot != kNoSlot) {
      put_desc(draft, works_.at(slot), part);
    }
  }
  draft.pages_at = draft.at;
  if (copies_into_room(lying)) {
    draft.in_place.bytes = page_count(content) * pages::kPageSize;
    return;
  }
  std::size_t i = 0;
  for (const std::uint32_t slot : {content.slot, content.second}) {
    if (slot == kNoSlot) {
      continue;
    }
    const WorkSlot& entry = works_.at(slot);
    if (!lying[0].empty()) {
      draft.in_place.add(lying[i]);
      note_hash(draft, entry, lying[i++]);
      continue;
    }
    const std::span<std::byte> out = draft.out.subspan(draft.at, layout_.length(part));
    read_part(entry.work.page, part, out);
    note_hash(draft, entry, out);
    draft.at += out.size();
  }
}

/// One pass over the page: it is read from RAM that is in no cache.
void Lane::Impl::copy_into_room(Draft& draft, const SentContent& content, const Lying& lying) {
  std::array<pages::PageCopy, wire::kPagesPerPacketMax> copies;
  draft.hash_count = page_count(content);
  // Pages that are neighbours are likely to be followed by their neighbours.
  const bool in_order = draft.hash_count == 2 && lying[1].data() == lying[0].data() + pages::kPageSize;
  for (std::size_t i = 0; i < draft.hash_count; ++i) {
    const std::size_t at = draft.pages_at + i * pages::kPageSize;
    copies[i] = {.to = in_place_->room.data() + at,
                 .from = lying[i].data(),
                 .next_to = in_place_->next_room != nullptr ? in_place_->next_room + at : nullptr,
                 .next_from = in_order ? lying[i].data() + 2 * pages::kPageSize : nullptr};
  }
  pages::copy_pages(std::span(copies).first(draft.hash_count), std::span(draft.hashes).first(draft.hash_count));
  for (std::size_t i = 0; i < draft.hash_count; ++i) {
    user_.note_sent(works_.at(i == 0 ? content.slot : content.second).work.page, draft.hashes[i]);
  }
}

/// A part is taken from one whole reading, so that its user knows what page it is of.
void Lane::Impl::read_part(pages::PageNumber page, std::uint32_t part, std::span<std::byte> out) {
  const std::uint32_t offset = layout_.offset(part);
  if (layout_.parts_per_page == 1 || !user_.wants_hash(page, offset)) {
    return user_.read_page(page, offset, out);
  }
  std::array<std::byte, pages::kPageSize> whole;
  user_.read_page(page, 0, whole);
  user_.note_sent(page, pages::hash_page(whole));
  std::copy_n(whole.begin() + offset, out.size(), out.begin());
}

/// One reading gives what the tag is made of and what the user is told.
void Lane::Impl::note_hash(Draft& draft, const WorkSlot& entry, std::span<const std::byte> bytes) {
  const bool whole = layout_.parts_per_page == 1;
  if (sealer_->encrypts() && !(whole && user_.wants_hash(entry.work.page, 0))) {
    return;
  }
  const pages::PageHash hash = pages::hash_part(bytes);
  draft.hashes[draft.hash_count++] = hash;
  if (whole) {
    user_.note_sent(entry.work.page, hash);
  }
}

std::size_t Lane::Impl::send_pages(Instant now, std::span<std::byte> out, bool with_ack) {
  SentContent content{.kind = ContentKind::kPages, .slot = works_.front()};
  content.parts = works_.send_part();
  if (layout_.pages_per_packet == 2 && has_work() && !works_.at(works_.front()).work.zero) {
    content.second = works_.front();
    works_.send_part();
  }
  Draft draft = begin_packet(now, out, wire::PacketType::kPages, with_ack);
  put_prefix(draft, content.second == kNoSlot ? 1 : 2, 0);
  const Lying lying = find_in_place(content);
  put_pages(draft, content, lying);
  record(now, draft, content);
  if (copies_into_room(lying)) {
    copy_into_room(draft, content, lying);
  }
  return seal(draft);
}

std::size_t Lane::Impl::send_zero_runs(Instant now, std::span<std::byte> out, bool with_ack) {
  Draft draft = begin_packet(now, out, wire::PacketType::kZeroRuns, with_ack);
  const std::size_t prefix_at = draft.at;
  draft.at += wire::kPrefixBytes;
  SentContent content{.kind = ContentKind::kZeroRuns, .parts = 1};
  std::uint8_t count = 0;
  while (count < wire::kZeroRunsPerPacketMax && has_work()) {
    const std::uint32_t slot = works_.front();
    WorkSlot& entry = works_.at(slot);
    if (!entry.work.zero) {
      break;
    }
    works_.send_part();
    entry.chain_next = content.slot;
    content.slot = slot;
    draft.at += wire::write_zero_run({.first = entry.work.page, .count = entry.work.count, .round = entry.work.round},
                                     draft.out.subspan(draft.at));
    ++count;
  }
  const std::size_t end = draft.at;
  draft.at = prefix_at;
  put_prefix(draft, count, 0);
  draft.at = end;
  return finish_packet(now, draft, content);
}

std::size_t Lane::Impl::send_message_chunk(Instant now, std::span<std::byte> out, bool with_ack) {
  constexpr std::size_t kOverhead =
      wire::kHeaderBytes + kMessageAckRoom + wire::kPrefixBytes + wire::kMessageOffsetBytes + wire::kTagBytes;
  const auto chunk = sender_->take(path_mtu_.bytes() - kOverhead);
  GW_ASSERT(chunk.has_value());
  Draft draft = begin_packet(now, out, wire::PacketType::kMessage, with_ack);
  put_prefix(draft, 0, chunk->length);
  draft.at += wire::write_message_offset(chunk->offset, draft.out.subspan(draft.at));
  sender_->read(*chunk, draft.out.subspan(draft.at, chunk->length));
  draft.at += chunk->length;
  counters_.payload_bytes_sent += chunk->length;
  ++messages_in_flight_;
  SentContent content{.kind = ContentKind::kMessage, .length = chunk->length, .offset = chunk->offset};
  return finish_packet(now, draft, content);
}

}  // namespace godwit::transport
