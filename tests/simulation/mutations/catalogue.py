"""The mutations: what each breaks, and the text it replaces, which must be in its file exactly once."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
    name: str
    what: str
    path: str
    old: str
    new: str


TRANSPORT = 'dataplane/transport/'
TRANSFER = 'dataplane/transfer/'

MUTATIONS = (
    Mutation('old-rounds', 'packets that their sender gave up are applied (old rounds)', TRANSPORT + 'lane_receive.cpp',
             'const bool given_up = header.packet_number < acks_.floor();', 'const bool given_up = false;'),
    Mutation('number-reused', 'a packet number is used again after a bare acknowledgement', TRANSPORT + 'loss_recovery.cpp',
             'const std::uint64_t number = next_++;',
             'const std::uint64_t number = content.kind == ContentKind::kNone ? next_ : next_++;'),
    Mutation('loss-forgotten', 'the second page of a lost packet is forgotten', TRANSPORT + 'lane_receive.cpp',
             '''        if (slot != kNoSlot) {
          works_.on_lost(slot, content.parts);''',
             '''        if (slot != kNoSlot && slot == content.slot) {
          works_.on_lost(slot, content.parts);'''),
    Mutation('message-loss-forgotten', 'a lost piece of a message is forgotten', TRANSPORT + 'lane_receive.cpp',
             '      sender_->on_lost(content.offset, content.length);\n', ''),
    Mutation('ack-before-placed', 'a destination acknowledges a page that it did not place', TRANSFER + 'page_placer.cpp',
             '''      for (const pages::PageNumber page : completed_) {
        note_placed(page, 1, false);''',
             '''      for (const pages::PageNumber page : completed_) {
        if (page % 16 != 0) note_placed(page, 1, false);'''),
    Mutation('half-delivered', 'a packet is acknowledged, but its second page is not delivered', TRANSPORT + 'lane_receive.cpp',
             'for (std::size_t i = 0; i < body.count; ++i) {\n        const wire::PageDesc& desc',
             'for (std::size_t i = 0; i < 1; ++i) {\n        const wire::PageDesc& desc'),
    Mutation('credit-twice', 'the sender counts its credit twice', TRANSPORT + 'credit.h',
             'return packet_number <= edge_; }', 'return packet_number <= edge_ + kCreditPacketsInitial; }'),
    Mutation('window-ignored', 'the congestion window stops nothing', TRANSPORT + 'lane_transmit.cpp',
             'const bool window_open = probing || recovery_.outstanding() < swift_.window();', 'const bool window_open = true;'),
    Mutation('priority-pages-unbounded', 'the priority lane takes any number of pages in hand', TRANSPORT + 'lane.cpp',
             'config_.lane == kPriorityLane ? kPriorityWorksMax : WorkTable::kBulkSlots', 'WorkTable::kBulkSlots'),
    Mutation('no-replay-window', 'a packet number is accepted again', TRANSPORT + 'lane_receive.cpp',
             '    case ReplayWindow::Verdict::kDuplicate:\n      return Received::kDuplicate;',
             '    case ReplayWindow::Verdict::kDuplicate:\n      break;'),
    Mutation('duplicate-applied', 'a duplicate is delivered before it is refused', TRANSPORT + 'lane_receive.cpp',
             '''  if (const auto refused = refuse(header)) {
    return *refused;''',
             '''  if (const auto refused = refuse(header)) {
    if (*refused == Received::kDuplicate && opener_->open(now, header, datagram, recovery_.probe_timeout()) == Opened::kYes &&
        wire::parse_body(header, packet->body, body_) == wire::BadBody::kNone) {
      static_cast<void>(deliver(header, body_));
    }
    return *refused;'''),
    Mutation('probe-never-rearms', 'after three probe timeouts no other follows', TRANSPORT + 'loss_recovery.cpp',
             '''Instant LossRecovery::probe_deadline() const {
  if (outstanding_count_ == 0) {''',
             '''Instant LossRecovery::probe_deadline() const {
  if (outstanding_count_ == 0 || probe_count_ >= 3) {'''),
    Mutation('probe-without-data', 'a probe timeout sends nothing', TRANSPORT + 'lane.cpp',
             'probes_allowed_ = early_probe_wanted_ ? kProbePackets - 1 : kProbePackets;', 'probes_allowed_ = 0;'),
    Mutation('stale-life', 'the seal does not look at the secret: packets of another life are taken', TRANSPORT + 'seal.cpp',
             'return (low | high) == 0;', 'return (low | high) == 0 || packet[4] != std::byte{0};'),
    Mutation('black-hole', 'an MTU black hole is never seen', TRANSPORT + 'mtu_watch.h',
             'return evidence_ >= kEvidence;', 'return false;'),
    Mutation('black-hole-parts', 'in an MTU black hole pages in hand keep their old parts', TRANSPORT + 'work_table.cpp',
             'slot.unacknowledged = slot.unsent = parts;', 'slot.unsent = slot.unacknowledged;'),
    Mutation('late-ack-ignored', 'a late acknowledgement of what a probe took back gives no round trip', TRANSPORT + 'loss_recovery.cpp',
             '!(is_outstanding(ack.largest) || is_given_up(ack.largest))', '!is_outstanding(ack.largest)'),
    Mutation('death-unnoticed', 'a peer that is silent is never called dead', TRANSPORT + 'lane.cpp',
             'return since != kNever && now - since >= config_.peer_timeout;', 'return since == Instant{now.ns + 1};'),
    Mutation('own-pause', 'one probe timeout after a pause of our own is the death of the peer', TRANSPORT + 'lane.cpp',
             'return since != kNever && now - since >= config_.peer_timeout;',
             'return since != kNever && now - since >= Duration{config_.peer_timeout.ns / 64};'),
    Mutation('acknowledged-when-lost', 'a lost zero run counts as acknowledged', TRANSPORT + 'lane_receive.cpp',
             '''        works_.on_lost(slot, content.parts);
        slot = next;''',
             '''        Work done;
        if (works_.on_acknowledged(slot, content.parts, done)) user_.on_acknowledged(done);
        slot = next;'''),
    Mutation('key-not-changed', 'the key phase changes, the key does not', TRANSPORT + 'key_phases.cpp',
             '    secret_ = next_secret(secret_);\n', ''),
    Mutation('nonce-repeats', 'two packets share a nonce', TRANSPORT + 'key_phases.cpp',
             'wire::store_be<std::uint64_t>(nonce, sizeof(std::uint32_t), packet_number);',
             'wire::store_be<std::uint64_t>(nonce, sizeof(std::uint32_t), packet_number / 2);'),
    Mutation('keys-of-both-directions', 'both directions of a lane have the same keys', TRANSPORT + 'hkdf.cpp',
             '  context[2] = static_cast<std::byte>(direction);\n', '  static_cast<void>(direction);\n'),
    Mutation('forged-phase', 'a packet changes the key before its tag is verified', TRANSPORT + 'key_phases.cpp',
             '  if (!key(phase)->open(lane_, header.packet_number, packet)) {',
             '''  if (phase > phase_) {
    advance(now, header.packet_number, probe_timeout);
  }
  if (!key(phase)->open(lane_, header.packet_number, packet)) {'''),
)
