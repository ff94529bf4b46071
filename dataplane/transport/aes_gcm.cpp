#include "dataplane/transport/aes_gcm.h"

#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>

#include <memory>

#include "base/check.h"

namespace godwit::transport {
namespace {

struct Free {
  void operator()(IMB_MGR* manager) const { free_mb_mgr(manager); }
};

/// Only its table of functions is used: GCM keeps no state in a manager, so one serves all threads.
const IMB_MGR* functions() {
  static const std::unique_ptr<IMB_MGR, Free> manager = [] {
    std::unique_ptr<IMB_MGR, Free> made{alloc_mb_mgr(0)};
    GW_ASSERT(made != nullptr);
    init_mb_mgr_auto(made.get(), nullptr);  // what the CPU offers, down to plain code
    GW_ASSERT(made->gcm128_enc != nullptr);
    return made;
  }();
  return manager.get();
}

const std::uint8_t* octets(std::span<const std::byte> bytes) {
  return reinterpret_cast<const std::uint8_t*>(bytes.data());
}
std::uint8_t* octets(std::span<std::byte> bytes) { return reinterpret_cast<std::uint8_t*>(bytes.data()); }

const gcm_key_data* key_data(std::span<const std::byte> expanded) {
  return reinterpret_cast<const gcm_key_data*>(expanded.data());
}

}  // namespace

AesGcm::AesGcm(Cipher cipher, std::span<const std::byte> key)
    : functions_(functions()), is_256_(cipher == Cipher::kAes256Gcm) {
  static_assert(sizeof(gcm_key_data) <= kExpandedBytes && alignof(gcm_key_data) <= 64);
  GW_ASSERT(cipher != Cipher::kNone && key.size() == key_bytes(cipher));
  auto* const expanded = reinterpret_cast<gcm_key_data*>(expanded_.data());
  (is_256_ ? functions_->gcm256_pre : functions_->gcm128_pre)(key.data(), expanded);
}

AesGcm::~AesGcm() { ::explicit_bzero(expanded_.data(), expanded_.size()); }

void AesGcm::seal(const Nonce& nonce, std::span<const std::byte> header, std::span<std::byte> text, Tag tag,
                  std::span<const std::span<const std::byte>> tail, std::span<std::byte> into) const {
  gcm_context_data context;
  const gcm_key_data* const key = key_data(expanded_);
  std::uint8_t* const tag_octets = octets(std::span<std::byte>(tag));
  if (tail.empty()) {
    (is_256_ ? functions_->gcm256_enc : functions_->gcm128_enc)(key, &context, octets(text), octets(text), text.size(),
                                                                octets(nonce), octets(header), header.size(),
                                                                tag_octets, tag.size());
    return;
  }
  std::size_t rest = 0;
  for (const std::span<const std::byte> piece : tail) {
    rest += piece.size();
  }
  GW_ASSERT(rest <= (into.empty() ? text.size() : into.size()));
  const auto update = is_256_ ? functions_->gcm256_enc_update : functions_->gcm128_enc_update;
  (is_256_ ? functions_->gcm256_init : functions_->gcm128_init)(key, &context, octets(nonce), octets(header),
                                                                header.size());
  const std::size_t before = into.empty() ? text.size() - rest : text.size();
  update(key, &context, octets(text), octets(text), before);
  std::span<std::byte> out = into.empty() ? text.subspan(before) : into;
  for (const std::span<const std::byte> piece : tail) {
    update(key, &context, octets(out), octets(piece), piece.size());
    out = out.subspan(piece.size());
  }
  (is_256_ ? functions_->gcm256_enc_finalize : functions_->gcm128_enc_finalize)(key, &context, tag_octets, tag.size());
}

bool AesGcm::open(const Nonce& nonce, std::span<const std::byte> header, std::span<std::byte> text,
                  ConstTag tag) const {
  gcm_context_data context;
  std::array<std::byte, wire::kTagBytes> computed;
  (is_256_ ? functions_->gcm256_dec : functions_->gcm128_dec)(key_data(expanded_), &context, octets(text), octets(text),
                                                              text.size(), octets(nonce), octets(header), header.size(),
                                                              octets(std::span<std::byte>(computed)), computed.size());
  // Takes as long wherever they differ.
  return CRYPTO_memcmp(computed.data(), tag.data(), computed.size()) == 0;
}

}  // namespace godwit::transport
