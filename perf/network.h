#pragma once
// Two network namespaces joined by a veth pair, that nobody else sees: they have no names, so they are gone with the
// last process or descriptor that holds them, whatever ends it. Needs root, and `ip`. Owner: the benchmark. Failure:
// make() says what could not be made.

#include <array>
#include <cstdint>
#include <expected>
#include <string>

#include "base/unique_fd.h"

namespace godwit::perf {

class VethPair {
 public:
  static std::expected<VethPair, std::string> make(std::uint32_t mtu);
  /// For join_network_namespace() of a child.
  [[nodiscard]] int network_namespace(std::size_t end) const { return namespaces_[end].get(); }
  /// The interface's name, in its own namespace.
  static constexpr const char* kInterface = "veth0";

 private:
  VethPair() = default;
  std::array<UniqueFd, 2> namespaces_;
};

/// Moves the calling thread there; -1: stays. False: errno says why.
bool join_network_namespace(int descriptor);

}  // namespace godwit::perf
