#pragma once
// Publishes figures through DPDK's telemetry socket. publish() on the main thread, before the lcores start; `read` runs
// on the telemetry thread whenever somebody asks. A path that DPDK refuses (taken, telemetry off) is not published, and
// nothing else happens.

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace godwit::port {

using Figures = std::vector<std::pair<std::string, std::uint64_t>>;

bool publish(const std::string& path, const std::string& help, std::function<Figures()> read);

}  // namespace godwit::port
