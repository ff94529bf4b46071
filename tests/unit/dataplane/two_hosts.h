#pragma once
// Two hosts on one machine: network namespaces gwd-PID-a and gwd-PID-b joined by a veth pair, a godwit-dataplane in
// each. Made by start(), taken down by the destructor, also when a test fails. Tests only.

#include <sys/types.h>

#include <array>
#include <string>

namespace godwit::tests {

class TwoHosts {
 public:
  explicit TwoHosts(std::string daemon) : daemon_(std::move(daemon)) {}
  ~TwoHosts();
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  /// Of daemons started from now on; on any CPU.
  void use_lcores(unsigned lcores) { lcores_ = lcores; }
  /// Empty, or why there are no two hosts here (a skip).
  std::string make_network(unsigned mtu);
  /// Empty, or what failed.
  std::string start_daemon(std::size_t host, const std::string& address = {});
  void kill_daemon(std::size_t host, int signal);
  [[nodiscard]] bool daemon_runs(std::size_t host) const;
  [[nodiscard]] pid_t daemon_pid(std::size_t host) const { return pids_[host]; }

  [[nodiscard]] std::string directory(std::size_t host) const { return directory_ + (host == 0 ? "/a" : "/b"); }
  [[nodiscard]] std::string socket(std::size_t host) const { return directory(host) + "/dataplane.sock"; }
  [[nodiscard]] std::string log(std::size_t host) const;
  /// CPU time that the daemon has used, in clock ticks.
  [[nodiscard]] unsigned long cpu_ticks(std::size_t host) const;

 private:
  [[nodiscard]] std::string name(std::size_t host) const;

  const std::string daemon_;
  std::string directory_;
  unsigned mtu_ = 1500;
  unsigned lcores_ = 1;
  bool network_ = false;
  std::array<pid_t, 2> pids_{-1, -1};
};

}  // namespace godwit::tests
