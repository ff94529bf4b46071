#pragma once
// What an end of a transport benchmark stands on: guest RAM, EAL with one lcore, a port, a doorbell. Owned by the
// end's own process, on its main thread; EAL starts once in a process. Failure: one line for a person.

#include <cstdint>
#include <expected>
#include <memory>
#include <string>

#include "dataplane/memory/guest_ram.h"
#include "dataplane/port/doorbell.h"
#include "dataplane/port/environment.h"
#include "dataplane/port/port.h"

namespace godwit::perf {

inline constexpr unsigned kEndLcore = 0;

struct EndParts {
  memory::GuestRam ram;
  port::Environment environment;
  std::unique_ptr<port::Port> port;
  port::Doorbell doorbell;
};

/// `ram_file`: a memfd of so many pages; stays the caller's. `cpus`: of the lcore, as EAL wants them. Without
/// hugepages.
std::expected<EndParts, std::string> open_end_parts(int ram_file, std::uint64_t pages, const port::PortOptions& options,
                                                    const std::string& cpus);

}  // namespace godwit::perf
