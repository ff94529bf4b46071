#include "tests/simulation/key_checker.h"

#include "dataplane/wire/packet.h"

namespace godwit::simulation {

namespace {

std::vector<std::byte> expand(const transport::Secret& secret, const char* label, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  transport::hkdf_expand_label(secret, label, {}, out);
  return out;
}

}  // namespace

KeyChecker::Line::Line(const KeyOwner& owner)
    : secret(transport::lane_secret(owner.secret, owner.lane, owner.direction)) {
  derive(owner.cipher);
}

void KeyChecker::Line::derive(transport::Cipher cipher) {
  key = expand(secret, "godwit key", cipher == transport::Cipher::kAes256Gcm ? 32 : 16);
  const std::vector<std::byte> bytes = expand(secret, "godwit iv", iv.size());
  std::copy(bytes.begin(), bytes.end(), iv.begin());
  gcm.emplace(cipher, key);
}

std::string KeyChecker::on_sent(const KeyOwner& owner, std::span<const std::byte> datagram) {
  std::vector<std::byte> copy(datagram.begin(), datagram.end());
  const auto packet = wire::parse_packet(copy);
  if (!packet) {
    return "no packet: " + std::string(to_string(packet.error()));
  }
  const bool clear = (packet->header.flags & wire::kFlagChecksum) != 0;
  if (owner.cipher == transport::Cipher::kNone || clear) {
    return clear == (owner.cipher == transport::Cipher::kNone) ? "" : "clear text where encryption was agreed";
  }
  const Name name{{owner.secret.begin(), owner.secret.end()}, {owner.lane, owner.direction}};
  Line& line = lines_.try_emplace(name, owner).first->second;
  if (const bool phase = (packet->header.flags & wire::kFlagKeyPhase) != 0; phase != line.phase) {
    line.phase = phase;
    line.secret = transport::next_secret(line.secret);
    line.derive(owner.cipher);
  }
  transport::AesGcm::Nonce nonce{};
  nonce[2] = static_cast<std::byte>(owner.lane >> 8);
  nonce[3] = static_cast<std::byte>(owner.lane);
  for (std::size_t i = 0; i < 8; ++i) {
    nonce[4 + i] = static_cast<std::byte>(packet->header.packet_number >> (56 - 8 * i));
  }
  for (std::size_t i = 0; i < nonce.size(); ++i) {
    nonce[i] ^= line.iv[i];
  }
  if (!used_.emplace(line.key, nonce).second) {
    return "a key and nonce were used twice, packet " + std::to_string(packet->header.packet_number);
  }
  const std::span<std::byte> header = std::span(copy).first(wire::kHeaderBytes);
  if (!line.gcm->open(nonce, header, packet->body, std::span(copy).last<wire::kTagBytes>())) {
    return "packet " + std::to_string(packet->header.packet_number) + " is not sealed as documented";
  }
  return {};
}

}  // namespace godwit::simulation
