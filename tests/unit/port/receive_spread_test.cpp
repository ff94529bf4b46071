// Goal: a port with several queues asks for receive-side scaling on UDP and tells the key and the table in force.
// Method: DPDK's net_null, which has both; its own software hash says whether ours is that of the key told.

#include <gtest/gtest.h>
#include <rte_ethdev.h>
#include <rte_thash.h>

#include "dataplane/port/environment.h"
#include "dataplane/port/port.h"
#include "dataplane/wire/bytes.h"
#include "dataplane/wire/headers.h"

namespace godwit::port {
namespace {

TEST(ReceiveSpread, IsWhatTheDriverHasInForce) {
  EnvironmentOptions environment_options;
  environment_options.hugepages = false;
  environment_options.memory_mb = 64;
  environment_options.log_level = "error";
  environment_options.lcores = {{0, ""}};
  environment_options.vdevs = {"net_null0"};
  auto environment = Environment::start(environment_options);
  ASSERT_TRUE(environment) << environment.error().text;
  PortOptions options;
  options.driver = Driver::kOther;
  options.device = "net_null0";
  options.queues = 2;
  auto port = Port::open(options);
  ASSERT_TRUE(port) << port.error().text;
  const auto spread = (*port)->receive_spread(wire::IpFamily::kV4);
  ASSERT_TRUE(spread);
  EXPECT_TRUE(wire::is_valid(*spread));
  EXPECT_EQ(spread->queues, 2);
  EXPECT_TRUE((*port)->receive_spread(wire::IpFamily::kV6));
  rte_eth_dev_info info{};
  ASSERT_EQ(rte_eth_dev_info_get(0, &info), 0);
  EXPECT_EQ(spread->table.size(), info.reta_size);
  std::array<std::uint8_t, 64> key{};
  rte_eth_rss_conf hash{};
  hash.rss_key = key.data();
  hash.rss_key_len = static_cast<std::uint8_t>(spread->key.size());
  ASSERT_EQ(rte_eth_dev_rss_hash_conf_get(0, &hash), 0);
  EXPECT_NE(hash.rss_hf & RTE_ETH_RSS_NONFRAG_IPV4_UDP, 0U) << "nobody asked for it";
  // 10.0.0.1:50000 to 10.0.0.2:4793
  const std::array<std::byte, 12> tuple{std::byte{10},   std::byte{0},    std::byte{0},    std::byte{1},
                                        std::byte{10},   std::byte{0},    std::byte{0},    std::byte{2},
                                        std::byte{0xc3}, std::byte{0x50}, std::byte{0x12}, std::byte{0xb9}};
  std::array<std::uint32_t, 3> words{0x0a000001, 0x0a000002, 0xc35012b9};
  EXPECT_EQ(wire::toeplitz_hash(spread->key, tuple), rte_softrss(words.data(), words.size(), key.data()));
  EXPECT_EQ((*port)->drops().missed, 0U);
}

}  // namespace
}  // namespace godwit::port
