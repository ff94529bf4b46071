#pragma once
// What an end of a transport benchmark stands on: guest RAM, EAL with one lcore, a port, a doorbell. Owned by the
// end's own process, on its main thread; EAL starts once in a process. Failure: one line for a person.

#include <array>
#include <atomic>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/flow_lanes.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/port/doorbell.h"
#include "dataplane/port/environment.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/port.h"
#include "perf/processes.h"

namespace godwit::perf {

inline constexpr unsigned kEndLcore = 0;
inline constexpr std::uint32_t kEndFlowId = 0x1001;  // at both ends
inline constexpr std::uint16_t kEndUdpPort = 7447;

/// Of the end that gives pages, or of the other.
[[nodiscard]] wire::IpAddress end_address(bool gives);
[[nodiscard]] port::NeighboursOptions end_neighbours(const port::Port& port, bool gives);

/// Of the only flow. Its figures are made.
[[nodiscard]] daemon::FlowConfig end_flow_config(bool gives, std::uint32_t mtu, transport::Cipher cipher);
/// Of a data path that polls and watches nothing.
[[nodiscard]] daemon::DataPathOptions end_data_path(const port::Port& port, bool gives);

[[nodiscard]] port::PortOptions end_memif(const std::string& socket, bool gives, std::uint32_t mtu);

struct EndPort {
  port::Environment environment;
  std::unique_ptr<port::Port> port;
  port::Doorbell doorbell;
};

/// `cpus`: of the lcore, as EAL wants them. Without hugepages.
std::expected<EndPort, std::string> open_end_port(const port::PortOptions& options, const std::string& cpus);
/// The RAM in a memfd of so many pages, which stays the caller's.
std::expected<memory::GuestRam, std::string> open_end_ram(int ram_file, std::uint64_t pages);

/// memif's client does not start without its server.
void wait_for_memif_server(const std::atomic<bool>& ready, const std::atomic<bool>& stop);
/// Ends the process, with the port open, when `run` is through; comes back only if it has left an `error`.
std::unexpected<std::string> run_on_end_lcore(EndPort& end, const std::function<void()>& run, const std::string& error);

/// Where an end says why it failed; empty: it has not.
using EndError = std::array<char, 512>;
void tell_error(const std::string& text, EndError& out);
/// Until both ends are through: what one of them says went wrong, else how they ended (Children::wait).
std::expected<void, std::string> wait_for_ends(Children& ends, Duration longest, std::span<const EndError> errors);

}  // namespace godwit::perf
