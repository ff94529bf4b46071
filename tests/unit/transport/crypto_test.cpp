// Goal: our AES-GCM and HKDF are the published ones, and everything that keys come from leads to other keys.
// Vectors: "The Galois/Counter Mode of Operation" (McGrew, Viega; NIST's submission), test cases 1-4 and 13-16; RFC
// 5869 appendix A; RFC 9001 appendix A.1 and A.5. Lengths that no vector has are compared with OpenSSL.

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <memory>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "dataplane/transport/aes_gcm.h"
#include "dataplane/transport/hkdf.h"

namespace godwit::transport {
namespace {

using Bytes = std::vector<std::byte>;

Bytes hex(std::string_view text) {
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(std::string(text.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

Bytes bytes_of(std::span<const std::byte> span) { return {span.begin(), span.end()}; }

Secret secret_of(std::string_view text) {
  const Bytes bytes = hex(text);
  Secret secret;
  std::copy(bytes.begin(), bytes.end(), secret.begin());
  return secret;
}

AesGcm::Nonce nonce_of(const Bytes& bytes) {
  AesGcm::Nonce nonce;
  std::copy(bytes.begin(), bytes.end(), nonce.begin());
  return nonce;
}

Cipher cipher_of(const Bytes& key) { return key.size() == 32 ? Cipher::kAes256Gcm : Cipher::kAes128Gcm; }

struct Vector {
  const char *key, *iv, *header, *text, *sealed, *tag;
};

constexpr const char* kZero16 = "00000000000000000000000000000000";
constexpr const char* kZero12 = "000000000000000000000000";
constexpr const char* kZero32 = "0000000000000000000000000000000000000000000000000000000000000000";
constexpr const char* kKey128 = "feffe9928665731c6d6a8f9467308308";
constexpr const char* kKey256 = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
constexpr const char* kIv = "cafebabefacedbaddecaf888";
constexpr const char* kHeader = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
constexpr const char* kText =
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657"
    "ba637b391aafd255";
constexpr const char* kText60 =
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657"
    "ba637b39";
constexpr const char* kSealed128 =
    "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac97"
    "3d58e091473f5985";
constexpr const char* kSealed128Of60 =
    "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac97"
    "3d58e091";
constexpr const char* kSealed256 =
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0a"
    "bcc9f662898015ad";
constexpr const char* kSealed256Of60 =
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0a"
    "bcc9f662";

constexpr Vector kVectors[] = {
    {kZero16, kZero12, "", "", "", "58e2fccefa7e3061367f1d57a4e7455a"},
    {kZero16, kZero12, "", kZero16, "0388dace60b6a392f328c2b971b2fe78", "ab6e47d42cec13bdf53a67b21257bddf"},
    {kKey128, kIv, "", kText, kSealed128, "4d5c2af327cd64a62cf35abd2ba6fab4"},
    {kKey128, kIv, kHeader, kText60, kSealed128Of60, "5bc94fbc3221a5db94fae95ae7121a47"},
    {kZero32, kZero12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
    {kZero32, kZero12, "", kZero16, "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
    {kKey256, kIv, "", kText, kSealed256, "b094dac5d93471bdec1a502270e3cc6c"},
    {kKey256, kIv, kHeader, kText60, kSealed256Of60, "76fc6ece0f4e1768cddf8853bb2d551b"},
};

TEST(AesGcm, PublishedVectors) {
  for (const Vector& v : kVectors) {
    SCOPED_TRACE(v.tag);
    const Bytes key = hex(v.key);
    const AesGcm gcm(cipher_of(key), key);
    Bytes text = hex(v.text);
    std::array<std::byte, 16> tag;
    gcm.seal(nonce_of(hex(v.iv)), hex(v.header), text, tag);
    EXPECT_EQ(text, hex(v.sealed));
    EXPECT_EQ(bytes_of(tag), hex(v.tag));
    EXPECT_TRUE(gcm.open(nonce_of(hex(v.iv)), hex(v.header), text, tag));
    EXPECT_EQ(text, hex(v.text));
  }
}

Bytes openssl_seal(const Bytes& key, const Bytes& nonce, const Bytes& header, const Bytes& text) {
  const auto octets = [](const Bytes& bytes) { return reinterpret_cast<const unsigned char*>(bytes.data()); };
  const std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context{EVP_CIPHER_CTX_new(),
                                                                                &EVP_CIPHER_CTX_free};
  Bytes sealed(text.size() + 16);
  auto* const out = reinterpret_cast<unsigned char*>(sealed.data());
  int length = 0;
  EVP_EncryptInit_ex(context.get(), key.size() == 32 ? EVP_aes_256_gcm() : EVP_aes_128_gcm(), nullptr, octets(key),
                     octets(nonce));
  EVP_EncryptUpdate(context.get(), nullptr, &length, octets(header), static_cast<int>(header.size()));
  EVP_EncryptUpdate(context.get(), out, &length, octets(text), static_cast<int>(text.size()));
  EVP_EncryptFinal_ex(context.get(), out + length, &length);
  EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_GET_TAG, 16, out + text.size());
  return sealed;
}

TEST(AesGcm, EqualsOpenSslAtEveryLength) {
  std::mt19937_64 random(1);
  const auto draw = [&](std::size_t bytes) {
    Bytes drawn(bytes);
    for (std::byte& b : drawn) {
      b = static_cast<std::byte>(random());
    }
    return drawn;
  };
  for (std::size_t bytes = 0; bytes <= wire::kDatagramBytesMaximum; bytes += bytes < 600 ? 1 : 193) {
    const Bytes key = draw(bytes % 2 == 0 ? 16 : 32);
    const Bytes nonce = draw(12), header = draw(16), text = draw(bytes);
    const AesGcm gcm(cipher_of(key), key);
    Bytes sealed(bytes + 16);
    std::copy(text.begin(), text.end(), sealed.begin());
    const std::span body = std::span(sealed).first(bytes);
    const std::span<std::byte, 16> tag = std::span(sealed).last<16>();
    gcm.seal(nonce_of(nonce), header, body, tag);
    ASSERT_EQ(sealed, openssl_seal(key, nonce, header, text)) << bytes;
    ASSERT_TRUE(gcm.open(nonce_of(nonce), header, body, tag)) << bytes;
    ASSERT_EQ(bytes_of(body), text) << bytes;
  }
}

TEST(Hkdf, Rfc5869) {
  const Bytes key(22, std::byte{0x0b});
  const Secret first = hkdf_extract(hex("000102030405060708090a0b0c"), key);
  EXPECT_EQ(bytes_of(first), hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"));
  Bytes out(42);
  hkdf_expand(first, hex("f0f1f2f3f4f5f6f7f8f9"), out);
  EXPECT_EQ(out, hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"));
  // No salt, no info.
  const Secret third = hkdf_extract({}, key);
  EXPECT_EQ(bytes_of(third), hex("19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04"));
  hkdf_expand(third, {}, out);
  EXPECT_EQ(out, hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"));
}

TEST(Hkdf, LabelsOfRfc9001) {
  const auto expand = [](const Secret& secret, std::string_view label, std::size_t bytes) {
    Bytes out(bytes);
    hkdf_expand_label(secret, label, {}, out);
    return out;
  };
  const Secret initial = hkdf_extract(hex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), hex("8394c8f03e515708"));
  EXPECT_EQ(bytes_of(initial), hex("7db5df06e7a69e432496adedb00851923595221596ae2ae9fb8115c1e9ed0a44"));
  Secret client;
  hkdf_expand_label(initial, "client in", {}, client);
  EXPECT_EQ(bytes_of(client), hex("c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea"));
  EXPECT_EQ(expand(client, "quic key", 16), hex("1f369613dd76d5467730efcbe3b1a22d"));
  EXPECT_EQ(expand(client, "quic iv", 12), hex("fa044b2f42a3fd3b46fb255c"));
  const Secret short_header = secret_of("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b");
  EXPECT_EQ(expand(short_header, "quic key", 32),
            hex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"));
  EXPECT_EQ(expand(short_header, "quic iv", 12), hex("e0459b3474bdd0e44a41c144"));
  EXPECT_EQ(expand(short_header, "quic ku", 32),
            hex("1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"));
}

TEST(Hkdf, WhateverDiffersLeadsToAnotherSecret) {
  std::set<Bytes> seen;
  const auto add = [&](const Secret& secret) { return seen.insert(bytes_of(secret)).second; };
  Secret other;
  other[31] = std::byte{1};
  FlowEnd a{.flow_id = 1}, b{.flow_id = 2};
  a.boot_id[0] = std::byte{1};
  b.boot_id[0] = std::byte{2};
  FlowEnd restarted = a;
  restarted.boot_id[15] = std::byte{9};
  FlowEnd next_flow = a;
  next_flow.flow_id = 3;
  EXPECT_TRUE(add({}) && add(other));
  EXPECT_TRUE(add(flow_secret({}, a, b)));
  EXPECT_TRUE(add(flow_secret(other, a, b)));
  EXPECT_TRUE(add(flow_secret({}, b, a)));
  EXPECT_TRUE(add(flow_secret({}, restarted, b)) && add(flow_secret({}, b, restarted)));
  EXPECT_TRUE(add(flow_secret({}, next_flow, b)) && add(flow_secret({}, b, next_flow)));
  for (const std::uint16_t lane : std::initializer_list<std::uint16_t>{0, 1, 256}) {
    for (const Direction direction : {Direction::kFromInitiator, Direction::kFromResponder}) {
      Secret secret = lane_secret({}, lane, direction);
      for (int phase = 0; phase < 3; ++phase, secret = next_secret(secret)) {
        EXPECT_TRUE(add(secret)) << lane << phase;
      }
    }
  }
  EXPECT_EQ(bytes_of(flow_secret({}, a, b)), bytes_of(flow_secret({}, a, b)));
}

TEST(Secret, IsGoneWhenItGoes) {
  alignas(Secret) std::array<std::byte, sizeof(Secret)> memory{};
  auto* const secret = new (memory.data()) Secret;
  secret->fill(std::byte{0x5a});
  secret->~Secret();
  EXPECT_EQ(memory, (std::array<std::byte, sizeof(Secret)>{}));
}

TEST(AesGcm, KeyIsGoneWhenItGoes) {
  alignas(AesGcm) std::array<std::byte, sizeof(AesGcm)> memory{};
  const Bytes key = hex(kKey256);
  auto* const gcm = new (memory.data()) AesGcm(Cipher::kAes256Gcm, key);
  const auto holds_key = [&] { return std::search(memory.begin(), memory.end(), key.begin(), key.end()); };
  EXPECT_NE(holds_key(), memory.end());  // the expanded key begins with it
  gcm->~AesGcm();
  EXPECT_EQ(std::count_if(memory.begin(), memory.begin() + 1000, [](std::byte b) { return b != std::byte{0}; }), 0);
}

}  // namespace
}  // namespace godwit::transport
