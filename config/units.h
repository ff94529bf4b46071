#pragma once
// Quantities as people write them: "4GiB", "300ms", "1Gbit/s". Pure; any thread. An error is a phrase that tells what
// is wrong. Binary units (KiB, MiB, ...) for sizes, decimal (kbit/s, Mbit/s, ...) for rates; whole numbers or decimals
// ("1.5GiB"), one space allowed before the unit. "0" alone is zero of anything; any other number needs its unit. No
// overflow, no sign.

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

#include "base/time.h"

namespace godwit::config {

[[nodiscard]] std::expected<std::uint64_t, std::string> parse_bytes(std::string_view text);  // B KiB MiB GiB TiB
[[nodiscard]] std::expected<Duration, std::string> parse_duration(std::string_view text);    // us ms s min h
[[nodiscard]] std::expected<std::uint64_t, std::string> parse_rate_bps(
    std::string_view text);  // bit/s kbit/s Mbit/s Gbit/s

/// "4 GiB", "1.5 MiB", "300 ms", "1 Gbit/s": for messages and tables, at most one decimal.
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);
[[nodiscard]] std::string format_duration(Duration duration);
[[nodiscard]] std::string format_rate_bps(std::uint64_t rate_bps);
/// "1234 pages (4.8 MiB)", of 4 KiB.
[[nodiscard]] std::string format_pages(std::uint64_t pages);

}  // namespace godwit::config
