#pragma once
// The edge of the local API: requests as they come become values that cannot be wrong, or one clear error; values
// become replies. Pure but for fstat-free moves of descriptors. Control thread.

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "base/uuid.h"
#include "dataplane.pb.h"
#include "dataplane/daemon/live_paging.h"
#include "dataplane/daemon/migration_flow.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/written_tracker.h"
#include "dataplane/transfer/migration.h"

namespace godwit::daemon {

namespace api = godwit::dataplane::v1;

struct ApiError {
  api::Error::Code code = api::Error::INTERNAL;
  std::string text;
};

/// The pages whose faults one userfaultfd serves.
struct FaultPart {
  memory::PageRange pages;
  UniqueFd userfaultfd;
};

struct Attachment {
  Id128 vm_uuid;
  Id128 image_id;
  std::uint64_t ownership = 0;
  std::vector<memory::RegionFile> files;
  std::optional<memory::TrackerKind> tracker;  // nullopt: the first that works
  UniqueFd userfaultfd;                        // of all pages; or
  std::vector<FaultPart> fault_parts;          // all pages together
  UniqueFd pagemap;
  api::AttachGuest::Kind kind = api::AttachGuest::FRESH;
  std::uint32_t epoch = 0;
  bool has_balloon = false;
  std::int32_t qemu_pid = 0;
  bool demand_paging = false;
  std::uint32_t paging_epoch = 0;  // of what is missing, where it continues
  bool split = false;
};

/// A scan of a guest's accesses, or a part of one.
struct Accesses {
  Id128 vm_uuid;
  std::uint64_t ownership = 0;
  api::AccessSource source = api::ACCESS_UNKNOWN;
  pages::PageNumber first_page = 0;  // of ACCESS_MODULE, as what follows
  std::vector<std::uint64_t> accessed;
  bool ends = false;
};

struct HeatQuery {
  Id128 vm_uuid;
  std::uint32_t cells = 0;
};

struct PeerEndpoint {
  wire::UdpEndpoint endpoint;
  std::uint32_t flow_id = 0;
  std::uint32_t mtu_bytes = 0;
  std::uint16_t lanes = 0;
  Id128 boot_id;
  std::optional<wire::ReceiveSpread> receive_spread;
  bool super_frames = false;
};

struct Start {
  PeerEndpoint peer;
  transport::Secret secret;  // of the migration
  transfer::Policy policy;
};

inline constexpr std::uint64_t kRegionBytesMax = std::uint64_t{1} << 44;  // 16 TiB
inline constexpr std::size_t kRegionsMax = 32;
inline constexpr std::size_t kFaultRangesMax = 64;
inline constexpr std::size_t kAccessedBytesMax = 128u << 10;
inline constexpr std::uint32_t kHeatCellsMax = 4096;
/// Of a text in a reply or event. It passes printable(): what is not UTF-8 the bridge could not parse, and would hang
/// up.
inline constexpr std::size_t kTextBytesMax = 2048;

std::expected<Id128, ApiError> parse_id(const std::string& bytes, const char* field);
std::expected<Attachment, ApiError> parse_attach(const api::AttachGuest& request, std::vector<UniqueFd> descriptors);
std::expected<transport::Cipher, ApiError> parse_encryption(api::Encryption encryption);
std::expected<transfer::Mode, ApiError> parse_mode(api::Mode mode);
/// Without a policy. `request`: its name, for errors.
std::expected<Start, ApiError> parse_flow(const api::Endpoint& peer, const std::string& secret,
                                          const std::string& request);
std::expected<Start, ApiError> parse_start(const api::StartMigration& request, bool source);
std::expected<Start, ApiError> parse_resume(const api::ResumeMigration& request, bool source);
/// What only the guest's size can tell is checked by fits().
std::expected<Accesses, ApiError> parse_accesses(const api::NoteAccesses& request);
bool fits(const Accesses& accesses, std::uint64_t page_count);
std::expected<HeatQuery, ApiError> parse_heat_query(const api::GetHeat& request);

api::Tracker to_api(memory::TrackerKind kind);
void to_api(const transfer::Stats& stats, api::MigrationStats& out);
/// `pager` null: of a source.
void to_api(const transfer::Stats& stats, const LivePaging* pager, api::PagingStats& out);
void to_api(const memory::PagerStats& counted, api::PagingStats& out);
api::Error::Code to_api(transfer::Failure failure);
api::Error::Code to_api(memory::ErrorCode code);

}  // namespace godwit::daemon
