#include "dataplane/port/environment.h"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <sched.h>

#include <algorithm>
#include <cctype>
#include <ctime>
#include <utility>

#include "base/check.h"

namespace godwit::port {
namespace {

static_assert(kControlLcore < RTE_MAX_LCORE);

std::string allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::string text;
  if (sched_getaffinity(0, sizeof set, &set) != 0) {
    return "0";
  }
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) {
      text += (text.empty() ? "" : ",") + std::to_string(cpu);
    }
  }
  return text;
}

bool is_cpu_list(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0 || c == '-' || c == ','; });
}

}  // namespace

std::expected<std::vector<std::string>, PortError> eal_arguments(const EnvironmentOptions& options) {
  if (options.lcores.empty()) {
    return std::unexpected(PortError{"eal: no lcore is configured; give at least one"});
  }
  if (!options.hugepages && !options.pci_addresses.empty()) {
    return std::unexpected(PortError{"eal: PCI port " + options.pci_addresses.front() +
                                     " needs hugepages for DMA; set hugepages = true and reserve some"});
  }
  std::vector<std::string> arguments{"godwit-dataplane"};
  if (options.hugepages) {
    arguments.insert(arguments.end(), {"--in-memory", "-m", std::to_string(options.memory_mb)});
  } else {
    arguments.insert(arguments.end(), {"--no-huge", "--no-shconf", "-m", std::to_string(options.memory_mb)});
  }
  const std::string everywhere = allowed_cpus();
  std::string lcores;
  std::vector<unsigned> seen;
  for (const LcoreOptions& lcore : options.lcores) {
    if (lcore.lcore >= kControlLcore || std::find(seen.begin(), seen.end(), lcore.lcore) != seen.end()) {
      return std::unexpected(PortError{"eal: lcore " + std::to_string(lcore.lcore) +
                                       " is given twice or is not below " + std::to_string(kControlLcore)});
    }
    const std::string cpus = lcore.cpus.empty() ? everywhere : lcore.cpus;
    if (!is_cpu_list(cpus)) {
      return std::unexpected(
          PortError{"eal: lcore " + std::to_string(lcore.lcore) + ": cpus \"" + cpus + "\" is not a list like 0-3,6"});
    }
    seen.push_back(lcore.lcore);
    lcores += std::to_string(lcore.lcore) + "@(" + cpus + "),";
  }
  lcores += std::to_string(kControlLcore) + "@(" + everywhere + ")";
  arguments.insert(arguments.end(), {"--lcores", lcores, "--main-lcore", std::to_string(kControlLcore)});
  if (options.pci_addresses.empty()) {
    arguments.emplace_back("--no-pci");
  }
  for (const std::string& address : options.pci_addresses) {
    arguments.insert(arguments.end(), {"-a", address});
  }
  for (const std::string& vdev : options.vdevs) {
    arguments.insert(arguments.end(), {"--vdev", vdev});
  }
  arguments.push_back("--log-level=*:" + options.log_level);
  arguments.emplace_back(options.telemetry ? "--telemetry" : "--no-telemetry");
  return arguments;
}

std::expected<Environment, PortError> Environment::start(const EnvironmentOptions& options) {
  auto arguments = eal_arguments(options);
  if (!arguments) {
    return std::unexpected(arguments.error());
  }
  // EAL keeps the pointers that it is given, and reorders them.
  static std::vector<std::string> kept;
  static std::vector<char*> pointers;
  kept = std::move(*arguments);
  pointers.clear();
  for (std::string& argument : kept) {
    pointers.push_back(argument.data());
  }
  pointers.push_back(nullptr);
  if (rte_eal_init(static_cast<int>(kept.size()), pointers.data()) < 0) {
    std::string text = "eal: start failed: " + std::string(rte_strerror(rte_errno)) + "; arguments:";
    for (const std::string& argument : kept) {
      text += " " + argument;
    }
    return std::unexpected(PortError{text + " (EAL's own messages are on stderr; log_level = \"debug\" shows more)"});
  }
  return Environment();
}

Environment::Environment(Environment&& other) noexcept : bodies_(std::move(other.bodies_)) {
  owner_ = std::exchange(other.owner_, false);
}

Environment::~Environment() {
  if (owner_) {
    rte_eal_cleanup();
  }
}

int Environment::run_body(void* body) {
  Body& ours = *static_cast<Body*>(body);
  ours.run();
  ours.returned.store(true, std::memory_order_release);
  return 0;
}

void Environment::launch(unsigned lcore, std::function<void()> body) {
  GW_ASSERT(lcore < bodies_.size());
  bodies_[lcore].run = std::move(body);
  bodies_[lcore].returned.store(false, std::memory_order_relaxed);
  const int rc = rte_eal_remote_launch(run_body, &bodies_[lcore], lcore);
  GW_ASSERT(rc == 0);
}

void Environment::wait(unsigned lcore) {
  GW_ASSERT(lcore < bodies_.size());
  // EAL's own wait spins, on a core that the data path may want.
  constexpr timespec kBetween{.tv_sec = 0, .tv_nsec = 1'000'000};
  while (!bodies_[lcore].returned.load(std::memory_order_acquire)) {
    nanosleep(&kBetween, nullptr);
  }
  rte_eal_wait_lcore(lcore);
}

}  // namespace godwit::port
