#include "config/units.h"

#include <fmt/format.h>

#include <span>

namespace godwit::config {

namespace {

struct Unit {
  std::string_view name;
  std::uint64_t factor;
};

constexpr Unit kSizeUnits[] = {
    {"B", 1}, {"KiB", 1ULL << 10}, {"MiB", 1ULL << 20}, {"GiB", 1ULL << 30}, {"TiB", 1ULL << 40}};
constexpr Unit kTimeUnits[] = {
    {"us", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}, {"min", 60'000'000'000}, {"h", 3'600'000'000'000}};
constexpr Unit kRateUnits[] = {{"bit/s", 1}, {"kbit/s", 1'000}, {"Mbit/s", 1'000'000}, {"Gbit/s", 1'000'000'000}};

__extension__ using Wide = unsigned __int128;

constexpr Wide kQuantityMax = INT64_MAX;

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string unit_names(std::span<const Unit> units) {
  std::string out;
  for (const auto& unit : units) {
    out += (out.empty() ? "" : ", ") + std::string(unit.name);
  }
  return out;
}

const Unit* find_unit(std::string_view name, std::span<const Unit> units) {
  for (const auto& unit : units) {
    if (name == unit.name) {
      return &unit;
    }
  }
  return nullptr;
}

/// digits = whole * scale, scale = 10^decimals; at most 18 digits, so nothing overflows.
struct Decimal {
  std::uint64_t digits = 0;
  std::uint64_t scale = 1;
  std::size_t length = 0;  // characters; 0 = no number there
};

Decimal parse_decimal(std::string_view text) {
  Decimal number;
  std::size_t digit_count = 0;
  bool after_point = false;
  std::size_t at = 0;
  for (; at < text.size() && digit_count < 18; ++at) {
    if (text[at] == '.' && !after_point && digit_count > 0) {
      after_point = true;
      continue;
    }
    if (!is_digit(text[at])) {
      break;
    }
    number.digits = number.digits * 10 + static_cast<std::uint64_t>(text[at] - '0');
    number.scale *= after_point ? 10 : 1;
    ++digit_count;
  }
  const bool ends_in_digit = at > 0 && is_digit(text[at - 1]);
  number.length = ends_in_digit ? at : 0;
  return number;
}

std::expected<std::uint64_t, std::string> parse_quantity(std::string_view text, std::span<const Unit> units,
                                                         std::string_view what) {
  const auto number = parse_decimal(text);
  auto unit_text = text.substr(number.length);
  if (number.length == 0) {
    return std::unexpected(fmt::format("is no {}: write a number and one of {}", what, unit_names(units)));
  }
  if (unit_text.empty() && number.digits == 0) {
    return 0;
  }
  if (unit_text.starts_with(' ')) {
    unit_text.remove_prefix(1);
  }
  const Unit* unit = find_unit(unit_text, units);
  if (unit == nullptr) {
    return std::unexpected(
        fmt::format("has no unit of a {} that is known here: write one of {}", what, unit_names(units)));
  }
  const auto product = static_cast<Wide>(number.digits) * unit->factor;
  if (product % number.scale != 0) {
    return std::unexpected(fmt::format("is no whole number of {}", units.front().name));
  }
  if (product / number.scale > kQuantityMax) {
    return std::unexpected(std::string("is too large"));
  }
  return static_cast<std::uint64_t>(product / number.scale);
}

/// In the largest unit that it fills; one decimal where it is not whole.
std::string format_quantity(std::uint64_t value, std::span<const Unit> units) {
  const Unit* unit = &units.front();
  for (const auto& candidate : units) {
    if (value >= candidate.factor) {
      unit = &candidate;
    }
  }
  if (value % unit->factor == 0) {
    return fmt::format("{} {}", value / unit->factor, unit->name);
  }
  return fmt::format("{:.1f} {}", static_cast<double>(value) / static_cast<double>(unit->factor), unit->name);
}

}  // namespace

std::expected<std::uint64_t, std::string> parse_bytes(std::string_view text) {
  return parse_quantity(text, kSizeUnits, "size");
}

std::expected<Duration, std::string> parse_duration(std::string_view text) {
  const auto ns = parse_quantity(text, kTimeUnits, "length of time");
  if (!ns) {
    return std::unexpected(ns.error());
  }
  return Duration{static_cast<std::int64_t>(*ns)};
}

std::expected<std::uint64_t, std::string> parse_rate_bps(std::string_view text) {
  return parse_quantity(text, kRateUnits, "rate");
}

std::string format_bytes(std::uint64_t bytes) { return format_quantity(bytes, kSizeUnits); }

std::string format_duration(Duration duration) {
  const bool negative = duration.ns < 0;
  const auto ns = negative ? 0 - static_cast<std::uint64_t>(duration.ns) : static_cast<std::uint64_t>(duration.ns);
  return (negative ? "-" : "") + format_quantity(ns, kTimeUnits);
}

std::string format_rate_bps(std::uint64_t rate_bps) { return format_quantity(rate_bps, kRateUnits); }

std::string format_pages(std::uint64_t pages) {
  constexpr std::uint64_t kPageBytes = 4096;
  return std::to_string(pages) + (pages == 1 ? " page (" : " pages (") + format_bytes(pages * kPageBytes) + ")";
}

}  // namespace godwit::config
