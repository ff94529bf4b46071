#pragma once
// How pages fit into packets of a size: two to a packet, one, or one in parts. Pure.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "dataplane/pages/page.h"
#include "dataplane/wire/frames.h"

namespace godwit::transport {

inline constexpr std::size_t kPartAlign = 64;  // a cache line
inline constexpr std::uint32_t kPartsMax = 4;

struct PageLayout {
  std::uint32_t pages_per_packet = 1;
  std::uint32_t parts_per_page = 1;
  std::uint32_t part_bytes = pages::kPageSize;  // of every part but the last
  std::uint32_t packet_bytes = 0;               // header to tag of a full packet, without ack block

  /// Bits of all parts.
  [[nodiscard]] std::uint8_t all_parts() const { return static_cast<std::uint8_t>((1U << parts_per_page) - 1); }
  [[nodiscard]] std::uint32_t offset(std::uint32_t part) const { return part * part_bytes; }
  [[nodiscard]] std::uint32_t length(std::uint32_t part) const {
    return std::min<std::uint32_t>(part_bytes, static_cast<std::uint32_t>(pages::kPageSize) - offset(part));
  }
};

inline PageLayout page_layout(std::size_t datagram_bytes_max) {
  constexpr std::size_t kFixed = wire::kHeaderBytes + wire::kPrefixBytes + wire::kTagBytes;
  constexpr std::size_t kPage = wire::kPageDescBytes + pages::kPageSize;
  GW_ASSERT(datagram_bytes_max >= wire::kDatagramBytesMinimum);
  PageLayout layout;
  layout.pages_per_packet = datagram_bytes_max >= kFixed + 2 * kPage ? 2 : 1;
  if (datagram_bytes_max < kFixed + kPage) {
    const std::size_t room = (datagram_bytes_max - kFixed - wire::kPageDescBytes) / kPartAlign * kPartAlign;
    const std::size_t parts = (pages::kPageSize + room - 1) / room;
    const std::size_t even = (pages::kPageSize + parts - 1) / parts;
    layout.parts_per_page = static_cast<std::uint32_t>(parts);
    layout.part_bytes = static_cast<std::uint32_t>((even + kPartAlign - 1) / kPartAlign * kPartAlign);
    GW_ASSERT(layout.parts_per_page <= kPartsMax);
  }
  const std::size_t content = layout.pages_per_packet * (wire::kPageDescBytes + std::size_t{layout.part_bytes});
  layout.packet_bytes = static_cast<std::uint32_t>(kFixed + content);
  return layout;
}

}  // namespace godwit::transport
