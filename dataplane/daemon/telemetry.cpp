#include "dataplane/daemon/telemetry.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>

namespace godwit::daemon {
namespace {

using Lcores = std::vector<LcoreFigures>;

/// One for each reason of the enum E but those in `left_out`; `count_of`: of the reason's number.
template <class E, class F>
void put_drops(std::vector<DropCount>& drops, std::string_view layer, std::initializer_list<E> left_out,
               const F& count_of) {
  for (std::size_t i = 0; i < static_cast<std::size_t>(E::kCount); ++i) {
    const auto reason = static_cast<E>(i);
    if (std::ranges::find(left_out, reason) == left_out.end()) {
      drops.push_back({layer, to_string(reason), count_of(i)});
    }
  }
}

port::Figures loop_figures(std::span<const LcoreFigures> lcores) {
  struct {
    std::uint64_t turns = 0, sleeps = 0, busy_ns = 0, polling_ns = 0, asleep_ns = 0;
    std::uint64_t frames_received = 0, bytes_received = 0, frames_sent = 0, bytes_sent = 0;
    std::uint64_t stalls = 0, waiting = 0, handed_over = 0, receive_cycles = 0, transmit_cycles = 0;
  } sum;
  for (const LcoreFigures& lcore : lcores) {
    const port::QueueCounters& queue = lcore.data_path->queue().counters();
    const port::LoopCounters& loop = lcore.loop->counters();
    const DataPathCounters& path = lcore.data_path->counters();
    sum.turns += loop.turns;
    sum.sleeps += loop.sleeps;
    sum.busy_ns += loop.busy_ns;
    sum.polling_ns += loop.polling_ns;
    sum.asleep_ns += loop.asleep_ns;
    sum.frames_received += queue.frames_received;
    sum.bytes_received += queue.bytes_received;
    sum.frames_sent += queue.frames_sent;
    sum.bytes_sent += queue.bytes_sent;
    sum.stalls += queue.transmit_stalls;
    sum.waiting += queue.transmit_waiting_frames;
    sum.handed_over += path.handed_over;
    sum.receive_cycles += path.receive_cycles;
    sum.transmit_cycles += path.transmit_cycles;
  }
  return {{"turns", sum.turns},
          {"sleeps", sum.sleeps},
          {"busy_us", sum.busy_ns / 1000},
          {"polling_us", sum.polling_ns / 1000},
          {"asleep_us", sum.asleep_ns / 1000},
          {"frames_received", sum.frames_received},
          {"bytes_received", sum.bytes_received},
          {"frames_sent", sum.frames_sent},
          {"bytes_sent", sum.bytes_sent},
          {"transmit_stalls", sum.stalls},
          {"transmit_waiting_frames", sum.waiting},
          {"handed_over", sum.handed_over},
          {"receive_cycles", sum.receive_cycles},
          {"transmit_cycles", sum.transmit_cycles}};
}

/// Of all lcores: each page's way is on one of them, but the counters of lanes know no lcores.
void put_cycles_a_page(port::Figures& answer, const Lcores& lcores, const FigureBook& figures) {
  std::uint64_t receive = 0, transmit = 0, sent = 0, received = 0;
  for (const LcoreFigures& lcore : lcores) {
    receive += lcore.data_path->counters().receive_cycles;
    transmit += lcore.data_path->counters().transmit_cycles;
  }
  for (const LaneTotals& lane : figures.totals().lanes) {
    sent += lane.pages_sent;
    received += lane.pages_received;
  }
  answer.emplace_back("pages_sent", sent);
  answer.emplace_back("pages_received", received);
  answer.emplace_back("transmit_cycles_a_page", sent != 0 ? transmit / sent : 0);
  answer.emplace_back("receive_cycles_a_page", received != 0 ? receive / received : 0);
}

port::Figures lane_figures(const transport::LaneCounters& lane) {
  return {{"packets_sent", lane.packets_sent},
          {"bytes_sent", lane.bytes_sent},
          {"packets_received", lane.packets_received},
          {"bytes_received", lane.bytes_received},
          {"payload_bytes_sent", lane.payload_bytes_sent},
          {"pages_sent", lane.pages_sent},
          {"pages_received", lane.pages_received},
          {"pages_retransmitted", lane.pages_retransmitted},
          {"pages_in_place", lane.pages_in_place},
          {"packets_lost", lane.packets_lost},
          {"probe_timeouts", lane.probe_timeouts},
          {"spurious_losses", lane.spurious_losses},
          {"mtu_black_holes", lane.mtu_black_holes},
          {"rtt_us", lane.smoothed_rtt_ns / 1000},
          {"window_packets", lane.window_packets},
          {"in_flight_packets", lane.in_flight_packets},
          {"credit_left_packets", lane.credit_left_packets},
          {"works_in_hand", lane.works_in_hand},
          {"stream_backlog_bytes", lane.stream_backlog_bytes}};
}

port::Figures flow_figures(const FlowFigures& flow) {
  const transfer::Stats stats = flow.stats.get();
  return {{"role", std::string(to_string(flow.role))},
          {"migration", flow.migration.text()},
          {"vm", flow.vm_uuid.text()},
          {"peer", flow.peer},
          {"lanes", std::uint64_t{flow.lanes.size()}},
          {"round", std::uint64_t{stats.round}},
          {"pages_total", stats.pages_total},
          {"pages_left", stats.pages_left},
          {"pages_sent", stats.pages_sent},
          {"pages_zero", stats.pages_zero},
          {"pages_reused", stats.pages_reused},
          {"pages_retransmitted", stats.retransmitted_pages},
          {"wire_bytes", stats.wire_bytes},
          {"table_bytes", stats.table_bytes},
          {"device_state_bytes", stats.device_state_bytes},
          {"rate_bps", stats.rate_bps},
          {"written_pages_per_s", stats.written_pages_per_s},
          {"packets_sent", stats.packets_sent},
          {"packets_lost", stats.packets_lost},
          {"probe_timeouts", stats.probe_timeouts},
          {"spurious_losses", stats.spurious_losses},
          {"rtt_us", stats.rtt_us},
          {"window_packets", stats.window_packets}};
}

/// The whole of `text` as a decimal number.
std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

std::optional<port::Answer> list(const FigureBook& figures) {
  port::Figures answer;
  for (const auto& flow : figures.flows()) {
    answer.emplace_back(std::to_string(flow->flow_id),
                        std::string(to_string(flow->role)) + " of VM " + flow->vm_uuid.text());
  }
  return answer;
}

std::optional<port::Answer> flow(const FigureBook& figures, std::string_view parameters) {
  const auto id = number(parameters);
  const auto found = id ? figures.flow(*id) : nullptr;
  return found ? std::optional<port::Answer>(flow_figures(*found)) : std::nullopt;
}

std::optional<port::Answer> lane(const FigureBook& figures, std::string_view parameters) {
  const std::size_t comma = std::min(parameters.find(','), parameters.size());
  const auto id = number(parameters.substr(0, comma));
  const auto found = id ? figures.flow(*id) : nullptr;
  if (!found || comma == parameters.size()) {
    return std::nullopt;
  }
  const std::uint32_t index = number(parameters.substr(comma + 1)).value_or(UINT32_MAX);
  return index < found->lanes.size() ? std::optional<port::Answer>(lane_figures(*found->lanes[index])) : std::nullopt;
}

std::optional<port::Answer> vm(const FigureBook& figures, std::string_view parameters) {
  port::Names names;
  for (const GuestFigures& guest : figures.guests()) {
    if (guest.vm_uuid.text() == parameters) {
      return port::Figures{{"tracker", guest.tracker},
                           {"bytes_total", guest.bytes_total},
                           {"ownership", guest.ownership},
                           {"migration", guest.migration.is_nil() ? "" : guest.migration.text()}};
    }
    names.push_back(guest.vm_uuid.text());
  }
  return parameters.empty() ? std::optional<port::Answer>(names) : std::nullopt;
}

std::optional<port::Answer> paging(const FigureBook& figures, std::string_view parameters) {
  port::Names names;
  for (const GuestFigures& guest : figures.guests()) {
    if (!guest.paging) {
      continue;
    }
    if (guest.vm_uuid.text() == parameters) {
      const memory::PagerStats stats = guest.paging->stats();
      const auto us = [&stats](double share) { return stats.latency.percentile_ns(share) / 1000; };
      return port::Figures{{"pages_missing", stats.missing_pages},
                           {"pages_missing_first", guest.paging->missing_first()},
                           {"pages_demand", stats.demand_pages},
                           {"pages_background", stats.background_pages},
                           {"pages_zero", stats.zero_pages},
                           {"pages_local", stats.local_pages},
                           {"pages_given_back", stats.removed_pages},
                           {"pages_dropped", stats.dropped_pages},
                           {"faults", stats.faults},
                           {"faults_waiting", stats.waiting_faults},
                           {"fault_p50_us", us(0.5)},
                           {"fault_p99_us", us(0.99)},
                           {"fault_max_us", stats.latency.max_ns / 1000},
                           {"blocked_us", (stats.latency.sum_ns + stats.waiting_ns) / 1000}};
    }
    names.push_back(guest.vm_uuid.text());
  }
  return parameters.empty() ? std::optional<port::Answer>(names) : std::nullopt;
}

}  // namespace

std::vector<DropCount> drop_counts(const Lcores& lcores, const port::Port& port) {
  const port::PortDrops device = port.drops();
  std::vector<DropCount> drops{{"port", "missed", device.missed},
                               {"port", "receive_error", device.receive_errors},
                               {"port", "transmit_error", device.transmit_errors}};
  std::uint64_t no_buffer = 0, segmented = 0;
  for (const LcoreFigures& lcore : lcores) {
    no_buffer += lcore.data_path->queue().counters().drops_no_buffer;
    segmented += lcore.data_path->queue().counters().drops_segmented;
  }
  drops.push_back({"port", "no_buffer", no_buffer});
  drops.push_back({"port", "segmented", segmented});
  // The home lcore alone answers and learns.
  const port::NeighboursCounters& neighbours = lcores.front().data_path->neighbours_counters();
  drops.push_back({"neighbour", "ignored", neighbours.ignored});
  drops.push_back({"neighbour", "rejected", neighbours.rejected});
  const auto of_lcores = [&lcores](auto counters) {
    return [&lcores, counters](std::size_t reason) {
      std::uint64_t sum = 0;
      for (const LcoreFigures& lcore : lcores) {
        sum += (lcore.data_path->counters().*counters)[reason];
      }
      return sum;
    };
  };
  // What has reasons of its own is told by those.
  put_drops<Drop>(drops, "frame", {Drop::kMalformedIp, Drop::kMalformedPacket, Drop::kLane},
                  of_lcores(&DataPathCounters::drops));
  put_drops<wire::DatagramReject>(drops, "datagram", {}, of_lcores(&DataPathCounters::datagram_rejects));
  put_drops<wire::Reject>(drops, "packet", {}, of_lcores(&DataPathCounters::packet_rejects));
  put_drops<transport::Received>(drops, "lane", {transport::Received::kAccepted},
                                 of_lcores(&DataPathCounters::received));
  return drops;
}

std::vector<port::Publication> publish_telemetry(const Lcores& lcores, const port::Port& port,
                                                 const FigureBook& figures) {
  std::vector<port::Publication> all;
  const auto publish = [&all](const std::string& path, const char* help, port::ReadFigures read) {
    all.emplace_back(path, help, std::move(read));
  };
  publish("/godwit/list", "Flows of this data plane: id, and which end of which VM's migration",
          [&figures](auto) { return list(figures); });
  publish("/godwit/flow", "One flow. Parameter: flow id", [&figures](auto text) { return flow(figures, text); });
  publish("/godwit/lane", "One lane of a flow. Parameters: flow id, lane",
          [&figures](auto text) { return lane(figures, text); });
  publish("/godwit/vm", "Guests attached here, or one of them. Parameter: none, or UUID",
          [&figures](auto text) { return vm(figures, text); });
  publish("/godwit/paging", "Guests here that may lack pages, or one of them. Parameter: none, or UUID",
          [&figures](auto text) { return paging(figures, text); });
  publish("/godwit/drops", "Datagrams that changed nothing, by layer and reason", [lcores, &port](auto) {
    port::Figures answer;
    for (const DropCount& drop : drop_counts(lcores, port)) {
      answer.emplace_back(std::string(drop.layer) + "_" + std::string(drop.reason), drop.count);
    }
    return port::Answer(answer);
  });
  publish("/godwit/loop", "Turns, time, frames, bytes and cycles of all lcores", [lcores, &figures](auto) {
    port::Figures answer = loop_figures(lcores);
    put_cycles_a_page(answer, lcores, figures);
    return port::Answer(answer);
  });
  for (std::size_t i = 0; i < lcores.size(); ++i) {
    publish("/godwit/lcore" + std::to_string(i) + "/loop", "Turns, time, frames, bytes and cycles of one lcore",
            [lcore = lcores[i]](auto) { return port::Answer(loop_figures(std::span(&lcore, 1))); });
  }
  return all;
}

}  // namespace godwit::daemon
