#include "controlplane/ctl/heat_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/log.h"
#include "config/units.h"
#include "controlplane/ctl/format.h"

namespace godwit::ctl {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::size_t kLabelColumns = 12;  // "  1023.5 GiB "
constexpr std::size_t kLineCellsMin = 8;
constexpr std::string_view kShades = " .:-=+*#%@";
/// From black over red and yellow to white, in the 256 colours of terminals and as SVG has them.
struct Shade {
  int terminal;
  const char* svg;
};
constexpr std::array<Shade, 10> kColours{{{16, "#000000"},
                                          {52, "#5f0000"},
                                          {88, "#870000"},
                                          {124, "#af0000"},
                                          {160, "#d70000"},
                                          {202, "#ff5f00"},
                                          {208, "#ff8700"},
                                          {214, "#ffaf00"},
                                          {226, "#ffff00"},
                                          {231, "#ffffff"}}};
static_assert(kColours.size() == kShades.size());

/// 0 only where nothing was accessed.
std::size_t shade_of(std::uint8_t heat) { return heat == 0 ? 0 : 1 + heat * (kShades.size() - 2) / 255; }

std::size_t cells_a_line(std::size_t columns) {
  return std::max(kLineCellsMin, columns - std::min(columns, kLabelColumns));
}

std::uint64_t start_of(const dpapi::HeatMap& map, std::size_t cell) {
  return cell * map.page_count() / std::max<std::size_t>(1, map.cells().size()) * kPageBytes;
}

std::string_view source_name(dpapi::AccessSource source) {
  return source == dpapi::ACCESS_MODULE ? "module" : source == dpapi::ACCESS_WRITES ? "writes" : "none";
}

std::string about(const api::GetHeatResponse& response) {
  const dpapi::HeatMap& map = response.map();
  const std::string why = map.source_reason().empty() ? "" : fmt::format(" ({})", printable(map.source_reason()));
  const std::string who = fmt::format("VM {} on {}", printable(response.vm_name()), printable(response.host()));
  if (map.scans() == 0) {
    return fmt::format("{}: not scanned yet{}", who, why);
  }
  return fmt::format("{}: {} of {} accessed by the last of {} scans, one each {}; source: {}{}", who,
                     config::format_pages(map.pages_last_scan()), config::format_pages(map.page_count()), map.scans(),
                     span_text(static_cast<std::int64_t>(map.period_us())), source_name(map.source()), why);
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return out;
}

}  // namespace

std::uint32_t heat_cells_wanted(std::size_t columns) {
  return static_cast<std::uint32_t>(std::min<std::size_t>(kHeatCellsMax, kHeatRows * cells_a_line(columns)));
}

std::string heat_text(const api::GetHeatResponse& response, std::size_t columns, Colour colour) {
  const std::string& cells = response.map().cells();
  const std::size_t wide = cells_a_line(columns);
  std::string out;
  for (std::size_t line = 0; line < cells.size(); line += wide) {
    out += fmt::format("{:>{}} ", config::format_bytes(start_of(response.map(), line)), kLabelColumns - 1);
    std::size_t before = kColours.size();
    for (std::size_t cell = line; cell < std::min(line + wide, cells.size()); ++cell) {
      const std::size_t shade = shade_of(static_cast<std::uint8_t>(cells[cell]));
      if (colour == Colour::kNo) {
        out += kShades[shade];
      } else {
        out += shade == before ? " " : fmt::format("\033[48;5;{}m ", kColours[shade].terminal);
        before = shade;
      }
    }
    out += colour == Colour::kYes ? "\033[0m\n" : "\n";
  }
  return out + about(response) + "\n";
}

std::string heat_svg(const api::GetHeatResponse& response) {
  constexpr std::size_t kWide = 128;
  constexpr std::size_t kSide = 8;
  constexpr std::size_t kText = 24;
  const std::string& cells = response.map().cells();
  const std::size_t lines = (cells.size() + kWide - 1) / kWide;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" width=\"{}\" height=\"{}\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#303030\"/>\n"
      "<text x=\"4\" y=\"16\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#ffffff\">{}</text>\n",
      kWide * kSide, kText + lines * kSide, escaped(about(response)));
  for (std::size_t cell = 0; cell < cells.size(); ++cell) {
    const std::size_t shade = shade_of(static_cast<std::uint8_t>(cells[cell]));
    out += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"><title>{}</title></rect>\n",
                       cell % kWide * kSide, kText + cell / kWide * kSide, kSide, kSide, kColours[shade].svg,
                       config::format_bytes(start_of(response.map(), cell)));
  }
  return out + "</svg>\n";
}

Json to_json(const api::GetHeatResponse& response) {
  const dpapi::HeatMap& map = response.map();
  Json cells = Json::array();
  for (const char heat : map.cells()) {
    cells.push_back(static_cast<std::uint8_t>(heat));
  }
  return {{"vm", response.vm_name()},
          {"host", response.host()},
          {"source", source_name(map.source())},
          {"source_reason", map.source_reason()},
          {"scans", map.scans()},
          {"period_us", map.period_us()},
          {"page_count", map.page_count()},
          {"pages_last_scan", map.pages_last_scan()},
          {"cells", std::move(cells)}};
}

}  // namespace godwit::ctl
