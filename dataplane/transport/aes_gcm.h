#pragma once
// AES-GCM with one key, 128 or 256 bits, by Intel's ipsec-mb: the key is expanded once, a packet is one call. Owner:
// one thread; no allocation but of the library's table of functions, once a process. The caller never seals twice with
// one nonce.

#include <array>
#include <cstddef>
#include <span>

#include "dataplane/transport/keys.h"
#include "dataplane/wire/packet.h"

struct IMB_MGR;

namespace godwit::transport {

class AesGcm {
 public:
  static constexpr std::size_t kNonceBytes = 12;
  using Nonce = std::array<std::byte, kNonceBytes>;
  using Tag = std::span<std::byte, wire::kTagBytes>;
  using ConstTag = std::span<const std::byte, wire::kTagBytes>;

  /// 16 or 32.
  [[nodiscard]] static constexpr std::size_t key_bytes(Cipher cipher) { return cipher == Cipher::kAes256Gcm ? 32 : 16; }

  /// `key` has key_bytes(cipher); cipher is not kNone.
  AesGcm(Cipher cipher, std::span<const std::byte> key);
  ~AesGcm();
  AesGcm(const AesGcm&) = delete;
  AesGcm& operator=(const AesGcm&) = delete;

  /// Encrypts `text`, in place but for its end, which is read from `tail` instead, each byte once; the tag covers
  /// `header` too. With `into` the tail goes there, and all of `text` is in place.
  void seal(const Nonce& nonce, std::span<const std::byte> header, std::span<std::byte> text, Tag tag,
            std::span<const std::span<const std::byte>> tail = {}, std::span<std::byte> into = {}) const;
  /// Decrypts in place. False: the tag is wrong, and what stands in `text` is nothing to look at.
  [[nodiscard]] bool open(const Nonce& nonce, std::span<const std::byte> header, std::span<std::byte> text,
                          ConstTag tag) const;

 private:
  static constexpr std::size_t kExpandedBytes = 1024;
  alignas(64) std::array<std::byte, kExpandedBytes> expanded_;
  const IMB_MGR* functions_;
  bool is_256_;
};

}  // namespace godwit::transport
