// The kernel's loopback in a network namespace of our own: UDP sockets are the kernel's stack, a packet socket is where
// frames of the data plane come from.
#include "dataplane/port/ingress_filter.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <vector>

#include "base/unique_fd.h"

namespace godwit::port {
namespace {

constexpr std::uint16_t kOurs = 4793;
constexpr std::uint16_t kOther = 4794;

wire::IpAddress loopback(wire::IpFamily family) {
  return *wire::parse_ip_address(family == wire::IpFamily::kV4 ? "127.0.0.1" : "::1");
}

bool raise_loopback() {
  const UniqueFd any(::socket(AF_INET, SOCK_DGRAM, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  return ::ioctl(any.get(), SIOCSIFFLAGS, &request) == 0;
}

/// One CPU: what is sent first arrives first.
bool stay_on_one_cpu() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &cpus);
  return ::sched_setaffinity(0, sizeof cpus, &cpus) == 0;
}

class IngressFilterTest : public testing::TestWithParam<wire::IpFamily> {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNET) != 0) {
      GTEST_SKIP() << "needs root";
    }
    ASSERT_TRUE(raise_loopback() && stay_on_one_cpu()) << std::strerror(errno);
    tap_.reset(::socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ALL)));
    ASSERT_TRUE(tap_.valid());
    for (const std::uint16_t port : {kOurs, kOther}) {
      UniqueFd socket(::socket(v4() ? AF_INET : AF_INET6, SOCK_DGRAM, 0));
      const auto address = address_of(port);
      ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
      const timeval patience{.tv_sec = 10,
                             .tv_usec = 0};  // a datagram that is dropped fails the test, and does not hang it
      ASSERT_EQ(::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
      (port == kOurs ? ours_ : other_) = std::move(socket);
    }
  }

  [[nodiscard]] static bool v4() { return GetParam() == wire::IpFamily::kV4; }

  static sockaddr_in6 address_of(std::uint16_t port) {
    sockaddr_in6 address{};
    if (v4()) {
      sockaddr_in as_v4{};
      as_v4.sin_family = AF_INET;
      as_v4.sin_port = htons(port);
      as_v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      std::memcpy(&address, &as_v4, sizeof as_v4);
    } else {
      address.sin6_family = AF_INET6;
      address.sin6_port = htons(port);
      address.sin6_addr = in6addr_loopback;
    }
    return address;
  }

  std::optional<IngressFilter> attach(const wire::IpAddress& address) {
    auto filter = IngressFilter::attach("lo", {&address, 1}, kOurs);
    if (filter) {
      return std::move(*filter);
    }
    why_ = filter.error().text;
    return std::nullopt;
  }

  /// One datagram to our port, then one to the other; whether ours was there when the other had come.
  bool kernel_sees_ours() {
    for (const std::uint16_t port : {kOurs, kOther}) {
      const auto to = address_of(port);
      EXPECT_EQ(::sendto(other_.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to), 1);
    }
    char byte = 0;
    EXPECT_EQ(::recv(other_.get(), &byte, 1, 0), 1);
    return ::recv(ours_.get(), &byte, 1, MSG_DONTWAIT) == 1;
  }

  /// IP packets that a packet socket for all frames, as the driver's, has been shown as received.
  int frames_shown() {
    int frames = 0;
    std::array<char, 64> bytes{};
    sockaddr_ll from{};
    socklen_t length = sizeof from;
    while (::recvfrom(tap_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from),
                      &length) >= 0) {
      const bool counts =
          from.sll_pkttype != PACKET_OUTGOING && from.sll_protocol == htons(v4() ? ETH_P_IP : ETH_P_IPV6);
      frames += counts ? 1 : 0;
    }
    return frames;
  }

  UniqueFd tap_, ours_, other_;
  std::string why_;
};

TEST_P(IngressFilterTest, KeepsWhatIsForUsFromTheKernel) {
  ASSERT_TRUE(kernel_sees_ours());
  EXPECT_EQ(frames_shown(), 2);
  {
    const auto filter = attach(loopback(GetParam()));
    if (!filter) {
      GTEST_SKIP() << why_;
    }
    EXPECT_FALSE(kernel_sees_ours());
    EXPECT_EQ(frames_shown(), 2) << "packet sockets see both";
  }
  EXPECT_TRUE(kernel_sees_ours()) << "it goes with its owner";
}

TEST_P(IngressFilterTest, LeavesOtherAddressesAlone) {
  wire::IpAddress address = loopback(GetParam());
  ++address.bytes[v4() ? 3 : 15];
  const auto filter = attach(address);
  if (!filter) {
    GTEST_SKIP() << why_;
  }
  EXPECT_TRUE(kernel_sees_ours());
}

TEST_P(IngressFilterTest, TakesSeveralAddresses) {
  const std::vector<wire::IpAddress> addresses{*wire::parse_ip_address("10.0.0.1"), loopback(wire::IpFamily::kV6),
                                               loopback(wire::IpFamily::kV4)};
  const auto filter = IngressFilter::attach("lo", addresses, kOurs);
  if (!filter) {
    GTEST_SKIP() << filter.error().text;
  }
  EXPECT_FALSE(kernel_sees_ours());
}

TEST(IngressFilterErrorTest, NamesTheInterface) {
  const auto filter = IngressFilter::attach("nosuch0", {}, kOurs);
  ASSERT_FALSE(filter);
  EXPECT_NE(filter.error().text.find("nosuch0"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Families, IngressFilterTest, testing::Values(wire::IpFamily::kV4, wire::IpFamily::kV6),
                         [](const auto& tested) { return tested.param == wire::IpFamily::kV4 ? "V4" : "V6"; });

}  // namespace
}  // namespace godwit::port
