#pragma once
// Follows the keys of a simulation as somebody who has the secret and sees all that is sent: derives every key anew
// from docs/protocol.md, opens every packet with the key and nonce that it must have, and says what is wrong: a packet
// that is sealed otherwise, or a pair of key and nonce that has been used before in the run. Owner: one run.

#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dataplane/transport/aes_gcm.h"
#include "dataplane/transport/hkdf.h"

namespace godwit::simulation {

/// Which lane of which end, in which life of it.
struct KeyOwner {
  transport::Secret secret;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;
  std::uint16_t lane = 0;
  transport::Direction direction = transport::Direction::kFromInitiator;
};

class KeyChecker {
 public:
  /// A datagram that `owner` sends, in the order of sending. Empty: all is well.
  [[nodiscard]] std::string on_sent(const KeyOwner& owner, std::span<const std::byte> datagram);

 private:
  struct Line {
    explicit Line(const KeyOwner& owner);
    void derive(transport::Cipher cipher);
    transport::Secret secret;
    bool phase = false;
    std::vector<std::byte> key;
    std::array<std::byte, transport::AesGcm::kNonceBytes> iv{};
    std::optional<transport::AesGcm> gcm;
  };
  using Name = std::pair<std::vector<std::byte>, std::pair<std::uint16_t, transport::Direction>>;

  std::map<Name, Line> lines_;
  std::set<std::pair<std::vector<std::byte>, transport::AesGcm::Nonce>> used_;
};

}  // namespace godwit::simulation
