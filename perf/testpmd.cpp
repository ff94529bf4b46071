#include "perf/testpmd.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <vector>

#include "base/time.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/port.h"
#include "perf/network.h"

namespace godwit::perf {
namespace {

constexpr std::size_t kPeriods = 5;
constexpr Duration kPatience = milliseconds(20'000);
constexpr const char* kProgram = "dpdk-testpmd";

/// A child whose output goes to a file; killed at the end.
class Program {
 public:
  Program(std::vector<std::string> arguments, const std::string& output, int network_namespace = -1) {
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int in = ::open("/dev/null", O_RDONLY);
      const int out = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      if (::getppid() == parent && join_network_namespace(network_namespace) && in >= 0 && out >= 0 &&
          ::dup2(in, 0) == 0 && ::dup2(out, 1) == 1 && ::dup2(out, 2) == 2) {
        ::execvp(pointers[0], pointers.data());
      }
      ::_exit(127);
    }
  }
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  [[nodiscard]] bool ended() {
    if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) != 0) pid_ = -1;
    return pid_ <= 0;
  }

 private:
  pid_t pid_ = -1;
};

std::uint32_t memif_buffer_bytes(std::uint32_t frame_bytes) { return (frame_bytes + 127) / 128 * 128; }

std::string memif_device(const std::string& role, const std::string& socket, std::uint32_t frame_bytes) {
  return fmt::format("net_memif0,role={},socket-abstract=no,socket={},bsize={},rsize=9", role, socket,
                     memif_buffer_bytes(frame_bytes));
}

/// The driver walks its ring as one array, the kernel block by block: both agree only if frames fill their blocks
/// exactly. struct tpacket2_hdr and sockaddr_ll are before each frame, padding after them.
std::string packet_device(std::uint32_t mtu) {
  constexpr std::uint32_t kRingHeaderBytes = 96;
  constexpr std::uint32_t kFramesPerBlock = 4;  // 4 * 1024 k is a multiple of a page
  constexpr std::uint32_t kFrames = 548;
  const std::uint32_t bytes = (mtu + port::kEthernetHeaderBytes + kRingHeaderBytes + 1023) / 1024 * 1024;
  return fmt::format("net_af_packet0,iface={},qpairs=1,blocksz={},framesz={},framecnt={},qdisc_bypass=1",
                     VethPair::kInterface, bytes * kFramesPerBlock, bytes, kFrames);
}

std::vector<std::string> arguments(bool receives, const std::string& device, const std::string& cpu,
                                   std::uint32_t frame_bytes, std::uint32_t buffer_bytes) {
  constexpr std::uint32_t kHeadroomBytes = 128;
  std::vector<std::string> all{kProgram,
                               "--lcores",
                               fmt::format("0@{0},1@{0}", cpu),
                               "--no-huge",
                               "-m",
                               "192",
                               "--no-pci",
                               "--no-shconf",
                               "--no-telemetry",
                               "--log-level=*:error",
                               "--vdev",
                               device,
                               "--",
                               "--no-mlockall",
                               fmt::format("--mbuf-size={}", buffer_bytes + kHeadroomBytes),
                               "--total-num-mbufs=4095",
                               "--auto-start",
                               "--stats-period=1"};
  if (receives) {
    all.emplace_back("--forward-mode=rxonly");
  } else {
    all.insert(all.end(), {"--forward-mode=txonly", fmt::format("--txpkts={}", frame_bytes)});
  }
  return all;
}

/// The receiver's packets a second, of the periods in which any came.
std::vector<double> received_pps(const std::string& output) {
  constexpr std::string_view kKey = "Rx-pps:";
  std::vector<double> rates;
  std::ifstream file(output);
  for (std::string line; std::getline(file, line);) {
    const auto at = line.find(kKey);
    const double rate = at == std::string::npos ? 0 : std::strtod(line.c_str() + at + kKey.size(), nullptr);
    if (rate > 0) rates.push_back(rate);
  }
  return rates;
}

/// Waits until the receiver has seen enough periods.
std::expected<double, std::string> median_gbps(Program& receiver, Program& sender, const std::string& output,
                                               std::uint32_t frame_bytes, Instant end) {
  std::vector<double> rates;
  while (rates.size() <= kPeriods) {
    if (receiver.ended() || sender.ended() || port::now() > end) {
      return std::unexpected(fmt::format("{} ended early or received nothing", kProgram));
    }
    ::usleep(200'000);
    rates = received_pps(output);
  }
  rates.erase(rates.begin());  // a part of a second
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2] * frame_bytes * 8e-9;
}

}  // namespace

std::expected<double, std::string> testpmd_memif_gbps(const std::string& directory, std::uint32_t frame_bytes,
                                                      const std::array<std::string, 2>& cpus) {
  const std::string socket = directory + "/testpmd.sock";
  const std::string output = directory + "/receiver";
  const Instant end = port::now() + kPatience;
  const std::uint32_t buffer_bytes = memif_buffer_bytes(frame_bytes);
  Program receiver(arguments(true, memif_device("server", socket, frame_bytes), cpus[1], frame_bytes, buffer_bytes),
                   output);
  while (::access(socket.c_str(), F_OK) != 0) {
    if (receiver.ended()) return std::unexpected(fmt::format("{} does not start; install package dpdk", kProgram));
    if (port::now() > end) return std::unexpected(fmt::format("{} made no memif socket", kProgram));
    ::usleep(50'000);
  }
  Program sender(arguments(false, memif_device("client", socket, frame_bytes), cpus[0], frame_bytes, buffer_bytes),
                 directory + "/sender");
  return median_gbps(receiver, sender, output, frame_bytes, end);
}

std::expected<double, std::string> testpmd_packet_gbps(const std::string& directory, std::uint32_t frame_bytes,
                                                       const std::array<std::string, 2>& cpus, const VethPair& network,
                                                       std::uint32_t mtu) {
  const std::string device = packet_device(mtu);
  constexpr std::uint32_t kBufferBytes = 9216 + 1024;  // the driver refuses one smaller than its ring's frames
  const std::string output = directory + "/receiver";
  const Instant end = port::now() + kPatience;
  Program receiver(arguments(true, device, cpus[1], frame_bytes, kBufferBytes), output, network.network_namespace(1));
  ::usleep(1'000'000);  // or the sender's first frames find nobody; nothing tells when it is there
  Program sender(arguments(false, device, cpus[0], frame_bytes, kBufferBytes), directory + "/sender",
                 network.network_namespace(0));
  return median_gbps(receiver, sender, output, frame_bytes, end);
}

}  // namespace godwit::perf
