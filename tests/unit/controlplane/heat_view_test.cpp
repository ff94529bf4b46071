// What godwitctl vm heat prints and draws.
#include "controlplane/ctl/heat_view.h"

#include <gtest/gtest.h>

namespace godwit::ctl {
namespace {

/// 1 GiB of which the second half is in use.
api::GetHeatResponse half_hot(std::uint32_t cells) {
  api::GetHeatResponse response;
  response.set_vm_name("de<m\033o");
  response.set_host("host-a");
  auto& map = *response.mutable_map();
  map.set_source(dpapi::ACCESS_WRITES);
  map.set_source_reason("no VM of KVM's");
  map.set_scans(3);
  map.set_period_us(5'000'000);
  map.set_page_count(1U << 18);
  map.set_pages_last_scan(1U << 17);
  map.set_cells(std::string(cells / 2, '\0') + std::string(cells / 2, '\xff'));
  return response;
}

TEST(HeatView, FillsTheLinesOfTheTerminal) {
  for (const std::size_t columns : {30U, 80U, 99U, 268U}) {
    const std::string text = heat_text(half_hot(heat_cells_wanted(columns)), columns, Colour::kNo);
    std::size_t lines = 0, begin = 0;
    for (std::size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      if (++lines <= kHeatRows) {
        EXPECT_EQ(end - begin, columns) << text.substr(begin, end - begin);
        EXPECT_EQ(text[end - 1], lines <= kHeatRows / 2 ? ' ' : '@');
      }
    }
    EXPECT_EQ(lines, kHeatRows + 1) << "and one that says what it is";
  }
  EXPECT_LE(heat_cells_wanted(100'000), kHeatCellsMax);
  EXPECT_GE(heat_cells_wanted(0), kHeatRows);
}

TEST(HeatView, SaysWhatItIsWithoutControlCharacters) {
  const std::string text = heat_text(half_hot(heat_cells_wanted(80)), 80, Colour::kNo);
  EXPECT_NE(text.find("   512 MiB "), std::string::npos) << text;
  EXPECT_NE(text.find("131072 pages (512 MiB) of 262144 pages (1 GiB) accessed by the last of 3 scans, one each 5.0 s; "
                      "source: writes (no VM of KVM's)"),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_NE(heat_text(half_hot(64), 80, Colour::kYes).find("\033[48;5;231m"), std::string::npos);
  api::GetHeatResponse nothing = half_hot(64);
  nothing.mutable_map()->set_scans(0);
  EXPECT_NE(heat_text(nothing, 80, Colour::kNo).find("not scanned yet (no VM of KVM's)"), std::string::npos);
}

TEST(HeatView, ColdestButAccessedIsNotIdle) {
  api::GetHeatResponse response = half_hot(64);
  response.mutable_map()->set_cells(std::string("\0\1", 2));
  EXPECT_NE(heat_text(response, 80, Colour::kNo).find(" ."), std::string::npos);
}

TEST(HeatView, DrawsEachCellAndNoMarkupOfOthers) {
  const std::string svg = heat_svg(half_hot(64));
  std::size_t squares = 0;
  for (std::size_t at = 0; (at = svg.find("<title>", at)) != std::string::npos; ++at) {
    ++squares;
  }
  EXPECT_EQ(squares, 64U);
  EXPECT_EQ(svg.find("de<m"), std::string::npos);
  EXPECT_NE(svg.find("de&lt;m"), std::string::npos);
  EXPECT_EQ(svg.find('\033'), std::string::npos);
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
}

TEST(HeatView, JsonHasEveryCell) {
  const Json json = to_json(half_hot(4));
  EXPECT_EQ(json["cells"], (Json{0, 0, 255, 255}));
  EXPECT_EQ(json["source"], "writes");
  EXPECT_EQ(json["scans"], 3);
}

}  // namespace
}  // namespace godwit::ctl
