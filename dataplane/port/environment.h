#pragma once
// Owns the DPDK environment (EAL) of this process: memory, lcores, devices. One per process, started before any Port,
// by the main thread, which becomes the control thread: it floats over all CPUs that the process may use, and is never
// an lcore of the data path. Failure: start() says which option EAL refused; nothing is left running. EAL cannot be
// started twice in one process.

#include <atomic>
#include <cstdint>
#include <expected>
#include <functional>
#include <string>
#include <vector>

namespace godwit::port {

struct PortError {
  std::string text;  // operation, object, reason: one line for a person
};

struct LcoreOptions {
  unsigned lcore = 0;  // EAL's number, below kControlLcore
  std::string cpus;    // CPUs it may run on, as in "0" or "0-1,4"; empty: all that the process may use
};

struct EnvironmentOptions {
  bool hugepages = true;  // false: trial without hugepages; vdevs only
  std::uint32_t memory_mb = 256;
  std::vector<LcoreOptions> lcores;
  std::vector<std::string> pci_addresses;  // only these PCI devices are probed; empty: none
  std::vector<std::string> vdevs;          // devargs
  std::string log_level = "warning";       // EAL's own: error, warning, notice, info, debug
  bool telemetry = false;
};

/// EAL's number of the control thread.
inline constexpr unsigned kControlLcore = 127;

/// The arguments that EAL is given; error: an option that cannot be right.
std::expected<std::vector<std::string>, PortError> eal_arguments(const EnvironmentOptions& options);

class Environment {
 public:
  static std::expected<Environment, PortError> start(const EnvironmentOptions& options);
  Environment(Environment&& other) noexcept;
  Environment& operator=(Environment&&) = delete;
  /// All lcores have returned and all ports are closed.
  ~Environment();

  /// Runs `body` on an lcore that start() was given; it must return before the environment ends.
  void launch(unsigned lcore, std::function<void()> body);
  /// Waits until the body launched on this lcore has returned.
  void wait(unsigned lcore);

 private:
  struct Body {
    std::function<void()> run;
    std::atomic<bool> returned{false};  // what the body did is seen by who sees this
  };
  Environment() : bodies_(kControlLcore) {}
  static int run_body(void* body);

  bool owner_ = true;
  std::vector<Body> bodies_;  // by lcore
};

}  // namespace godwit::port
