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
SPLIT = 'dataplane/split/'

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
    Mutation('priority-pages-overlooked', 'the priority lane is quiet while its pages are under way', TRANSPORT + 'lane.cpp',
             'return works_.empty() && (!carries_messages() || sender_->all_acknowledged());',
             'return carries_messages() ? sender_->all_acknowledged() : works_.empty();'),
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
             'probes_allowed_ = kProbesWithData;', 'probes_allowed_ = 0;'),
    Mutation('stale-life', 'the seal does not look at the secret: packets of another life are taken', TRANSPORT + 'seal.cpp',
             'return (low | high) == 0;', 'return (low | high) == 0 || packet[4] != std::byte{0};'),
    Mutation('torn-taken', 'what a tag does not fit is taken', TRANSPORT + 'seal.cpp',
             'return checksum_.matches(packet, pages) ? Opened::kYes',
             'return checksum_.matches(packet, pages) || !packet.empty() ? Opened::kYes'),
    Mutation('torn-again', 'what goes out again is sent from where it lies', TRANSPORT + 'lane_transmit.cpp',
             'const bool again = entry.lost != 0 && !sealer_->encrypts() && !has_room();', 'const bool again = false;'),
    Mutation('placed-before-tag', 'what came is placed before its tag is looked at', TRANSPORT + 'lane_receive.cpp',
             '  if (const Opened opened = opener_->open(',
             '''  if (wire::parse_body(header, packet->body, body_) == wire::BadBody::kNone) {
    static_cast<void>(deliver(header, body_));
  }
  if (const Opened opened = opener_->open('''),
    Mutation('told-once', 'who compares content is told of a page when it goes out for the first time alone',
             TRANSPORT + 'lane_transmit.cpp', '  if (whole) {\n    user_.note_sent(', '  if (whole && entry.lost == 0) {\n    user_.note_sent('),
    Mutation('parts-untold', 'of a page in parts only the first part is told of', TRANSPORT + 'lane_transmit.cpp',
             '!user_.wants_hash(page, offset)', '(offset != 0 || !user_.wants_hash(page, offset))'),
    Mutation('other-hash-ignored', 'content that leaves and is not what the scan saw is not noticed', 'dataplane/memory/known_hashes.h',
             'if (get(page) != hash) {', 'if (get(page) == hash) {'),
    Mutation('black-hole', 'an MTU black hole is never seen', TRANSPORT + 'path_mtu.h',
             'if (evidence_ < kEvidence || next == count_) {', 'if (evidence_ < UINT32_MAX || next == count_) {'),
    Mutation('black-hole-twice', 'packets fall to those of MTU 1500 and no further', TRANSPORT + 'path_mtu.h',
             'if (evidence_ < kEvidence || next == count_) {', 'if (evidence_ < kEvidence || next == count_ || at_ > 0) {'),
    Mutation('rise-parts', 'when packets grow again pages in flight keep their old parts', TRANSPORT + 'lane_receive.cpp',
             '  if (path_mtu_.rises()) {\n    cut_anew(now);', '  if (path_mtu_.rises()) {\n    layout_ = page_layout(path_mtu_.bytes());'),
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
             '  if (!key(phase)->open(lane_, header.packet_number, packet, from)) {',
             '''  if (phase > phase_) {
    advance(now, header.packet_number, probe_timeout);
  }
  if (!key(phase)->open(lane_, header.packet_number, packet, from)) {'''),
    Mutation('pulled-over-written', 'a page of post-copy is written like a page of a round', TRANSFER + 'destination_pages.cpp',
             'round == kPullRound ? pull_placer_.on_page(page, offset, bytes) : placer_.on_page(round, page, offset, bytes);',
             'placer_.on_page(round, page, offset, bytes);'),
    Mutation('refused-forgotten', 'what could not be placed is not asked for again', TRANSFER + 'page_requests.cpp',
             '    late_.push_back(page);\n  }\n}', '    static_cast<void>(page);\n  }\n}'),
    Mutation('round-rest-dropped', 'what is left of the open round is not announced', TRANSFER + 'source_pull.cpp',
             '  if (loaded_) {\n    AnnouncedSet rest', '  if (loaded_ && at_once()) {\n    AnnouncedSet rest'),
    Mutation('last-generation-wrong', 'missing pages of the last round get the generation of another', TRANSFER + 'destination_paging.cpp',
             'table_.set_written(set.missing, config_.epoch_base + set.round);',
             'table_.set_written(set.missing, config_.epoch_base + 1);'),
    Mutation('zero-set-ignored', 'the zero set is not punched out', TRANSFER + 'destination_paging.cpp',
             'paging_->punch(*missing, *zero)', 'paging_->punch(*missing, pages::Bitmap(page_count_))'),
    Mutation('asked-twice', 'each fault asks for its page', TRANSFER + 'page_requests.cpp',
             '  if (!asked_.try_emplace(page).second) {\n    return false;\n  }\n  new_', '  asked_.try_emplace(page);\n  new_'),
    Mutation('zero-as-page', 'a zero page that is asked for crosses as a page', TRANSFER + 'source_pull.cpp',
             'out.zero = is_zero(out.page);', 'out.zero = false;'),
    Mutation('complete-early', 'complete with a page missing', TRANSFER + 'destination_paging.cpp',
             '  if (wanted_count_ != 0 || resuming_) {\n    return;', '  if (wanted_count_ > 1 || resuming_) {\n    return;'),
    Mutation('announced-in-flight', 'sets are announced with pages in flight', TRANSFER + 'source_pull.cpp',
             'opened_ && outstanding_ == 0 &&', 'opened_ &&'),
    Mutation('missing-claimed', 'after an abort what is missing keeps its generation', TRANSFER + 'destination_paging.cpp',
             'self->table_.set_written(doubtful, pages::kUnknownGeneration);', 'static_cast<void>(doubtful);'),
    Mutation('apart-in-round-1', 'what may leave meanwhile goes with round 1', TRANSFER + 'source_jobs.cpp',
             'job.link_bps, job.messages);\n  job.to_send.and_not(job.stored.away);', 'job.link_bps, job.messages);'),
    Mutation('written-not-told', 'a page that was written before it left is told of as the store has it', TRANSFER + 'source_jobs.cpp',
             'told.back().written = written;', 'told.back().written = false;'),
    Mutation('hashes-kept', 'what left after it was sent is still compared', TRANSFER + 'source_rounds.cpp',
             'hashes_.forget(stored_.told);', 'static_cast<void>(stored_.told);'),
    Mutation('round-2-before-list', 'round 2 begins before it is told what the stores have', TRANSFER + 'source_rounds.cpp',
             'if (round_ == 1 && !listed_) {', 'if (round_ == 1 && !listed_ && page_count_ == 0) {'),
    Mutation('held-keeps-leaving', 'a main host that is held gives stores nothing more', SPLIT + 'main_host.cpp',
             '(!gather_ || held_)', '!gather_ && !held_'),
    Mutation('rests-unknown', 'it rests while it does not know where pages are', SPLIT + 'main_host_fetch.cpp',
             'return !rebuild_ && outgoing_', 'return outgoing_'),
    Mutation('late-answer', 'an answer of an older version of a page is placed', SPLIT + 'main_host_fetch.cpp',
             'if (!copy || copy->sub != asked.sub || copy->version != asked.version) {', 'if (!copy) {'),
    Mutation('leaving-overlooked', 'a page on its way out is taken from the store that had it before', SPLIT + 'main_host_fetch.cpp',
             'if (!memory_.wants(page) || leaving_version(page)) {', 'if (!memory_.wants(page)) {'),
    Mutation('forgotten-before-held', 'a page counts as held when it is sent', SPLIT + 'main_host.cpp',
             '  ++stats_.sent_pages;\n', '  ++stats_.sent_pages;\n  memory_.forget_leaving(page, *version);\n'),
    Mutation('copy-while-replaced', 'a copy counts while another version of it is on its way to the same store', SPLIT + 'main_host.cpp',
             '    clear_copy(page);\n  }\n  outgoing_[page]', '  }\n  outgoing_[page]'),
    Mutation('list-ignored', 'what a store lists is not held against what it should have', SPLIT + 'main_host.cpp',
             'if (!copy || copy->sub != link.sub() || link.listed().test(page)) {', 'if (!copy || copy->sub != link.sub() || page < copies_.page_count()) {'),
    Mutation('dropped-while-leaving', 'a version that may be put again is dropped', SPLIT + 'main_host.cpp',
             'if (!leaves) {', 'if (!leaves || entry.version != 0) {'),
    Mutation('moved-although-full', 'a page that the other store refused counts as moved', SPLIT + 'main_host_drain.cpp',
             '      on_full(link);\n      return true;', '      on_full(link);\n      break;'),
    Mutation('moved-with-its-version', 'a page moves in the version that it has', SPLIT + 'main_host_drain.cpp',
             '= memory_.draw_version();', '= from.version;'),
    Mutation('left-out-undrained', 'a store goes before all that it holds is elsewhere', SPLIT + 'main_host_drain.cpp',
             'if (!is_drained(sub)) {', 'if (!drains(sub)) {'),
)
