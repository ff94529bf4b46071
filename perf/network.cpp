#include "perf/network.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace godwit::perf {
namespace {

UniqueFd present_namespace() { return UniqueFd(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)); }

std::expected<void, std::string> command(const std::string& line) {
  if (const int status = std::system(line.c_str()); !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return std::unexpected("`" + line + "` failed");
  }
  return {};
}

}  // namespace

bool join_network_namespace(int descriptor) { return descriptor < 0 || ::setns(descriptor, CLONE_NEWNET) == 0; }

std::expected<VethPair, std::string> VethPair::make(std::uint32_t mtu) {
  VethPair pair;
  const UniqueFd home = present_namespace();
  for (UniqueFd& made : pair.namespaces_) {
    if (::unshare(CLONE_NEWNET) != 0) {
      return std::unexpected(fmt::format("a network namespace: {}; needs root", std::strerror(errno)));
    }
    made = present_namespace();
  }
  // In the second one now. No addresses, or the kernel speaks up by itself.
  const std::string up = fmt::format("ip link set {} mtu {} addrgenmode none up", kInterface, mtu);
  auto done = command(fmt::format("ip link add {0} mtu {1} type veth peer name {0} mtu {1} netns /proc/{2}/fd/{3}",
                                  kInterface, mtu, ::getpid(), pair.namespaces_[0].get()));
  if (done) done = command(up);
  if (done && !join_network_namespace(pair.namespaces_[0].get())) {
    done = std::unexpected(fmt::format("joining a network namespace: {}", std::strerror(errno)));
  }
  if (done) done = command(up);
  if (!join_network_namespace(home.get())) {
    return std::unexpected(fmt::format("leaving a network namespace: {}", std::strerror(errno)));
  }
  if (!done) return std::unexpected(done.error());
  return pair;
}

}  // namespace godwit::perf
