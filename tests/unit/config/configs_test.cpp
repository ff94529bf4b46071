// What belongs together in each file, and what cannot be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "config/bridge_config.h"
#include "config/controlplane_config.h"
#include "config/ctl_config.h"
#include "config/dataplane_config.h"
#include "config/migration_plan.h"
#include "config/reader.h"
#include "pki/directory.h"
#include "tests/unit/base/temporary_directory.h"

namespace godwit::config {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

template <class T>
std::vector<std::string> mistakes(const std::string& content) {
  const auto loaded = parse_text<T>(content, "f");
  std::vector<std::string> out;
  for (const auto& diagnostic : loaded ? Diagnostics{} : loaded.error()) {
    out.push_back(diagnostic.key + ": " + diagnostic.message);
  }
  return out;
}

const std::string kHead = "memory_dirs = ['/dev/shm/g']\n";
const std::string kAddresses = "addresses = ['10.0.0.1/24']\n";
const std::string kVeth = "[[port]]\ndevice = 'net_af_packet'\ninterface = 'veth-a'\n";

std::vector<std::string> port_mistakes(const std::string& port) {
  return mistakes<DataplaneConfig>(kHead + "[[port]]\n" + port);
}

TEST(DataplaneConfigFile, SmallestIsValid) {
  EXPECT_THAT(mistakes<DataplaneConfig>(kHead + kVeth + kAddresses), IsEmpty());
}

TEST(DataplaneConfigFile, EmptyNamesAllThatIsNeeded) {
  EXPECT_THAT(mistakes<DataplaneConfig>(""),
              testing::UnorderedElementsAre(HasSubstr("memory_dirs: is missing"),
                                            HasSubstr("port: is missing: write [[port]]")));
}

TEST(DataplaneConfigFile, ClearTextMustBeAllowed) {
  const auto loaded = [](const std::string& line) {
    return parse_text<DataplaneConfig>(line + kHead + kVeth + kAddresses, "f");
  };
  ASSERT_TRUE(loaded("").has_value());
  EXPECT_FALSE(loaded("")->allow_clear_text);
  EXPECT_TRUE(loaded("allow_clear_text = true\n")->allow_clear_text);
  EXPECT_THAT(mistakes<DataplaneConfig>("allow_clear_text = 'yes'\n" + kHead + kVeth + kAddresses),
              ElementsAre(HasSubstr("allow_clear_text: expected true or false")));
}

TEST(DataplaneConfigFile, ColdPagesLeaveFirstUnlessItSaysOtherwise) {
  const std::string valid = kHead + kVeth + kAddresses;
  const auto order = [&](const std::string& table) {
    return parse_text<DataplaneConfig>(valid + table, "f")->eviction.order;
  };
  EXPECT_EQ(order(""), EvictionOrder::kColdestFirst);
  EXPECT_EQ(order("[eviction]\norder = 'highest-first'\n"), EvictionOrder::kHighestFirst);
  EXPECT_THAT(mistakes<DataplaneConfig>(valid + "[eviction]\norder = 'random'\n"),
              ElementsAre(HasSubstr("eviction.order")));
}

TEST(DataplaneConfigFile, EachDeviceHasItsKeys) {
  EXPECT_THAT(port_mistakes("device = 'net_af_packet'\n" + kAddresses),
              ElementsAre(HasSubstr("port[0].interface: is missing")));
  EXPECT_THAT(port_mistakes("device = 'net_memif'\nsocket = '/s'\nrole = 'client'\n" + kAddresses), IsEmpty());
  EXPECT_THAT(port_mistakes("device = 'net_memif'\n" + kAddresses),
              ElementsAre(HasSubstr("socket: is missing"), HasSubstr("role: is missing")));
  EXPECT_THAT(port_mistakes("device = '0000:01:00.0'\ninterface = 'eth0'\n" + kAddresses),
              ElementsAre(HasSubstr("interface: is only for device = \"net_af_packet\"")));
  EXPECT_THAT(port_mistakes("device = '01:00.0'\n" + kAddresses), ElementsAre(HasSubstr("\"0000:01:00.0\"")));
  EXPECT_THAT(port_mistakes("device = 'net_tap0,iface=t0'\n" + kAddresses), IsEmpty());
}

TEST(DataplaneConfigFile, CreditIsWhatOneAcknowledgementReports) {
  const auto with_credit = [](const char* packets) {
    return mistakes<DataplaneConfig>(kHead + "[transport]\ncredit_packets = " + packets + "\n" + kVeth + kAddresses);
  };
  EXPECT_THAT(with_credit("63"), ElementsAre("transport.credit_packets: is 63, must be 64 to 1024"));
  EXPECT_THAT(with_credit("1025"), ElementsAre("transport.credit_packets: is 1025, must be 64 to 1024"));
  EXPECT_THAT(with_credit("64"), IsEmpty());
  EXPECT_THAT(with_credit("1024"), IsEmpty());
}

TEST(DataplaneConfigFile, PciNeedsHugepages) {
  EXPECT_THAT(
      mistakes<DataplaneConfig>(kHead + "[eal]\nhugepages = false\n[[port]]\ndevice = '0000:01:00.0'\n" + kAddresses),
      ElementsAre(HasSubstr("eal: hugepages = false")));
}

TEST(DataplaneConfigFile, Addresses) {
  const std::string device = "device = 'net_af_packet'\ninterface = 'v'\n";
  EXPECT_THAT(port_mistakes(device + "addresses = ['10.0.0.1', '224.0.0.1/4', 5]"),
              ElementsAre(HasSubstr("addresses[0]: is \"10.0.0.1\""),
                          HasSubstr("addresses[1]: is 224.0.0.1/4, which no"), HasSubstr("addresses[2]: expected")));
  EXPECT_THAT(port_mistakes(device + "addresses = []"), ElementsAre(HasSubstr("has 0 entries")));
  EXPECT_THAT(port_mistakes(device + "addresses = ['10.0.0.1/24', '10.0.1.1/24']"), ElementsAre(HasSubstr("2 IPv4")));
  EXPECT_THAT(port_mistakes(device + kAddresses + "gateways = ['10.0.1.254']"), ElementsAre(HasSubstr("in no subnet")));
  EXPECT_THAT(port_mistakes(device + kAddresses + "gateways = ['10.0.0.1']"), ElementsAre(HasSubstr("own address")));
}

TEST(DataplaneConfigFile, Ranges) {
  const std::string device = "device = 'net_af_packet'\ninterface = 'v'\n" + kAddresses;
  EXPECT_THAT(port_mistakes(device + "mtu = 1499"), ElementsAre(HasSubstr("mtu: is 1499, must be 1500 to 9216")));
  EXPECT_THAT(port_mistakes(device + "mtu = 9216"), IsEmpty());
  EXPECT_THAT(port_mistakes(device + "mtu = 9217\nudp_port = 0\nqueues = 0\nidle = 'lazy'"), testing::SizeIs(4));
  EXPECT_THAT(mistakes<DataplaneConfig>(kHead + "memory_budget = 5\n" + kVeth + kAddresses),
              ElementsAre(HasSubstr("memory_budget: expected a string with a unit")));
}

TEST(DataplaneConfigFile, Lcores) {
  const auto with = [](const std::string& lcores) {
    return mistakes<DataplaneConfig>(kHead + "[eal]\nlcores = " + lcores + "\n" + kVeth + kAddresses);
  };
  EXPECT_THAT(with("[{lcore = 1, cpus = '0-1,3'}, {lcore = 2, cpus = 2}]"), IsEmpty());
  EXPECT_THAT(with("[{lcore = 1, cpus = '1'}, {lcore = 1, cpus = '2'}]"), ElementsAre(HasSubstr("lcore 1 twice")));
  EXPECT_THAT(with("[{lcore = 127, cpus = '3-1'}]"), testing::SizeIs(2));
  const auto loaded =
      parse_text<DataplaneConfig>(kHead + "[eal]\nlcores = [{lcore = 1, cpus = '3,0-1'}]\n" + kVeth + kAddresses, "f");
  ASSERT_TRUE(loaded);
  EXPECT_THAT(loaded->eal.lcores[0].cpus, ElementsAre(0U, 1U, 3U));
  EXPECT_EQ(loaded->eal.lcores[0].cpus_text(), "0,1,3");
}

TEST(DataplaneConfigFile, Paths) {
  EXPECT_THAT(
      mistakes<DataplaneConfig>("control_socket = '/" + std::string(107, 'x') + "'\n" + kHead + kVeth + kAddresses),
      ElementsAre(HasSubstr("at most 107")));
  EXPECT_THAT(mistakes<DataplaneConfig>("run_dir = 'run'\n" + kHead + kVeth + kAddresses),
              ElementsAre(HasSubstr("absolute path")));
  EXPECT_THAT(mistakes<DataplaneConfig>("memory_dirs = ['/m', '/m/']\n" + kVeth + kAddresses),
              ElementsAre(HasSubstr("has /m twice")));
}

TEST(DataplaneConfigFile, MetricsAndTelemetry) {
  const std::string valid = kHead + kVeth + kAddresses;
  const auto silent = parse_text<DataplaneConfig>(valid, "f");
  ASSERT_TRUE(silent);
  EXPECT_EQ(silent->metrics.listen, "");
  EXPECT_FALSE(silent->telemetry.dpdk);
  for (const char* address : {"127.0.0.1:9464", "[::1]:1", "0.0.0.0:65535"}) {
    const auto loaded = parse_text<DataplaneConfig>(valid + "[metrics]\nlisten = '" + address + "'\n", "f");
    ASSERT_TRUE(loaded) << address;
    EXPECT_EQ(loaded->metrics.listen, address);
  }
  // Nothing that civetweb would take for several ports, or for options of them.
  for (const char* address : {"", "9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "localhost:9464", "::1:9464",
                              "[127.0.0.1]:9464", "127.0.0.1:9464,0.0.0.0:80", "127.0.0.1:9464s", "224.0.0.1:9464"}) {
    EXPECT_THAT(mistakes<DataplaneConfig>(valid + "[metrics]\nlisten = '" + address + "'\n"),
                ElementsAre(HasSubstr("metrics.listen: is ")))
        << address;
  }
  EXPECT_THAT(mistakes<DataplaneConfig>(valid + "[telemetry]\ndpdk = 1\n"),
              ElementsAre(HasSubstr("telemetry.dpdk: expected true or false")));
}

TEST(BridgeConfigFile, HeatHasLimits) {
  const std::string head = "host = 'a'\ncontrolplane = 'unix:/run/c.sock'\n[heat]\n";
  const auto loaded = parse_text<BridgeConfig>(head + "core_percent = 0\nperiod = '2min'", "f");
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->heat.core_percent, 0U);
  EXPECT_EQ(loaded->heat.period, milliseconds(120'000));
  EXPECT_THAT(mistakes<BridgeConfig>(head + "core_percent = 101"), ElementsAre(HasSubstr("heat.core_percent")));
  EXPECT_THAT(mistakes<BridgeConfig>(head + "period = '999ms'"), ElementsAre(HasSubstr("heat.period")));
}

TEST(BridgeConfigFile, ProtectedOrSaidToBeInsecureOnTheNetwork) {
  EXPECT_THAT(mistakes<BridgeConfig>("host = 'a'\ncontrolplane = 'unix:/run/c.sock'"), IsEmpty());
  EXPECT_THAT(mistakes<BridgeConfig>("host = 'a'\ncontrolplane = 'c:7300'"),
              ElementsAre(HasSubstr("tls: has no [tls]")));
  EXPECT_THAT(mistakes<BridgeConfig>("host = 'a'\ncontrolplane = '[fd00::1]:7300'\ninsecure = true"), IsEmpty());
  EXPECT_THAT(mistakes<BridgeConfig>("host = '../a'\ncontrolplane = 'c'"),
              ElementsAre(HasSubstr("host: is"), HasSubstr("controlplane: is \"c\"")));
}

TEST(ControlplaneConfigFile, Timeouts) {
  EXPECT_THAT(
      mistakes<ControlplaneConfig>(
          "listen = ['unix:/c']\n[timeouts]\nprepare = '0'\nhost_heartbeat = '1s'\nswitch = '1s'"),
      ElementsAre(HasSubstr("timeouts.prepare: is 0 "), HasSubstr("timeouts.host_heartbeat: is 1 s, must be 2 s"),
                  HasSubstr("timeouts.switch: is no known key")));
  EXPECT_THAT(mistakes<ControlplaneConfig>("listen = ['unix:/c', '0.0.0.0:70000']"),
              ElementsAre(HasSubstr("listen[1]")));
}

TEST(MigrationPlanFile, ValuesAndRanges) {
  const auto plan = parse_text<MigrationPlan>(
      "vm = 'v'\ndestination = 'b'\nbandwidth_limit = '1.5Gbit/s'\nreuse = 'require'\nverify = 'off'\n"
      "on_no_convergence = 'stop-anyway'\ntime_limit = '10min'",
      "f");
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->bandwidth_limit_bps, 1'500'000'000U);
  EXPECT_EQ(plan->reuse, Reuse::kRequire);
  EXPECT_EQ(plan->verify, Verify::kOff);
  EXPECT_EQ(plan->on_no_convergence, OnNoConvergence::kStopAnyway);
  EXPECT_EQ(plan->time_limit, milliseconds(600'000));
  EXPECT_EQ(plan->rounds_max, 30U);
  EXPECT_EQ(plan->encryption, Encryption::kAes128Gcm);
  EXPECT_THAT(mistakes<MigrationPlan>("vm = 'v'\ndestination = 'b'\ndowntime_limit = 0\nreuse = 'yes'\ntime_limit = 0"),
              ElementsAre(HasSubstr("downtime_limit: is 0 "), HasSubstr("reuse: is \"yes\", must be one of \"auto\"")));
}

TEST(MigrationPlanFile, HybridSaysWhenItSwitches) {
  const std::string plan = "vm = 'v'\ndestination = 'b'\nmode = 'hybrid'\n";
  const auto read = [&](const std::string& more) { return parse_text<MigrationPlan>(plan + more, "f").value(); };
  EXPECT_EQ(read("").postcopy_after_rounds, 1U);
  EXPECT_EQ(read("postcopy_after = '30s'").postcopy_after_rounds, 0U) << "by time only";
  EXPECT_EQ(read("postcopy_after = '30s'").postcopy_after, milliseconds(30'000));
  EXPECT_EQ(read("postcopy_after_rounds = 0").postcopy_after_rounds, 0U) << "on request only";
  EXPECT_EQ(read("postcopy_after_rounds = 3\npostcopy_after = '1min'").postcopy_after_rounds, 3U);
  EXPECT_EQ(read("background_order = 'hottest-first'").background_order, BackgroundOrder::kHottestFirst);
  EXPECT_THAT(mistakes<MigrationPlan>(plan + "postcopy_after = '1ms'\npostcopy_after_rounds = 1001\n"
                                             "background_order = 'random'"),
              ElementsAre(HasSubstr("postcopy_after: is"), HasSubstr("postcopy_after_rounds: is 1001"),
                          HasSubstr("background_order: is \"random\", must be one of")));
}

TEST(MigrationPlanFile, OnlyHybridSaysWhenItSwitches) {
  for (const std::string mode : {"precopy", "postcopy"}) {
    EXPECT_THAT(mistakes<MigrationPlan>("vm = 'v'\ndestination = 'b'\nmode = '" + mode +
                                        "'\npostcopy_after_rounds = 2\npostcopy_after = '1s'"),
                ElementsAre(HasSubstr("postcopy_after_rounds: is for mode \"hybrid\" only"),
                            HasSubstr("postcopy_after: is for mode")));
  }
  const auto flags =
      load_migration_plan("", {{"vm", "v"}, {"destination", "b"}, {"mode", "hybrid"}, {"postcopy_after_rounds", "4"}});
  ASSERT_TRUE(flags);
  EXPECT_EQ(flags->postcopy_after_rounds, 4U);
}

TEST(MigrationPlanFile, SaysHowTheVmIsSplitWhereItArrives) {
  const std::string text = "vm = 'v'\ndestination = 'b'\n";
  const auto plan = parse_text<MigrationPlan>(text + "resident_budget = '64MiB'\nsub_hosts = ['c', 'd']", "f");
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->resident_budget_bytes, 64U << 20);
  EXPECT_THAT(plan->sub_hosts, ElementsAre("c", "d"));
  EXPECT_FALSE(plan->whole);
  EXPECT_THAT(mistakes<MigrationPlan>(text + "whole = true\nresident_budget = '64MiB'\nsub_hosts = ['c']"),
              ElementsAre(HasSubstr("resident_budget: is of no use with whole"), HasSubstr("sub_hosts: is of no use")));
  EXPECT_THAT(mistakes<MigrationPlan>(text + "resident_budget = '1MiB'\nsub_hosts = ['c d']"),
              ElementsAre(HasSubstr("resident_budget: is"), HasSubstr("sub_hosts")));
  const auto flags = load_migration_plan("", {{"vm", "v"}, {"destination", "b"}, {"sub_hosts", "c,d"}});
  ASSERT_TRUE(flags);
  EXPECT_THAT(flags->sub_hosts, ElementsAre("c", "d"));
  EXPECT_TRUE(load_migration_plan("", {{"vm", "v"}, {"destination", "b"}, {"whole", "true"}})->whole);
}

TEST(MigrationPlanFile, FlagsGoBeforeTheFileAndAreHeldToItsRules) {
  const test::TemporaryDirectory directory;
  std::ofstream(directory / "plan.toml") << "destination = 'b'\ndowntime_limit = '1s'\nrounds_max = 5";
  const auto plan = load_migration_plan(directory / "plan.toml", {{"vm", "v"}, {"rounds_max", "7"}});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->vm, "v");
  EXPECT_EQ(plan->destination, "b");
  EXPECT_EQ(plan->downtime_limit, milliseconds(1000));
  EXPECT_EQ(plan->rounds_max, 7U);

  const auto wrong = load_migration_plan("", {{"vm", "v"}, {"downtime_limit", "0"}, {"rounds_max", "many"}});
  ASSERT_FALSE(wrong);
  std::vector<std::string> texts;
  for (const Diagnostic& diagnostic : wrong.error()) {
    texts.push_back(diagnostic.text());
  }
  EXPECT_THAT(texts, testing::UnorderedElementsAre("command line: destination: is missing, and has no default",
                                                   HasSubstr("command line: downtime_limit: is 0 "),
                                                   "command line: rounds_max: expected an integer, found a string"));
}

TEST(CtlConfigFile, FlagThenEnvironmentThenFileThenDefault) {
  const test::TemporaryDirectory directory;
  std::ofstream(directory / "ctl.toml") << "server = 'file:1'\ninsecure = true";
  ::unsetenv("GODWIT_SERVER");
  EXPECT_EQ(find_server({}, directory / "absent")->server, CtlConfig{}.server);
  EXPECT_EQ(find_server({}, directory / "ctl.toml")->server, "file:1");
  ::setenv("GODWIT_SERVER", "environment:2", 1);
  EXPECT_EQ(find_server({}, directory / "ctl.toml")->server, "environment:2");
  EXPECT_EQ(find_server({.server = "flag:3"}, directory / "ctl.toml")->server, "flag:3");
  ::setenv("GODWIT_SERVER", "nonsense", 1);
  EXPECT_THAT(find_server({}, directory / "ctl.toml").error()[0].text(),
              HasSubstr("GODWIT_SERVER: server: is \"nonsense\""));
  ::unsetenv("GODWIT_SERVER");
}

TEST(CtlConfigFile, BeyondTheMachineItNeedsCertificatesOrTheFlag) {
  const test::TemporaryDirectory directory;
  ::unsetenv("GODWIT_SERVER");
  const auto refused = find_server({.server = "cp:7300"}, directory / "absent");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error()[0].text(), HasSubstr("godwitctl pki init"));
  EXPECT_TRUE(find_server({.server = "cp:7300", .insecure = true}, directory / "absent")->security.insecure);
  EXPECT_TRUE(find_server({.server = "unix:/run/cp.sock"}, directory / "absent"));
  EXPECT_FALSE(find_server({.config = directory / "absent"}));
}

std::vector<std::string> file_mistakes(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file) << text;
  std::vector<std::string> texts;
  if (const auto loaded = load_bridge_config(file); !loaded) {
    for (const auto& diagnostic : loaded.error()) {
      texts.push_back(diagnostic.text().substr(file.string().size()));
    }
  }
  return texts;
}

TEST(TlsTable, ItsFilesAreLookedAtWithLineAndKey) {
  const test::TemporaryDirectory directory;
  const pki::Directory pki(directory / "pki");
  ASSERT_TRUE(pki.init({"host-a", "host-b"}, {}, {}, false));
  const auto text = [&](const std::string& certificate, const std::string& key) {
    return "host = 'host-a'\ncontrolplane = 'c:7300'\n[tls]\nca = '" + pki.certificate_path("ca").string() +
           "'\ncertificate = '" + certificate + "'\nkey = '" + key + "'\n";
  };
  const std::string certificate = pki.certificate_path("host-a"), key = pki.key_path("host-a");
  const auto file = directory / "bridge.toml";
  EXPECT_THAT(file_mistakes(file, text(certificate, key)), IsEmpty());
  EXPECT_THAT(file_mistakes(file, text("/nowhere", "/nowhere")),
              ElementsAre(StartsWith(":5:15: tls.certificate: cannot open /nowhere"),
                          StartsWith(":6:7: tls.key: cannot open /nowhere")));
  EXPECT_THAT(file_mistakes(file, text(certificate, pki.key_path("host-b"))),
              ElementsAre(AllOf(StartsWith(":6:7: tls.key: "), HasSubstr("is not the key of"))));
  EXPECT_THAT(
      file_mistakes(file, text(pki.certificate_path("host-b"), pki.key_path("host-b"))),
      ElementsAre(AllOf(StartsWith(":5:15: tls.certificate: "), HasSubstr("for host host-b, not for host host-a"))));
  std::filesystem::permissions(key, std::filesystem::perms::group_read, std::filesystem::perm_options::add);
  EXPECT_THAT(file_mistakes(file, text(certificate, key)),
              ElementsAre(AllOf(StartsWith(":6:7: tls.key: "), HasSubstr("chmod 600"))));
}

TEST(TlsTable, IsWholeOrNotThere) {
  const std::string head = "host = 'a'\ncontrolplane = 'c:7300'\n";
  EXPECT_THAT(mistakes<BridgeConfig>(head + "[tls]\nca = '/ca'"),
              ElementsAre(HasSubstr("tls.certificate: is missing"), HasSubstr("tls.key: is missing")));
  EXPECT_THAT(mistakes<BridgeConfig>(head + "insecure = true\n[tls]\nca = '/a'\ncertificate = '/b'\nkey = '/c'"),
              ElementsAre(HasSubstr("insecure: is true although there is a [tls]")));
  EXPECT_THAT(mistakes<BridgeConfig>(head + "insecure = false"), ElementsAre(HasSubstr("godwitctl pki init a")));
  const auto loaded = parse_text<BridgeConfig>(head + "[tls]\nca = '/a'\ncertificate = '/b'\nkey = '/c'", "f");
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->security.tls->key, "/c");
}

}  // namespace
}  // namespace godwit::config
