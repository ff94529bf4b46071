#pragma once
// Receiver credit as an edge: the largest packet number that the sender may use. An edge cannot leak when packets are
// lost, as a count would. Owner: one lane; its lcore; no failure. Exempt from the edge: packets that only acknowledge,
// and probes (at most kCreditSlack of them beyond it).

#include <algorithm>
#include <cstdint>

namespace godwit::transport {

/// What a sender may use before it has heard anything; every receiver grants at least this.
inline constexpr std::uint32_t kCreditPacketsInitial = 64;
/// The ack block reports so many numbers: more in flight could not be acknowledged one by one.
inline constexpr std::uint32_t kCreditPacketsMax = 1024;
inline constexpr std::uint64_t kCreditSlack = 64;

/// The receiving end: grants.
class CreditGrant {
 public:
  explicit CreditGrant(std::uint32_t packets)
      : packets_(std::clamp(packets, kCreditPacketsInitial, kCreditPacketsMax)) {}

  /// Never goes back. `largest` is the largest packet number received.
  [[nodiscard]] std::uint64_t edge(std::uint64_t largest) const { return largest + packets_; }
  [[nodiscard]] bool allows(bool any_received, std::uint64_t largest, std::uint64_t packet_number) const {
    const std::uint64_t limit = any_received ? edge(largest) : kCreditPacketsInitial - 1;
    return packet_number <= limit + kCreditSlack;
  }

 private:
  std::uint32_t packets_;
};

/// The sending end: uses.
class CreditUse {
 public:
  void on_edge(std::uint64_t edge) { edge_ = std::max(edge_, edge); }
  [[nodiscard]] bool allows(std::uint64_t packet_number) const { return packet_number <= edge_; }
  [[nodiscard]] std::uint64_t edge() const { return edge_; }

 private:
  std::uint64_t edge_ = kCreditPacketsInitial - 1;
};

}  // namespace godwit::transport
