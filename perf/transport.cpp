// Page payload through the real port, wire and lane code: guest RAM of one process, memif, guest RAM of another, one
// lcore each; in clear text, and then encrypted. Both working sets are larger than any cache. Beside it testpmd's
// memif, that moves frames of the same size and touches no payload. The same over af_packet and a veth pair, in clear
// text. Then what a demand page takes (transport_demand.cpp), and what is simulated.

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <map>

#include "dataplane/pages/page.h"
#include "dataplane/transport/page_layout.h"
#include "dataplane/wire/datagram.h"
#include "perf/benchmark.h"
#include "perf/network.h"
#include "perf/processes.h"
#include "perf/ram.h"
#include "perf/testpmd.h"
#include "perf/transport_demand.h"
#include "perf/transport_end.h"
#include "perf/transport_simulated.h"

namespace godwit::perf {
namespace {

constexpr Duration kRunMax = milliseconds(120'000);

constexpr std::size_t kComparisons = 5;  // of clear and encrypted

enum class Part : std::uint8_t { kMemif, kAfPacket, kDemand, kSimulated };

struct Settings {
  std::vector<Part> parts{Part::kMemif, Part::kAfPacket, Part::kDemand, Part::kSimulated};
  std::uint64_t mib = 512;
  std::uint32_t passes = 15;
  std::uint32_t mtu = 9000;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;  // kNone: clear text only
  bool testpmd = true;
};

const std::map<std::string, transport::Cipher> kCiphers{{"none", transport::Cipher::kNone},
                                                        {"aes-128-gcm", transport::Cipher::kAes128Gcm},
                                                        {"aes-256-gcm", transport::Cipher::kAes256Gcm}};

const std::map<std::string, Part> kParts{{"memif", Part::kMemif},
                                         {"af-packet", Part::kAfPacket},
                                         {"demand", Part::kDemand},
                                         {"simulated", Part::kSimulated}};

std::expected<Settings, std::string> parse(const Options& options) {
  Settings settings;
  if (options.quick) {
    settings = {.parts = {Part::kMemif, Part::kDemand, Part::kSimulated}, .mib = 16, .passes = 2, .testpmd = false};
  }
  bool no_testpmd = false;
  CLI::App app("transport");
  std::vector<std::string> parts;
  app.add_option("--part", parts, "only this; may be given several times")->check(CLI::IsMember(kParts));
  app.add_option("--mib", settings.mib, "guest RAM of each end")->check(CLI::Range(1, 65536));
  app.add_option("--passes", settings.passes, "times that all of it is sent")->check(CLI::Range(1U, kPassesMax - 1));
  app.add_option("--mtu", settings.mtu)->check(CLI::Range(port::kMtuMin, port::kMtuMax));
  std::string cipher = "aes-128-gcm";
  app.add_option("--cipher", cipher, "what is measured beside clear text")->check(CLI::IsMember(kCiphers));
  app.add_flag("--no-testpmd", no_testpmd);
  try {
    app.parse(std::vector<std::string>(options.arguments.rbegin(), options.arguments.rend()));
  } catch (const CLI::Error& error) {
    return std::unexpected(std::string(error.what()) +
                           "; options: --part memif|af-packet|demand|simulated --mib N --passes N --mtu N "
                           "--cipher none|aes-128-gcm|aes-256-gcm --no-testpmd");
  }
  if (!parts.empty()) {
    settings.parts.clear();
    for (const std::string& part : parts) settings.parts.push_back(kParts.at(part));
  }
  settings.cipher = kCiphers.at(cipher);
  settings.testpmd = settings.testpmd && !no_testpmd;
  return settings;
}

/// `network`: over af_packet; null: over memif.
std::expected<void, std::string> move_pages(const Settings& settings, transport::Cipher cipher, const VethPair* network,
                                            const std::array<std::string, 2>& cpus, Shared& shared) {
  const std::uint64_t bytes = settings.mib << 20;
  const auto ram = RamPair::make(bytes);
  if (!ram) return std::unexpected(ram.error());
  const TemporaryDirectory directory;
  if (!directory.made()) return std::unexpected("no temporary directory: " + std::string(std::strerror(errno)));

  Children children;
  EndOptions options{.socket = directory.path() + "/memif.sock",
                     .pages = bytes / pages::kPageSize,
                     .passes = settings.passes + 1,  // the first one warms up
                     .mtu = settings.mtu,
                     .cipher = cipher};
  for (const Role role : {Role::kReceiver, Role::kSender}) {
    options.role = role;
    options.cpus = cpus[static_cast<std::size_t>(role)];
    options.ram = role == Role::kSender ? ram->source.file() : ram->destination.file();
    if (network != nullptr) {
      options.interface = VethPair::kInterface;
      options.network_namespace = network->network_namespace(static_cast<std::size_t>(role));
    }
    if (auto started = children.start([&options, &shared] { return run_end(options, shared); }); !started) {
      return started;
    }
  }
  const auto ended = children.wait(kRunMax);
  for (const EndReport& end : shared.ends) {
    if (end.error[0] != '\0') return std::unexpected(std::string(end.error.data()));
  }
  if (!ended) return ended;
  if (!(ram->source == ram->destination)) return std::unexpected("the destination's RAM is not the source's");
  return {};
}

struct Summary {
  double median = 0, best = 0, worst = 0;
};

/// Of (value at pass i + 1) - (value at pass i), over the passes but the first.
template <class Value>
Summary summarise(const EndReport& end, std::uint32_t passes, Value value) {
  std::vector<double> values;
  for (std::uint32_t pass = 1; pass <= passes; ++pass) values.push_back(value(end.marks[pass], end.marks[pass + 1]));
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

/// Figures' names begin with `prefix`.
void report_ends(const Settings& settings, const std::string& prefix, const Shared& shared, Result& result) {
  const double pages = static_cast<double>(settings.mib << 20) / pages::kPageSize;
  const double gigabits = pages * pages::kPageSize * 8e-9;
  const char* const names[] = {"sender", "receiver"};
  result.row({prefix, "Gbit/s", "best", "worst", "Gbit/s a core", "cycles a page"});
  for (const Role role : {Role::kSender, Role::kReceiver}) {
    const EndReport& end = shared.ends[static_cast<std::size_t>(role)];
    const std::string name = prefix + names[static_cast<std::size_t>(role)];
    const Summary ns = summarise(end, settings.passes, [](const PassMark& a, const PassMark& b) {
      return static_cast<double>(b.at_ns - a.at_ns);
    });
    const Summary cpu_ns = summarise(end, settings.passes, [](const PassMark& a, const PassMark& b) {
      return static_cast<double>(b.cpu_ns - a.cpu_ns);
    });
    const Summary cycles = summarise(end, settings.passes, [](const PassMark& a, const PassMark& b) {
      return static_cast<double>(b.busy_cycles - a.busy_cycles);
    });
    const double rate = gigabits / (ns.median * 1e-9);
    result.row({name, fmt::format("{:.2f}", rate), fmt::format("{:.2f}", gigabits / (ns.best * 1e-9)),
                fmt::format("{:.2f}", gigabits / (ns.worst * 1e-9)),
                fmt::format("{:.2f}", gigabits / (cpu_ns.median * 1e-9)),
                fmt::format("{:.0f}", cycles.median / pages)});
    result.metric(name + "_gbps_per_core", gigabits / (cpu_ns.median * 1e-9));
    result.metric(name + "_cycles_per_page", cycles.median / pages);
    result.metric(name + "_cycles_per_page_best", cycles.best / pages);
    if (role == Role::kSender) {
      result.metric(prefix + "goodput_gbps", rate);
      result.metric(prefix + "goodput_best_gbps", gigabits / (ns.best * 1e-9));
      result.metric(prefix + "goodput_worst_gbps", gigabits / (ns.worst * 1e-9));
    }
  }
}

void report_counters(const Settings& settings, const std::string& prefix, const Shared& shared, Result& result) {
  const auto of = [&](Role role, auto field) {
    const auto& marks = shared.ends[static_cast<std::size_t>(role)].marks;
    return static_cast<double>(field(marks[settings.passes + 1].lane) - field(marks[1].lane));
  };
  const auto packets = [](const transport::LaneCounters& c) { return c.packets_sent; };
  result.metric(prefix + "packets", of(Role::kSender, packets));
  result.metric(prefix + "acknowledgements", of(Role::kReceiver, packets));
  result.metric(prefix + "packets_lost", of(Role::kSender, [](const auto& c) { return c.packets_lost; }));
  result.metric(prefix + "pages_retransmitted", of(Role::kSender, [](const auto& c) { return c.pages_retransmitted; }));
  result.metric(prefix + "probe_timeouts", of(Role::kSender, [](const auto& c) { return c.probe_timeouts; }));
  result.metric(prefix + "transmit_stalls", static_cast<double>(shared.ends[0].queue.transmit_stalls));
  result.row({"packets", fmt::format("{:.0f}", result.metrics().at(prefix + "packets")), "acks",
              fmt::format("{:.0f}", result.metrics().at(prefix + "acknowledgements")), "retransmitted",
              fmt::format("{:.0f}", result.metrics().at(prefix + "pages_retransmitted"))});
}

/// Of a packet full of pages.
std::uint32_t frame_bytes(const Settings& settings) {
  const auto layout = transport::page_layout(wire::payload_bytes_max(wire::IpFamily::kV4, settings.mtu));
  return static_cast<std::uint32_t>(layout.packet_bytes + wire::datagram_header_bytes(wire::IpFamily::kV4));
}

void report_testpmd(const Settings& settings, const std::string& path, const std::string& goodput,
                    const std::expected<double, std::string>& rate, Result& result) {
  if (!rate) {
    result.row({"testpmd: " + rate.error()});
    return;
  }
  result.metric("testpmd_" + path + "_gbps", *rate);
  result.ratio("vs_testpmd_" + path, result.metrics().at(goodput) / *rate);
  result.row({"testpmd " + path, fmt::format("{:.2f}", *rate), fmt::format("{} B", frame_bytes(settings))});
}

/// Moves and reports; figures of clear text over memif have no prefix.
std::expected<void, std::string> measure(const Settings& settings, transport::Cipher cipher, const VethPair* network,
                                         const std::array<std::string, 2>& cpus, Result& result) {
  const SharedMemory<Shared> memory;
  if (memory.get() == nullptr) return std::unexpected("no shared memory");
  if (auto moved = move_pages(settings, cipher, network, cpus, *memory.get()); !moved) return moved;
  const std::string prefix = network != nullptr ? "af_packet_" : cipher == transport::Cipher::kNone ? "" : "aead_";
  report_ends(settings, prefix, *memory.get(), result);
  if (cipher == transport::Cipher::kNone) report_counters(settings, prefix, *memory.get(), result);
  return {};
}

/// Clear and encrypted in turns; the first two are reported, the ratio is the median of all: a machine that others use
/// is slower for seconds at a time.
std::expected<void, std::string> compare(const Settings& settings, std::size_t times,
                                         const std::array<std::string, 2>& cpus, Result& result) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < times; ++i) {
    Result again;
    Result& into = i == 0 ? result : again;
    for (const transport::Cipher cipher : {transport::Cipher::kNone, settings.cipher}) {
      if (auto done = measure(settings, cipher, nullptr, cpus, into); !done) return done;
    }
    ratios.push_back(into.metrics().at("aead_goodput_gbps") / into.metrics().at("goodput_gbps"));
  }
  std::sort(ratios.begin(), ratios.end());
  result.ratio("aead_vs_clear", ratios[ratios.size() / 2]);
  return {};
}

std::expected<void, std::string> over_memif(const Settings& settings, std::size_t comparisons,
                                            const std::array<std::string, 2>& cpus, Result& result) {
  const auto done = settings.cipher == transport::Cipher::kNone
                        ? measure(settings, transport::Cipher::kNone, nullptr, cpus, result)
                        : compare(settings, comparisons, cpus, result);
  if (!done || !settings.testpmd) return done;
  const TemporaryDirectory directory;
  report_testpmd(settings, "memif", "goodput_gbps", testpmd_memif_gbps(directory.path(), frame_bytes(settings), cpus),
                 result);
  return {};
}

std::expected<void, std::string> over_af_packet(const Settings& settings, const std::array<std::string, 2>& cpus,
                                                Result& result) {
  const auto network = VethPair::make(settings.mtu);
  if (!network) return std::unexpected(network.error());
  if (auto done = measure(settings, transport::Cipher::kNone, &*network, cpus, result); !done || !settings.testpmd) {
    return done;
  }
  const TemporaryDirectory directory;
  report_testpmd(settings, "af_packet", "af_packet_goodput_gbps",
                 testpmd_packet_gbps(directory.path(), frame_bytes(settings), cpus, *network, settings.mtu), result);
  return {};
}

std::expected<void, std::string> run_part(Part part, const Settings& settings, const Options& options,
                                          const std::array<std::string, 2>& cpus, Result& result) {
  switch (part) {
    case Part::kMemif:
      return over_memif(settings, options.quick ? 1 : kComparisons, cpus, result);
    case Part::kAfPacket:
      return over_af_packet(settings, cpus, result);
    case Part::kDemand:
      return measure_demand({.mib = settings.mib, .mtu = settings.mtu, .round_trips = options.quick ? 200U : 20'000U},
                            cpus, result);
    case Part::kSimulated:
      report_simulated(options, result);
      break;
  }
  return {};
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const auto settings = parse(options);
  if (!settings) return std::unexpected(settings.error());
  const auto cpus = two_cpus();
  if (!cpus) return std::unexpected(cpus.error());
  const Interruptible interruptible;
  for (const Part part : settings->parts) {
    if (auto done = run_part(part, *settings, options, *cpus, result); !done) return done;
  }
  return {};
}

const Registration kRegistration{"transport", "pages from guest RAM to guest RAM, one core a side", run,
                                 TakesArguments::kYes};

}  // namespace
}  // namespace godwit::perf
