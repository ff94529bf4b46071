#pragma once
// How godwitctl shows which parts of a VM's memory are hot. Pure; any thread; nothing fails. Text that came from
// outside never carries control characters to the terminal, nor markup into the drawing.

#include <cstdint>
#include <string>

#include "controlplane/ctl/json.h"

namespace godwit::ctl {

inline constexpr std::uint32_t kHeatRows = 16;
inline constexpr std::uint32_t kHeatCellsMax = 4096;

enum class Colour : bool { kNo, kYes };

/// How many cells to ask for, so that the map fills lines of a terminal of so many columns.
[[nodiscard]] std::uint32_t heat_cells_wanted(std::size_t columns);
/// Lines of at most `columns` characters, each beginning with where it is in the VM's memory; then what the map is.
[[nodiscard]] std::string heat_text(const api::GetHeatResponse& response, std::size_t columns, Colour colour);
/// A drawing by itself (SVG 1.1), a square for each cell.
[[nodiscard]] std::string heat_svg(const api::GetHeatResponse& response);
[[nodiscard]] Json to_json(const api::GetHeatResponse& response);

}  // namespace godwit::ctl
