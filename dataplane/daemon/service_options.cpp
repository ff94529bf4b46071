#include "dataplane/daemon/service_options.h"

#include <algorithm>

#include "dataplane/transport/hkdf.h"

namespace godwit::daemon {
namespace {

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

transport::FlowEnd flow_end(const Id128& boot_id, std::uint32_t flow_id) {
  transport::FlowEnd end{.flow_id = flow_id};
  std::ranges::copy(std::as_bytes(std::span(boot_id.bytes())), end.boot_id.begin());
  return end;
}

}  // namespace

std::optional<ApiError> ServiceOptions::refuse_clear_text(transport::Cipher cipher) const {
  if (cipher != transport::Cipher::kNone || allow_clear_text) {
    return std::nullopt;
  }
  return bad_request(
      "the plan says encryption = \"none\", which this data plane does not allow: take it out of the plan, or set "
      "allow_clear_text = true in " +
      config_file + " of both hosts and restart their data planes");
}

void ServiceOptions::describe(std::uint32_t flow_id, api::Endpoint& endpoint) const {
  endpoint.set_address(address);
  endpoint.set_udp_port(udp_port);
  endpoint.set_flow_id(flow_id);
  endpoint.set_mtu_bytes(mtu_bytes);
  endpoint.set_boot_id(daemon_boot_id.to_bytes());
  endpoint.set_lanes(bulk_lanes);
  endpoint.set_super_frames(takes_super_frames);
  if (receive_spread) {
    endpoint.mutable_receive_spread()->set_key(receive_spread->key.data(), receive_spread->key.size());
    endpoint.mutable_receive_spread()->set_table(receive_spread->table.data(), receive_spread->table.size());
    endpoint.mutable_receive_spread()->set_queues(receive_spread->queues);
  }
}

FlowConfig flow_config(const ServiceOptions& options, const NewFlow& flow, const Start& start,
                       const wire::IpAddress& local, std::uint16_t lcores) {
  FlowConfig config;
  config.local_flow_id = flow.flow_id;
  config.peer_flow_id = start.peer.flow_id;
  config.local = local;
  config.peer = start.peer.endpoint;
  config.mtu_bytes = std::min(options.mtu_bytes, start.peer.mtu_bytes);
  config.bulk_lanes = std::min(options.bulk_lanes, start.peer.lanes);
  config.lcores = lcores;
  config.peer_spread = start.peer.receive_spread;
  config.peer_takes_super_frames = start.peer.super_frames;
  config.cipher = flow.cipher;
  const transport::FlowEnd here = flow_end(options.daemon_boot_id, flow.flow_id);
  const transport::FlowEnd there = flow_end(start.peer.boot_id, start.peer.flow_id);
  config.secret = transport::flow_secret(start.secret, flow.initiator ? here : there, flow.initiator ? there : here);
  config.credit_packets = options.credit_packets;
  config.peer_timeout = options.peer_timeout;
  config.base_rtt = options.base_rtt;
  config.rtt_granularity = options.rtt_granularity;
  config.figures = make_flow_figures(config.bulk_lanes);
  config.figures->flow_id = flow.flow_id;
  config.figures->peer = wire::to_string(start.peer.endpoint.address);
  return config;
}

std::expected<wire::IpAddress, ApiError> source_address(const ServiceOptions& options, const PeerEndpoint& peer) {
  const port::Neighbours routes({{}, options.addresses, {}, {}});
  const auto local = routes.source_for(peer.endpoint.address);
  if (!local) {
    return std::unexpected(bad_request("peer.address: this host has no address of the family of " +
                                       wire::to_string(peer.endpoint.address)));
  }
  return *local;
}

}  // namespace godwit::daemon
