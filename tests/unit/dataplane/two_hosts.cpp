#include "tests/unit/dataplane/two_hosts.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

namespace godwit::tests {
namespace {

bool shell(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

}  // namespace

std::string TwoHosts::name(std::size_t host) const {
  return "gwd-" + std::to_string(getpid()) + (host == 0 ? "-a" : "-b");
}

std::string TwoHosts::make_network(unsigned mtu) {
  mtu_ = mtu;
  if (geteuid() != 0) {
    return "needs root for network namespaces";
  }
  char pattern[] = "/dev/shm/gwd-XXXXXX";
  if (mkdtemp(pattern) == nullptr) {
    return "cannot make a directory in /dev/shm";
  }
  directory_ = pattern;
  network_ = true;
  for (std::size_t host = 0; host < 2; ++host) {
    std::filesystem::create_directory(directory(host));
    if (!shell("ip netns add " + name(host))) {
      return "ip netns add is refused here";
    }
  }
  const std::string mtu_text = std::to_string(mtu);
  if (!shell("ip -n " + name(0) + " link add gw0 mtu " + mtu_text + " type veth peer name gw0 netns " + name(1) +
             " mtu " + mtu_text)) {
    return "veth is refused here";
  }
  for (std::size_t host = 0; host < 2; ++host) {
    shell("ip netns exec " + name(host) + " sysctl -w net.ipv6.conf.all.disable_ipv6=1");
    if (!shell("ip -n " + name(host) + " link set gw0 up")) {
      return "a veth cannot be set up here";
    }
  }
  return {};
}

std::string TwoHosts::start_daemon(std::size_t host, const std::string& address) {
  const std::string config = directory(host) + "/dataplane.toml";
  std::string lcores;
  for (unsigned lcore = 0; lcore < lcores_; ++lcore) {
    lcores += (lcore == 0 ? "" : ", ") + ("{lcore = " + std::to_string(lcore)) + ", cpus = \"0-" +
              std::to_string(std::thread::hardware_concurrency() - 1) + "\"}";
  }
  std::ofstream(config) << "control_socket = \"" << socket(host) << "\"\n"
                        << "run_dir = \"" << directory(host) << "\"\n"
                        << "memory_dirs = [\"" << directory(host) << "\"]\n"
                        << "[log]\nlevel = \"info\"\n"
                        << "[eal]\nhugepages = false\nmemory = \"128MiB\"\nlcores = [" << lcores << "]\n"
                        << "[[port]]\ndevice = \"net_af_packet\"\ninterface = \"gw0\"\n"
                        << "addresses = [\""
                        << (address.empty() ? (host == 0 ? "10.9.0.1/24" : "10.9.0.2/24") : address) << "\"]\n"
                        << "mtu = " << mtu_ << "\n";
  const std::string ns = name(host);
  const pid_t pid = fork();
  if (pid == 0) {
    const int log = open((directory(host) + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(log, 1);
    dup2(log, 2);
    execlp("ip", "ip", "netns", "exec", ns.c_str(), daemon_.c_str(), "--config", config.c_str(), nullptr);
    _exit(127);
  }
  pids_[host] = pid;
  return pid > 0 ? "" : "fork failed";
}

void TwoHosts::kill_daemon(std::size_t host, int signal) {
  if (pids_[host] > 0) {
    kill(pids_[host], signal);
    waitpid(pids_[host], nullptr, 0);
    pids_[host] = -1;
  }
}

bool TwoHosts::daemon_runs(std::size_t host) const {
  return pids_[host] > 0 && waitpid(pids_[host], nullptr, WNOHANG) == 0;
}

std::string TwoHosts::log(std::size_t host) const {
  std::ifstream file(directory(host) + "/log");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

unsigned long TwoHosts::cpu_ticks(std::size_t host) const {
  std::ifstream file("/proc/" + std::to_string(pids_[host]) + "/stat");
  std::stringstream text;
  text << file.rdbuf();
  std::istringstream fields(text.str().substr(text.str().rfind(')') + 2));
  std::string skipped;
  for (int i = 0; i < 11; ++i) {
    fields >> skipped;
  }
  unsigned long user = 0;
  unsigned long system = 0;
  fields >> user >> system;
  return user + system;
}

TwoHosts::~TwoHosts() {
  for (std::size_t host = 0; host < 2; ++host) {
    kill_daemon(host, SIGTERM);
  }
  if (network_) {
    for (std::size_t host = 0; host < 2; ++host) {
      shell("ip netns del " + name(host));
    }
  }
  if (!directory_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
}

}  // namespace godwit::tests
