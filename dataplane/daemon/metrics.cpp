#include "dataplane/daemon/metrics.h"

#include <array>
#include <map>
#include <string>

#include "dataplane/memory/written_tracker.h"

namespace godwit::daemon {
namespace {

using metrics::Kind;
using metrics::Metric;
using metrics::Samples;

// ---- the port and its lcores ----
constexpr Metric kFrames{"godwit_dataplane_frames_total", Kind::kCounter, "lcore,direction",
                         "Ethernet frames, by the lcore that received or sent them"};
constexpr Metric kFrameBytes{"godwit_dataplane_frame_bytes_total", Kind::kCounter, "lcore,direction",
                             "Bytes of those frames, Ethernet header included"};
constexpr Metric kStalls{"godwit_dataplane_transmit_stalls_total", Kind::kCounter, "lcore",
                         "Times that the driver's transmit ring had no room for all frames"};
constexpr Metric kWaiting{"godwit_dataplane_transmit_waiting_frames", Kind::kGauge, "lcore",
                          "Frames that wait for room in the driver's transmit ring"};
constexpr Metric kHandedOver{"godwit_dataplane_handed_over_frames_total", Kind::kCounter, "lcore",
                             "Frames received for a lane of another lcore, and given to it"};
constexpr Metric kDrops{"godwit_dataplane_drops_total", Kind::kCounter, "layer,reason",
                        "Received frames that changed nothing, and frames that could not be sent"};
constexpr Metric kNeighbours{"godwit_dataplane_neighbour_messages_total", Kind::kCounter, "kind",
                             "ARP and IPv6 neighbour discovery: questions asked, questions answered, answers learned"};
constexpr Metric kLinkUp{"godwit_dataplane_link_up", Kind::kGauge, "", "1 while the port's link is up"};
constexpr Metric kLcoreSeconds{"godwit_dataplane_lcore_seconds_total", Kind::kCounter, "lcore,state",
                               "Where the lcore's time went: busy (found work), polling (found none), asleep"};
constexpr Metric kTurns{"godwit_dataplane_lcore_turns_total", Kind::kCounter, "lcore", "Passes of the lcore's loop"};
constexpr Metric kSleeps{"godwit_dataplane_lcore_sleeps_total", Kind::kCounter, "lcore", "Times the lcore slept"};
constexpr Metric kCycles{"godwit_dataplane_lcore_cycles_total", Kind::kCounter, "lcore,work",
                         "TSC cycles spent receiving (placing included) and transmitting (reading pages included)"};
constexpr Metric kCyclesPerSecond{"godwit_dataplane_cycles_per_second", Kind::kGauge, "",
                                  "Frequency of the TSC, in which cycles are counted"};
// ---- all flows since the start ----
constexpr Metric kPackets{"godwit_dataplane_packets_total", Kind::kCounter, "lane,direction",
                          "Transport packets; lane 0 is the priority lane"};
constexpr Metric kPacketBytes{"godwit_dataplane_packet_bytes_total", Kind::kCounter, "lane,direction",
                              "Bytes of those packets as UDP payload"};
constexpr Metric kPayload{"godwit_dataplane_payload_sent_bytes_total", Kind::kCounter, "lane",
                          "Bytes of pages and messages sent, retransmissions included"};
constexpr Metric kLanePages{"godwit_dataplane_lane_pages_total", Kind::kCounter, "lane,direction",
                            "Pages with payload that crossed, once each time they were sent or received anew"};
constexpr Metric kRetransmitted{"godwit_dataplane_retransmitted_pages_total", Kind::kCounter, "lane",
                                "Pages, or parts of them, that were sent again"};
constexpr Metric kInPlace{"godwit_dataplane_in_place_pages_total", Kind::kCounter, "lane",
                          "Pages sent, or encrypted, from where they lie in guest RAM"};
constexpr Metric kLost{"godwit_dataplane_lost_packets_total", Kind::kCounter, "lane", "Packets taken for lost"};
constexpr Metric kSpurious{"godwit_dataplane_spurious_losses_total", Kind::kCounter, "lane",
                           "Packets taken for lost that had arrived after all"};
constexpr Metric kProbes{"godwit_dataplane_probe_timeouts_total", Kind::kCounter, "lane",
                         "Times that nothing was heard and a probe was sent"};
constexpr Metric kBlackHoles{"godwit_dataplane_mtu_black_holes_total", Kind::kCounter, "lane",
                             "Times that a lane gave up larger packets, because the path swallows them"};
constexpr Metric kGoodput{"godwit_dataplane_goodput_bytes_total", Kind::kCounter, "role",
                          "Bytes of pages without retransmissions: source, given to lanes; destination, placed in RAM"};
constexpr Metric kPages{"godwit_dataplane_pages_total", Kind::kCounter, "role,kind",
                        "Pages by how they moved: raw (payload), zero, reused (a retained image had them)"};
constexpr Metric kBytes{"godwit_dataplane_migration_bytes_total", Kind::kCounter, "role,kind",
                        "wire: IP bytes both ways; of them table: generation tables; device_state: QEMU's"};
constexpr Metric kRounds{"godwit_dataplane_rounds_total", Kind::kCounter, "role", "Rounds of pre-copy begun"};
constexpr Metric kEnded{"godwit_dataplane_migrations_ended_total", Kind::kCounter, "role,outcome",
                        "Migrations that had been started here and have ended"};
// ---- migrations under way ----
constexpr Metric kUnderWay{"godwit_dataplane_migrations", Kind::kGauge, "role", "Migrations under way"};
constexpr Metric kRound{"godwit_dataplane_migration_round", Kind::kGauge, "vm,role", "Round that is under way"};
constexpr Metric kPagesLeft{"godwit_dataplane_migration_pages_left", Kind::kGauge, "vm,role",
                            "Pages left in this round"};
constexpr Metric kRate{"godwit_dataplane_migration_rate_bytes_per_second", Kind::kGauge, "vm,role",
                       "Recent payload rate, source only"};
constexpr Metric kWritten{"godwit_dataplane_migration_written_pages_per_second", Kind::kGauge, "vm,role",
                          "Dirty rate: pages that the guest writes, by the last scan; source only"};
constexpr Metric kRtt{"godwit_dataplane_lane_rtt_seconds", Kind::kGauge, "vm,role,lane",
                      "Smoothed round-trip time; 0: not measured yet"};
constexpr Metric kWindow{"godwit_dataplane_lane_window_packets", Kind::kGauge, "vm,role,lane", "Congestion window"};
constexpr Metric kInFlight{"godwit_dataplane_lane_in_flight_packets", Kind::kGauge, "vm,role,lane",
                           "Packets not acknowledged yet"};
constexpr Metric kCredit{"godwit_dataplane_lane_credit_packets", Kind::kGauge, "vm,role,lane",
                         "Packets that the peer still lets us send"};
constexpr Metric kWorks{"godwit_dataplane_lane_works", Kind::kGauge, "vm,role,lane",
                        "Depth of the work table: pages and zero runs not acknowledged yet"};
constexpr Metric kBacklog{"godwit_dataplane_lane_stream_backlog_bytes", Kind::kGauge, "vm,role,lane",
                          "Depth of the message stream: bytes not acknowledged yet; lane 0"};
// ---- memory ----
constexpr Metric kGuests{"godwit_dataplane_guests", Kind::kGauge, "tracker", "Guests attached"};
constexpr Metric kGuestBytes{"godwit_dataplane_guest_memory_bytes", Kind::kGauge, "", "RAM of those guests"};
constexpr Metric kImages{"godwit_dataplane_retained_images", Kind::kGauge, "", "Retained images"};
constexpr Metric kImageBytes{"godwit_dataplane_retained_image_bytes", Kind::kGauge, "",
                             "Memory that retained images occupy"};
constexpr Metric kBudget{"godwit_dataplane_memory_budget_bytes", Kind::kGauge, "",
                         "memory_budget: for guests and images together; 0: none is set"};
constexpr Metric kAccessScans{"godwit_dataplane_access_scans_total", Kind::kCounter, "vm",
                              "Scans for the access history of a guest since it was attached"};
constexpr Metric kAccessed{"godwit_dataplane_accessed_pages", Kind::kGauge, "vm",
                           "Pages that the last of those scans found accessed"};
// ---- guests that run here and lack pages ----
constexpr Metric kMissing{"godwit_dataplane_missing_pages", Kind::kGauge, "vm",
                          "Pages of a guest that runs here which are still at the source of its migration"};
constexpr Metric kFaults{"godwit_dataplane_faults_total", Kind::kCounter, "vm",
                         "Page faults of a guest that lacks pages, read from its userfaultfds"};
constexpr Metric kFaultsWaiting{"godwit_dataplane_faults_waiting", Kind::kGauge, "vm",
                                "Of those faults, how many wait for a missing page now"};
constexpr Metric kPlaced{
    "godwit_dataplane_placed_pages_total", Kind::kCounter, "vm,kind",
    "Pages put before a running guest: demand (a thread waited), background, zero (told of), local "
    "(made here); given_back: not needed any more"};
constexpr Metric kBlocked{"godwit_dataplane_fault_blocked_seconds_total", Kind::kCounter, "vm",
                          "How long threads of a guest have waited for missing pages, all together"};

constexpr std::array kAll{
    &kFrames,        &kFrameBytes, &kStalls,    &kWaiting, &kHandedOver,   &kDrops,           &kNeighbours,
    &kLinkUp,        &kTurns,      &kSleeps,    &kCycles,  &kLcoreSeconds, &kCyclesPerSecond, &kPackets,
    &kPacketBytes,   &kPayload,    &kLanePages, &kLost,    &kSpurious,     &kProbes,          &kBlackHoles,
    &kRetransmitted, &kGoodput,    &kPages,     &kBytes,   &kRounds,       &kEnded,           &kUnderWay,
    &kRound,         &kPagesLeft,  &kRate,      &kWritten, &kRtt,          &kWindow,          &kInFlight,
    &kCredit,        &kWorks,      &kBacklog,   &kGuests,  &kGuestBytes,   &kImages,          &kImageBytes,
    &kInPlace,       &kBudget,     &kMissing,   &kFaults,  &kPlaced,       &kBlocked,         &kFaultsWaiting,
    &kAccessScans,   &kAccessed};

double seconds(std::uint64_t ns) { return static_cast<double>(ns) / 1e9; }

void put_lane(Samples& samples, const FlowFigures& flow, std::size_t index) {
  const transport::LaneCounters& lane = *flow.lanes[index];
  const std::vector<std::string> labels{flow.vm_uuid.text(), std::string(to_string(flow.role)), std::to_string(index)};
  samples.add(kRtt, labels, seconds(lane.smoothed_rtt_ns));
  samples.add(kWindow, labels, lane.window_packets.get());
  samples.add(kInFlight, labels, lane.in_flight_packets.get());
  samples.add(kCredit, labels, lane.credit_left_packets.get());
  if (index == 0) {
    samples.add(kBacklog, labels, lane.stream_backlog_bytes.get());
  }
  samples.add(kWorks, labels, lane.works_in_hand.get());
}

void put_lcores(Samples& samples, const MetricSources& sources) {
  for (std::size_t i = 0; i < sources.lcores.size(); ++i) {
    const std::string lcore = std::to_string(i);
    const port::QueueCounters& queue = sources.lcores[i].data_path->queue().counters();
    const port::LoopCounters& loop = sources.lcores[i].loop->counters();
    const DataPathCounters& path = sources.lcores[i].data_path->counters();
    samples.add(kFrames, {lcore, "received"}, queue.frames_received.get());
    samples.add(kFrames, {lcore, "sent"}, queue.frames_sent.get());
    samples.add(kFrameBytes, {lcore, "received"}, queue.bytes_received.get());
    samples.add(kFrameBytes, {lcore, "sent"}, queue.bytes_sent.get());
    samples.add(kStalls, {lcore}, queue.transmit_stalls.get());
    samples.add(kWaiting, {lcore}, queue.transmit_waiting_frames.get());
    samples.add(kHandedOver, {lcore}, path.handed_over.get());
    samples.add(kLcoreSeconds, {lcore, "busy"}, seconds(loop.busy_ns));
    samples.add(kLcoreSeconds, {lcore, "polling"}, seconds(loop.polling_ns));
    samples.add(kLcoreSeconds, {lcore, "asleep"}, seconds(loop.asleep_ns));
    samples.add(kTurns, {lcore}, loop.turns.get());
    samples.add(kSleeps, {lcore}, loop.sleeps.get());
    samples.add(kCycles, {lcore, "receive"}, path.receive_cycles.get());
    samples.add(kCycles, {lcore, "transmit"}, path.transmit_cycles.get());
  }
  samples.add(kCyclesPerSecond, {}, port::cycles_per_s());
  for (const DropCount& drop : drop_counts(sources.lcores, sources.port)) {
    samples.add(kDrops, {std::string(drop.layer), std::string(drop.reason)}, drop.count);
  }
  const port::NeighboursCounters& neighbours = sources.lcores.front().data_path->neighbours_counters();
  samples.add(kNeighbours, {"asked"}, neighbours.asked.get());
  samples.add(kNeighbours, {"answered"}, neighbours.answered.get());
  samples.add(kNeighbours, {"learned"}, neighbours.learned.get());
  samples.add(kLinkUp, {}, std::uint64_t{sources.port.link_up() ? 1U : 0U});
}

void put_totals(Samples& samples, const MetricSources& sources) {
  const FlowTotals totals = sources.figures.totals();
  for (std::size_t i = 0; i < totals.lanes.size(); ++i) {
    const std::string lane = std::to_string(i);
    const LaneTotals& sum = totals.lanes[i];
    samples.add(kPackets, {lane, "sent"}, sum.packets_sent);
    samples.add(kPackets, {lane, "received"}, sum.packets_received);
    samples.add(kPacketBytes, {lane, "sent"}, sum.bytes_sent);
    samples.add(kPacketBytes, {lane, "received"}, sum.bytes_received);
    samples.add(kPayload, {lane}, sum.payload_bytes_sent);
    samples.add(kLanePages, {lane, "sent"}, sum.pages_sent);
    samples.add(kLanePages, {lane, "received"}, sum.pages_received);
    samples.add(kRetransmitted, {lane}, sum.pages_retransmitted);
    samples.add(kInPlace, {lane}, sum.pages_in_place);
    samples.add(kLost, {lane}, sum.packets_lost);
    samples.add(kSpurious, {lane}, sum.spurious_losses);
    samples.add(kProbes, {lane}, sum.probe_timeouts);
    samples.add(kBlackHoles, {lane}, sum.mtu_black_holes);
  }
  for (std::size_t i = 0; i < totals.roles.size(); ++i) {
    const std::string role(to_string(static_cast<FlowRole>(i)));
    const RoleTotals& sum = totals.roles[i];
    samples.add(kGoodput, {role}, sum.pages_sent * pages::kPageSize);
    samples.add(kPages, {role, "raw"}, sum.pages_sent);
    samples.add(kPages, {role, "zero"}, sum.pages_zero);
    samples.add(kPages, {role, "reused"}, sum.pages_reused);
    samples.add(kBytes, {role, "wire"}, sum.wire_bytes);
    samples.add(kBytes, {role, "table"}, sum.table_bytes);
    samples.add(kBytes, {role, "device_state"}, sum.device_state_bytes);
    samples.add(kRounds, {role}, sum.rounds);
    samples.add(kEnded, {role, "committed"}, sum.committed);
    samples.add(kEnded, {role, "aborted"}, sum.aborted);
  }
}

void put_flows(Samples& samples, const MetricSources& sources) {
  std::array<std::uint64_t, static_cast<std::size_t>(FlowRole::kCount)> under_way{};
  for (const auto& flow : sources.figures.flows()) {
    ++under_way[static_cast<std::size_t>(flow->role)];
    const transfer::Stats stats = flow->stats.get();
    const std::vector<std::string> labels{flow->vm_uuid.text(), std::string(to_string(flow->role))};
    samples.add(kRound, labels, std::uint64_t{stats.round});
    samples.add(kPagesLeft, labels, stats.pages_left);
    if (flow->role == FlowRole::kSource) {
      samples.add(kRate, labels, stats.rate_bps / 8);
      samples.add(kWritten, labels, stats.written_pages_per_s);
    }
    for (std::size_t lane = 0; lane < flow->lanes.size(); ++lane) {
      put_lane(samples, *flow, lane);
    }
  }
  for (std::size_t i = 0; i < under_way.size(); ++i) {
    samples.add(kUnderWay, {std::string(to_string(static_cast<FlowRole>(i)))}, under_way[i]);
  }
}

void put_paging(Samples& samples, const MetricSources& sources) {
  for (const GuestFigures& guest : sources.figures.guests()) {
    if (!guest.paging) {
      continue;
    }
    const std::string vm = guest.vm_uuid.text();
    const memory::PagerStats stats = guest.paging->stats();
    samples.add(kMissing, {vm}, stats.missing_pages);
    samples.add(kFaults, {vm}, stats.faults);
    samples.add(kFaultsWaiting, {vm}, stats.waiting_faults);
    samples.add(kPlaced, {vm, "demand"}, stats.demand_pages);
    samples.add(kPlaced, {vm, "background"}, stats.background_pages);
    samples.add(kPlaced, {vm, "zero"}, stats.zero_pages);
    samples.add(kPlaced, {vm, "local"}, stats.local_pages);
    samples.add(kPlaced, {vm, "given_back"}, stats.removed_pages);
    samples.add(kBlocked, {vm}, seconds(stats.latency.sum_ns + stats.waiting_ns));
  }
}

void put_memory(Samples& samples, const MetricSources& sources) {
  std::map<std::string, std::uint64_t> guests;
  std::uint64_t guest_bytes = 0;
  for (const GuestFigures& guest : sources.figures.guests()) {
    ++guests[guest.tracker];
    guest_bytes += guest.bytes_total;
  }
  for (const auto kind :
       {memory::TrackerKind::kPagemapScan, memory::TrackerKind::kWriteProtectEvents, memory::TrackerKind::kHashes}) {
    const std::string tracker(memory::name_of(kind));
    samples.add(kGuests, {tracker}, guests[tracker]);
  }
  samples.add(kGuestBytes, {}, guest_bytes);
  for (const GuestFigures& guest : sources.figures.guests()) {
    samples.add(kAccessScans, {guest.vm_uuid.text()}, guest.access_scans);
    samples.add(kAccessed, {guest.vm_uuid.text()}, guest.accessed_pages);
  }
  const ImageFigures images = sources.figures.images();
  samples.add(kImages, {}, images.count);
  samples.add(kImageBytes, {}, images.bytes_resident);
  samples.add(kBudget, {}, sources.memory_budget_bytes);
}

}  // namespace

metrics::MetricList metric_list() { return kAll; }

Samples read_metrics(const MetricSources& sources) {
  Samples samples(kAll);
  put_lcores(samples, sources);
  put_totals(samples, sources);
  put_flows(samples, sources);
  put_memory(samples, sources);
  put_paging(samples, sources);
  return samples;
}

}  // namespace godwit::daemon
