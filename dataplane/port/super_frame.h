#pragma once
// Super-frames: consecutive frames of one lane as one, which Linux carries whole where it can and takes apart where it
// must (UDP segmentation offload, linux/virtio_net.h, VIRTIO_NET_HDR_GSO_UDP_L4, Linux 6.2). One header of Ethernet, IP
// and UDP, then the payloads; all but the last are of one size. Pure; any thread. What is received is hostile: split()
// checks it once. Failure: what cannot be one is none.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace godwit::port {

/// struct virtio_net_hdr; its header is not C++.
struct OffloadHeader {
  std::uint8_t flags = 0;     // kNeedsChecksum
  std::uint8_t gso_type = 0;  // kGsoNone, kGsoUdpL4, others
  std::uint16_t headers_bytes = 0;
  std::uint16_t segment_bytes = 0;
  std::uint16_t checksum_start = 0;
  std::uint16_t checksum_offset = 0;
};
static_assert(sizeof(OffloadHeader) == 10);
inline constexpr std::uint8_t kNeedsChecksum = 1;
inline constexpr std::uint8_t kGsoNone = 0;
inline constexpr std::uint8_t kGsoUdpL4 = 5;

/// Ethernet, IPv6, UDP.
inline constexpr std::size_t kUdpHeadersMax = 62;
/// More than that a device takes apart before it sends (gso_max_size is 65536, which it must stay below).
inline constexpr std::size_t kSuperFrameBytesMax = 65'535;

/// Bytes of the headers in front of a UDP payload; 0: it is anything but unfragmented UDP over IPv4 without options or
/// over IPv6 without extensions, or its lengths do not fit `frame_bytes`. `head`: of the frame, as much as there is.
[[nodiscard]] std::size_t udp_headers(std::span<const std::byte> head, std::size_t frame_bytes);

/// Whether two frames, both of UDP with such headers, differ in lengths, checksums and payload only.
[[nodiscard]] bool same_headers(std::span<const std::byte> one, std::span<const std::byte> other, std::size_t headers);

/// Makes the headers of one of its frames the super-frame's, whose payloads have so many bytes together,
/// `segment_bytes` each; what the kernel has to be told with it.
OffloadHeader make_super_frame(std::span<std::byte> headers, std::size_t payload_bytes, std::size_t segment_bytes);

struct Segments {
  std::size_t headers = 0;
  std::size_t bytes = 0;  // of the payload of each but the last
  std::size_t count = 0;
};
/// Of a received super-frame. Nothing: it cannot be one.
[[nodiscard]] std::optional<Segments> split(const OffloadHeader& told, std::span<const std::byte> head,
                                            std::size_t frame_bytes);
/// Makes the headers of a super-frame those of one of its frames. Checksums stay what they are: who takes a frame from
/// the kernel does not look at them.
void make_segment(std::span<std::byte> headers, std::size_t payload_bytes);

}  // namespace godwit::port
