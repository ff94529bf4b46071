#pragma once
// What a demand page takes over memif: from the request, a message on the priority lane, until the page, on the
// priority lane the other way, is placed; without other load, and beside bulk pages at full rate in the direction of
// the page. Needs two CPUs. Failure: why there is no figure.

#include <array>
#include <cstdint>
#include <expected>
#include <string>

#include "perf/benchmark.h"

namespace godwit::perf {

struct DemandSettings {
  std::uint64_t mib = 512;  // of guest RAM at each end
  std::uint32_t mtu = 9000;
  std::uint32_t round_trips = 20'000;  // of each kind, at most kRoundTripsMax
};

std::expected<void, std::string> measure_demand(const DemandSettings& settings, const std::array<std::string, 2>& cpus,
                                                Result& result);

}  // namespace godwit::perf
