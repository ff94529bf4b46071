#include "dataplane/daemon/requests.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "dataplane/port/port.h"

namespace godwit::daemon {
namespace {

std::unexpected<ApiError> bad_request(std::string text) {
  return std::unexpected(ApiError{api::Error::BAD_REQUEST, std::move(text)});
}

/// Names appear in file names and logs.
bool plain_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  });
}

std::expected<memory::RegionFile, ApiError> parse_region(const api::Region& region) {
  const std::string label = "AttachGuest: region \"" + region.name().substr(0, 64) + "\"";
  if (!plain_name(region.name())) {
    return bad_request(label + ": a name is 1 to 64 letters, digits, - _ .");
  }
  if (region.page_bytes() != pages::kPageSize && region.page_bytes() != memory::kHugePageSize) {
    return bad_request(label + ": page_bytes " + std::to_string(region.page_bytes()) + " is neither 4096 nor 2097152");
  }
  if (region.bytes() == 0 || region.bytes() > kRegionBytesMax || region.bytes() % region.page_bytes() != 0) {
    return bad_request(label + ": " + std::to_string(region.bytes()) +
                       " bytes is not a multiple of its page size below 16 TiB");
  }
  if (region.qemu_address() % region.page_bytes() != 0 || region.qemu_address() + region.bytes() < region.bytes()) {
    return bad_request(label + ": qemu_address is not the start of a page, or the region wraps around");
  }
  if (!region.ram_path().empty() && (region.ram_path().front() != '/' || region.ram_path().size() > 4000)) {
    return bad_request(label + ": ram_path is not absolute");
  }
  memory::RegionFile file;
  file.name = region.name();
  file.bytes = region.bytes();
  file.page_bytes = region.page_bytes();
  file.qemu_address = region.qemu_address();
  file.path = region.ram_path();
  return file;
}

std::expected<std::optional<memory::TrackerKind>, ApiError> parse_tracker(api::Tracker tracker) {
  switch (tracker) {
    case api::TRACKER_AUTO:
      return std::nullopt;
    case api::TRACKER_PAGEMAP_SCAN:
      return memory::TrackerKind::kPagemapScan;
    case api::TRACKER_WRITE_PROTECT_EVENTS:
      return memory::TrackerKind::kWriteProtectEvents;
    case api::TRACKER_HASHES:
      return memory::TrackerKind::kHashes;
    default:
      return bad_request("AttachGuest: unknown tracker " + std::to_string(tracker));
  }
}

std::expected<PeerEndpoint, ApiError> parse_peer(const api::Endpoint& peer, const std::string& request) {
  const auto address = wire::parse_ip_address(peer.address());
  if (!address) {
    return bad_request(request + ": peer.address \"" + peer.address().substr(0, 64) + "\" is no IP address");
  }
  if (peer.udp_port() == 0 || peer.udp_port() > 65535) {
    return bad_request(request + ": peer.udp_port " + std::to_string(peer.udp_port()) + " is not 1 to 65535");
  }
  if (peer.flow_id() == 0) {
    return bad_request(request + ": peer.flow_id is 0");
  }
  if (peer.mtu_bytes() < port::kMtuMin || peer.mtu_bytes() > port::kMtuMax) {
    return bad_request(request + ": peer.mtu_bytes " + std::to_string(peer.mtu_bytes()) + " is not 1280 to 9216");
  }
  if (peer.lanes() == 0 || peer.lanes() > 64) {
    return bad_request(request + ": peer.lanes " + std::to_string(peer.lanes()) + " is not 1 to 64");
  }
  const auto boot_id = parse_id(peer.boot_id(), (request + ": peer.boot_id").c_str());
  if (!boot_id) {
    return std::unexpected(boot_id.error());
  }
  std::optional<wire::ReceiveSpread> receive_spread;
  if (peer.has_receive_spread()) {
    const api::ReceiveSpread& given = peer.receive_spread();
    const auto key = std::as_bytes(std::span(given.key()));
    receive_spread = {.key = {key.begin(), key.end()},
                      .table = {given.table().begin(), given.table().end()},
                      .queues = static_cast<std::uint16_t>(std::min<std::uint32_t>(given.queues(), UINT16_MAX))};
    if (!wire::is_valid(*receive_spread)) {
      return bad_request(request + ": peer.receive_spread: a key of " + std::to_string(given.key().size()) +
                         " bytes, a table of " + std::to_string(given.table().size()) + " for " +
                         std::to_string(given.queues()) + " queues");
    }
  }
  return PeerEndpoint{{*address, static_cast<std::uint16_t>(peer.udp_port())},
                      peer.flow_id(),
                      peer.mtu_bytes(),
                      static_cast<std::uint16_t>(peer.lanes()),
                      *boot_id,
                      std::move(receive_spread),
                      peer.super_frames()};
}

std::expected<transfer::PullOrderKind, ApiError> parse_order(api::BackgroundOrder order, const std::string& request) {
  switch (order) {
    case api::BACKGROUND_AROUND_FAULTS:
      return transfer::PullOrderKind::kAroundFaults;
    case api::BACKGROUND_SEQUENTIAL:
      return transfer::PullOrderKind::kSequential;
    case api::BACKGROUND_HOTTEST_FIRST:
      return transfer::PullOrderKind::kByRank;
    default:
      return bad_request(request + ": unknown policy.background_order");
  }
}

/// What of a policy is about pages that come after the guest.
std::expected<void, ApiError> parse_paging(const api::MigrationPolicy& policy, const std::string& request,
                                           transfer::Policy& result) {
  const auto mode = parse_mode(policy.mode());
  const auto order = parse_order(policy.background_order(), request);
  if (!mode || !order) {
    return std::unexpected(!mode ? mode.error() : order.error());
  }
  if (policy.postcopy_after_ms() > 30ULL * 86'400'000) {
    return bad_request(request + ": policy.postcopy_after_ms is more than 30 days");
  }
  result.mode = *mode;
  result.pull_order = *order;
  result.hybrid_rounds = policy.postcopy_after_rounds();
  result.hybrid_time = milliseconds(static_cast<std::int64_t>(policy.postcopy_after_ms()));
  return {};
}

std::expected<transfer::Policy, ApiError> parse_policy(const api::MigrationPolicy& policy, const std::string& request) {
  transfer::Policy result;
  constexpr std::uint64_t kLongestUs = 3'600'000'000;
  if (policy.downtime_limit_us() == 0 || policy.downtime_limit_us() > kLongestUs) {
    return bad_request(request + ": policy.downtime_limit_us " + std::to_string(policy.downtime_limit_us()) +
                       " is not 1 us to 1 h");
  }
  result.downtime_limit = microseconds(static_cast<std::int64_t>(policy.downtime_limit_us()));
  result.bandwidth_limit_bps = policy.bandwidth_limit_bps();
  switch (policy.verify()) {
    case api::VERIFY_SENT:
      result.verify = transfer::Verify::kSent;
      break;
    case api::VERIFY_OFF:
      result.verify = transfer::Verify::kOff;
      break;
    case api::VERIFY_FULL:
      result.verify = transfer::Verify::kFull;
      break;
    default:
      return bad_request(request + ": unknown policy.verify");
  }
  switch (policy.on_no_convergence()) {
    case api::NO_CONVERGENCE_ABORT:
      result.on_no_convergence = transfer::OnNoConvergence::kAbort;
      break;
    case api::NO_CONVERGENCE_POSTCOPY:
      result.on_no_convergence = transfer::OnNoConvergence::kPostcopy;
      break;
    case api::NO_CONVERGENCE_STOP_ANYWAY:
      result.on_no_convergence = transfer::OnNoConvergence::kStopAnyway;
      break;
    default:
      return bad_request(request + ": unknown policy.on_no_convergence");
  }
  if (policy.rounds_max() != 0) {
    result.rounds_max = policy.rounds_max();
  }
  if (policy.time_limit_ms() > 30ULL * 86'400'000) {
    return bad_request(request + ": policy.time_limit_ms is more than 30 days");
  }
  result.time_limit = milliseconds(static_cast<std::int64_t>(policy.time_limit_ms()));
  if (const auto paging = parse_paging(policy, request, result); !paging) {
    return std::unexpected(paging.error());
  }
  return result;
}

template <class Request>
std::expected<Start, ApiError> parse_new_flow(const Request& request, bool source, const std::string& name) {
  auto started = parse_flow(request.peer(), request.secret(), name);
  if (!started) {
    return started;
  }
  Start start = std::move(*started);
  if (source) {
    const auto policy = parse_policy(request.policy(), name);
    if (!policy) {
      return std::unexpected(policy.error());
    }
    start.policy = *policy;
  }
  return start;
}

/// One userfaultfd for each of the ranges, which are all of the guest's pages in their order. They come first in
/// `descriptors`.
std::expected<std::vector<FaultPart>, ApiError> parse_fault_ranges(const api::AttachGuest& request,
                                                                   std::span<UniqueFd> descriptors) {
  std::vector<FaultPart> parts;
  std::uint64_t pages = 0;
  std::vector<std::uint64_t> starts;  // of the regions
  for (const api::Region& region : request.regions()) {
    starts.push_back(pages);
    pages += region.bytes() / pages::kPageSize;
  }
  std::uint64_t next = 0;
  for (const api::FaultRange& range : request.fault_ranges()) {
    const auto region = std::ranges::upper_bound(starts, range.first_page());
    const bool aligned =
        region != starts.begin() && (range.first_page() - *std::prev(region)) % memory::kPagesPerHugePage == 0;
    if (range.first_page() != next || range.pages() == 0 || range.pages() > pages - next || !aligned) {
      return bad_request("AttachGuest: fault_ranges: pages " + std::to_string(range.first_page()) + " + " +
                         std::to_string(range.pages()) + " leave a gap, overlap, or begin within 2 MiB of a region");
    }
    parts.push_back({{range.first_page(), range.pages()}, std::move(descriptors[parts.size()])});
    next += range.pages();
  }
  if (!parts.empty() && next != pages) {
    return bad_request("AttachGuest: fault_ranges end at page " + std::to_string(next) + " of " +
                       std::to_string(pages));
  }
  return parts;
}

/// What can be told without looking at the regions.
std::expected<void, ApiError> check_attach(const api::AttachGuest& request, std::size_t descriptors) {
  const auto regions = static_cast<std::size_t>(request.regions_size());
  if (regions == 0 || regions > kRegionsMax) {
    return bad_request("AttachGuest: " + std::to_string(regions) + " regions; 1 to " + std::to_string(kRegionsMax) +
                       " are allowed");
  }
  const auto ranges = static_cast<std::size_t>(request.fault_ranges_size());
  if (ranges > kFaultRangesMax || (ranges != 0 && !request.has_userfaultfd())) {
    return bad_request("AttachGuest: " + std::to_string(ranges) + " fault_ranges; at most " +
                       std::to_string(kFaultRangesMax) + " are allowed, with as many userfaultfds");
  }
  const std::size_t userfaultfds = request.has_userfaultfd() ? std::max<std::size_t>(ranges, 1) : 0;
  const std::size_t wanted = regions + userfaultfds + (request.has_pagemap() ? 1 : 0);
  if (descriptors != wanted) {
    return bad_request("AttachGuest: " + std::to_string(descriptors) + " descriptors came, " + std::to_string(wanted) +
                       " belong to it (one a region, then userfaultfds, then pagemap)");
  }
  if (!api::AttachGuest::Kind_IsValid(request.kind())) {
    return bad_request("AttachGuest: unknown kind " + std::to_string(request.kind()));
  }
  if (request.epoch() == 0 || request.epoch() >= pages::kUnknownGeneration) {
    return bad_request("AttachGuest: epoch " + std::to_string(request.epoch()) + " is not 1 to 4294967294");
  }
  if (request.demand_paging() && !request.has_userfaultfd()) {
    return bad_request("AttachGuest: demand_paging needs a userfaultfd of QEMU, and none came: use mode precopy");
  }
  if (request.demand_paging() && request.kind() == api::AttachGuest::CONTINUING && request.paging_epoch() == 0) {
    return bad_request("AttachGuest: paging_epoch 0 names no migration whose pages could be missing");
  }
  if (request.split() && !request.has_userfaultfd()) {
    return bad_request("AttachGuest: split needs a userfaultfd of QEMU, and none came");
  }
  if (request.qemu_pid() <= 0) {
    return bad_request("AttachGuest: qemu_pid " + std::to_string(request.qemu_pid()) + " is no process");
  }
  return {};
}

}  // namespace

std::expected<Start, ApiError> parse_flow(const api::Endpoint& peer, const std::string& secret,
                                          const std::string& request) {
  Start start;
  auto endpoint = parse_peer(peer, request);
  if (!endpoint) {
    return std::unexpected(endpoint.error());
  }
  start.peer = std::move(*endpoint);
  if (secret.size() != start.secret.size()) {
    return bad_request(request + ": secret has " + std::to_string(secret.size()) + " bytes, not 32");
  }
  std::memcpy(start.secret.data(), secret.data(), start.secret.size());
  return start;
}

std::expected<Id128, ApiError> parse_id(const std::string& bytes, const char* field) {
  const auto id = Id128::from_bytes(bytes);
  if (!id || id->is_nil()) {
    return bad_request(std::string(field) + " has " + std::to_string(bytes.size()) +
                       " bytes or is all zero; an id is 16 bytes");
  }
  return *id;
}

std::expected<Attachment, ApiError> parse_attach(const api::AttachGuest& request, std::vector<UniqueFd> descriptors) {
  const auto vm = parse_id(request.vm_uuid(), "AttachGuest: vm_uuid");
  const auto image = parse_id(request.image_id(), "AttachGuest: image_id");
  if (!vm || !image) {
    return std::unexpected(!vm ? vm.error() : image.error());
  }
  if (const auto checked = check_attach(request, descriptors.size()); !checked) {
    return std::unexpected(checked.error());
  }
  const auto tracker = parse_tracker(request.tracker());
  if (!tracker) {
    return std::unexpected(tracker.error());
  }
  Attachment result;
  std::set<std::string> names;
  for (int i = 0; i < request.regions_size(); ++i) {
    auto region = parse_region(request.regions(i));
    if (!region) {
      return std::unexpected(region.error());
    }
    if (!names.insert(region->name).second) {
      return bad_request("AttachGuest: two regions are called \"" + region->name + "\"");
    }
    region->file = std::move(descriptors[static_cast<std::size_t>(i)]);
    result.files.push_back(std::move(*region));
  }
  const auto regions = static_cast<std::size_t>(request.regions_size());
  if (const auto ranges = static_cast<std::size_t>(request.fault_ranges_size()); ranges != 0) {
    auto parts = parse_fault_ranges(request, std::span(descriptors).subspan(regions, ranges));
    if (!parts) {
      return std::unexpected(parts.error());
    }
    result.fault_parts = std::move(*parts);
  } else if (request.has_userfaultfd()) {
    result.userfaultfd = std::move(descriptors[regions]);
  }
  if (request.has_pagemap()) {
    result.pagemap = std::move(descriptors.back());
  }
  result.vm_uuid = *vm;
  result.image_id = *image;
  result.ownership = request.ownership();
  result.tracker = *tracker;
  result.kind = request.kind();
  result.epoch = request.epoch();
  result.has_balloon = request.has_balloon();
  result.qemu_pid = request.qemu_pid();
  result.demand_paging = request.demand_paging();
  result.paging_epoch = request.paging_epoch();
  result.split = request.split();
  return result;
}

std::expected<transport::Cipher, ApiError> parse_encryption(api::Encryption encryption) {
  switch (encryption) {
    case api::ENCRYPTION_AES_128_GCM:
      return transport::Cipher::kAes128Gcm;
    case api::ENCRYPTION_AES_256_GCM:
      return transport::Cipher::kAes256Gcm;
    case api::ENCRYPTION_NONE:
      return transport::Cipher::kNone;
    default:
      return bad_request("PrepareMigration: unknown encryption " + std::to_string(encryption));
  }
}

std::expected<transfer::Mode, ApiError> parse_mode(api::Mode mode) {
  switch (mode) {
    case api::PRECOPY:
      return transfer::Mode::kPrecopy;
    case api::POSTCOPY:
      return transfer::Mode::kPostcopy;
    case api::HYBRID:
      return transfer::Mode::kHybrid;
    default:
      return bad_request("unknown mode " + std::to_string(mode));
  }
}

std::expected<Start, ApiError> parse_start(const api::StartMigration& request, bool source) {
  return parse_new_flow(request, source, "StartMigration");
}

std::expected<Start, ApiError> parse_resume(const api::ResumeMigration& request, bool source) {
  return parse_new_flow(request, source, "ResumeMigration");
}

std::expected<Accesses, ApiError> parse_accesses(const api::NoteAccesses& request) {
  const auto vm = parse_id(request.vm_uuid(), "NoteAccesses: vm_uuid");
  if (!vm) {
    return std::unexpected(vm.error());
  }
  Accesses accesses{.vm_uuid = *vm,
                    .ownership = request.ownership(),
                    .source = request.source(),
                    .first_page = request.first_page(),
                    .accessed = {},
                    .ends = request.ends()};
  const std::string& bits = request.accessed();
  if (request.source() == api::ACCESS_WRITES) {
    if (!bits.empty() || request.first_page() != 0 || !request.ends()) {
      return bad_request("NoteAccesses: a scan of writes names no pages, and ends");
    }
    return accesses;
  }
  if (request.source() != api::ACCESS_MODULE) {
    return bad_request("NoteAccesses: unknown source " + std::to_string(request.source()));
  }
  if (request.first_page() % 64 != 0 || bits.size() % 8 != 0 || bits.size() > kAccessedBytesMax) {
    return bad_request("NoteAccesses: " + std::to_string(bits.size()) + " bytes from page " +
                       std::to_string(request.first_page()) + "; multiples of 8, at most " +
                       std::to_string(kAccessedBytesMax) + ", and of 64 are allowed");
  }
  accesses.accessed.resize(bits.size() / 8);
  std::ranges::copy(std::as_bytes(std::span(bits)), std::as_writable_bytes(std::span(accesses.accessed)).begin());
  return accesses;
}

bool fits(const Accesses& accesses, std::uint64_t page_count) {
  const std::uint64_t words = (page_count + 63) / 64;
  const std::uint64_t first = accesses.first_page / 64;
  if (first > words || accesses.accessed.size() > words - first) {
    return false;
  }
  const bool reaches_end = first + accesses.accessed.size() == words;
  return page_count % 64 == 0 || accesses.accessed.empty() || !reaches_end ||
         accesses.accessed.back() >> (page_count % 64) == 0;
}

std::expected<HeatQuery, ApiError> parse_heat_query(const api::GetHeat& request) {
  const auto vm = parse_id(request.vm_uuid(), "GetHeat: vm_uuid");
  if (!vm) {
    return std::unexpected(vm.error());
  }
  if (request.cells() == 0 || request.cells() > kHeatCellsMax) {
    return bad_request("GetHeat: " + std::to_string(request.cells()) + " cells; 1 to " + std::to_string(kHeatCellsMax) +
                       " are allowed");
  }
  return HeatQuery{*vm, request.cells()};
}

api::Tracker to_api(memory::TrackerKind kind) {
  switch (kind) {
    case memory::TrackerKind::kPagemapScan:
      return api::TRACKER_PAGEMAP_SCAN;
    case memory::TrackerKind::kWriteProtectEvents:
      return api::TRACKER_WRITE_PROTECT_EVENTS;
    case memory::TrackerKind::kHashes:
      return api::TRACKER_HASHES;
  }
  return api::TRACKER_AUTO;
}

void to_api(const transfer::Stats& stats, api::MigrationStats& out) {
  out.set_round(stats.round);
  out.set_pages_total(stats.pages_total);
  out.set_pages_left(stats.pages_left);
  out.set_pages_sent(stats.pages_sent);
  out.set_pages_zero(stats.pages_zero);
  out.set_pages_reused(stats.pages_reused);
  out.set_pages_stored(stats.pages_stored);
  out.set_wire_bytes(stats.wire_bytes);
  out.set_table_bytes(stats.table_bytes);
  out.set_retransmitted_pages(stats.retransmitted_pages);
  out.set_rate_bps(stats.rate_bps);
  out.set_written_pages_per_s(stats.written_pages_per_s);
  out.set_elapsed_us(stats.elapsed_us);
  out.set_estimated_left_us(stats.estimated_left_us);
  out.set_device_state_bytes(stats.device_state_bytes);
  out.set_last_round_us(stats.last_round_us);
  out.set_pages_last_round(stats.pages_last_round);
  out.set_payload_bytes(stats.payload_bytes);
  out.set_packets_sent(stats.packets_sent);
  out.set_packets_lost(stats.packets_lost);
  out.set_probe_timeouts(stats.probe_timeouts);
  out.set_spurious_losses(stats.spurious_losses);
  out.set_rtt_us(stats.rtt_us);
  out.set_window_packets(stats.window_packets);
}

void to_api(const memory::PagerStats& counted, api::PagingStats& out) {
  out.set_pages_missing(counted.missing_pages);
  out.set_pages_zero(counted.local_pages);
  out.set_pages_given_back(counted.removed_pages);
  out.set_faults(counted.faults);
  out.set_faults_waiting(counted.waiting_faults);
  const auto us = [&counted](double share) { return counted.latency.percentile_ns(share) / 1000; };
  out.set_fault_p50_us(us(0.5));
  out.set_fault_p90_us(us(0.9));
  out.set_fault_p99_us(us(0.99));
  out.set_fault_p999_us(us(0.999));
  out.set_fault_max_us(counted.latency.max_ns / 1000);
  out.set_blocked_us((counted.latency.sum_ns + counted.waiting_ns) / 1000);
}

void to_api(const transfer::Stats& stats, const LivePaging* pager, api::PagingStats& out) {
  out.set_pages_demand(stats.pages_demand);
  out.set_pages_background(stats.pages_background);
  out.set_pages_asked_again(stats.pages_asked_again);
  if (pager == nullptr) {
    out.set_pages_missing(stats.pages_left);
    return;
  }
  to_api(pager->stats(), out);
  out.set_pages_missing_first(pager->missing_first());
  out.set_all_there_us(stats.all_there_us);
}

api::Error::Code to_api(transfer::Failure failure) {
  switch (failure) {
    case transfer::Failure::kGuestMemory:
      return api::Error::KERNEL;
    case transfer::Failure::kPeerLost:
    case transfer::Failure::kLaneClosed:
    case transfer::Failure::kPeerProtocol:
    case transfer::Failure::kPeerFailed:
      return api::Error::PEER;
    case transfer::Failure::kVerify:
      return api::Error::VERIFY_FAILED;
    case transfer::Failure::kNoConvergence:
    case transfer::Failure::kEpochsExhausted:
      return api::Error::NO_CONVERGENCE;
    case transfer::Failure::kCancelled:
      return api::Error::CANCELLED;
  }
  return api::Error::INTERNAL;
}

api::Error::Code to_api(memory::ErrorCode code) {
  switch (code) {
    case memory::ErrorCode::kBadArgument:
      return api::Error::BAD_REQUEST;
    case memory::ErrorCode::kNoMemory:
      return api::Error::NO_MEMORY;
    case memory::ErrorCode::kProcessGone:
    case memory::ErrorCode::kUnsupported:
    case memory::ErrorCode::kLost:
    case memory::ErrorCode::kKernel:
      return api::Error::KERNEL;
  }
  return api::Error::INTERNAL;
}

}  // namespace godwit::daemon
