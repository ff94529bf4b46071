#include "dataplane/port/super_frame.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/datagram.h"

namespace godwit::port {
namespace {

constexpr std::size_t kHeaders = 42;
constexpr std::size_t kSegment = 1000;
using Bytes = std::vector<std::byte>;

struct Super {
  OffloadHeader told;
  Bytes frame;
};

Super super_frame() {
  Bytes frame(kHeaders + 5 * kSegment / 2);
  wire::DatagramPath path{.source = {{}, 50'000}, .destination = {{}, 4793}};
  wire::write_datagram_headers(path, wire::UdpChecksum::kNone, frame);
  const auto told = make_super_frame(std::span(frame).first(kHeaders), frame.size() - kHeaders, kSegment);
  return {told, frame};
}

TEST(SuperFrame, IsSplitIntoWhatItWasMadeOf) {
  auto [told, frame] = super_frame();
  const auto segments = split(told, frame, frame.size());
  ASSERT_TRUE(segments);
  EXPECT_EQ(segments->headers, kHeaders);
  EXPECT_EQ(segments->bytes, kSegment);
  EXPECT_EQ(segments->count, 3U);
  frame.resize(kHeaders + kSegment);
  make_segment(std::span(frame).first(kHeaders), kSegment);
  EXPECT_EQ(udp_headers(frame, frame.size()), kHeaders);
}

TEST(SuperFrame, ItsIpChecksumIsRight) {
  auto [told, frame] = super_frame();
  EXPECT_TRUE(wire::parse_datagram(frame, wire::ChecksumCheck::kTrust));
  EXPECT_EQ(wire::internet_checksum(wire::checksum_add(0, std::span(frame).subspan(14, 20))), 0U);
}

TEST(SuperFrame, WhatDisagreesIsNone) {
  const auto refused = [](const std::function<void(Super&)>& spoil) {
    Super super = super_frame();
    spoil(super);
    return !split(super.told, super.frame, super.frame.size());
  };
  EXPECT_FALSE(refused([](Super&) {}));
  EXPECT_TRUE(refused([](Super& s) { s.told.segment_bytes = 0; }));
  EXPECT_TRUE(refused([](Super& s) { s.told.gso_type = kGsoNone; }));
  EXPECT_TRUE(refused([](Super& s) { s.told.gso_type = 3; })) << "one datagram in fragments";
  EXPECT_TRUE(refused([](Super& s) { s.frame.push_back({}); })) << "longer than it says";
  EXPECT_TRUE(refused([](Super& s) { s.frame.pop_back(); }));
  EXPECT_TRUE(refused([](Super& s) { s.frame.resize(kHeaders); }));
  EXPECT_TRUE(refused([](Super& s) { s.frame.resize(20); }));
  EXPECT_TRUE(refused([](Super& s) { s.frame[12] = std::byte{9}; })) << "not IP";
  EXPECT_TRUE(refused([](Super& s) { s.frame[14] = std::byte{0x46}; })) << "options";
  EXPECT_TRUE(refused([](Super& s) { s.frame[20] = std::byte{0x20}; })) << "a fragment";
  EXPECT_TRUE(refused([](Super& s) { s.frame[23] = std::byte{6}; })) << "TCP";
  EXPECT_TRUE(refused([](Super& s) { wire::store_be<std::uint16_t>(s.frame, 38, 9); })) << "UDP's own length";
}

TEST(SuperFrame, HeadersAreTheSameButForLengthsAndChecksums) {
  const Bytes one = super_frame().frame;
  for (std::size_t at = 0; at < kHeaders; ++at) {
    Bytes other = one;
    other[at] ^= std::byte{1};
    const bool varies = at == 16 || at == 17 || at == 24 || at == 25 || at >= 38;
    EXPECT_EQ(same_headers(one, other, kHeaders), varies) << at;
  }
}

}  // namespace
}  // namespace godwit::port
