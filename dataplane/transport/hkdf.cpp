#include "dataplane/transport/hkdf.h"

#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include <memory>

#include "base/check.h"
#include "dataplane/wire/bytes.h"

namespace godwit::transport {
namespace {

constexpr std::string_view kTlsPrefix = "tls13 ";  // RFC 8446 §7.1
/// Changes with the wire format, so that no key serves two of them.
constexpr std::string_view kSalt = "godwit wire 2";
constexpr std::string_view kFlowLabel = "godwit flow";
constexpr std::string_view kLaneLabel = "godwit lane";
constexpr std::string_view kNextLabel = "godwit ku";

struct Free {
  void operator()(EVP_KDF* kdf) const { EVP_KDF_free(kdf); }
  void operator()(EVP_KDF_CTX* context) const { EVP_KDF_CTX_free(context); }
};

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

OSSL_PARAM parameter(const char* name, std::span<const std::byte> value) {
  return OSSL_PARAM_construct_octet_string(name, const_cast<std::byte*>(value.data()), value.size());
}

void derive(int mode, std::span<const std::byte> key, const char* with_name, std::span<const std::byte> with,
            std::span<std::byte> out) {
  static const std::unique_ptr<EVP_KDF, Free> hkdf{EVP_KDF_fetch(nullptr, "HKDF", nullptr)};
  GW_ASSERT(hkdf != nullptr);
  const std::unique_ptr<EVP_KDF_CTX, Free> context{EVP_KDF_CTX_new(hkdf.get())};
  GW_ASSERT(context != nullptr);
  char digest[] = "SHA256";
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode), parameter(OSSL_KDF_PARAM_KEY, key),
      with.empty() ? OSSL_PARAM_construct_end() : parameter(with_name, with), OSSL_PARAM_construct_end()};
  const int derived =
      EVP_KDF_derive(context.get(), reinterpret_cast<unsigned char*>(out.data()), out.size(), parameters);
  GW_ASSERT(derived == 1);
}

}  // namespace

Secret hkdf_extract(std::span<const std::byte> salt, std::span<const std::byte> input) {
  Secret secret;
  derive(EVP_KDF_HKDF_MODE_EXTRACT_ONLY, input, OSSL_KDF_PARAM_SALT, salt, secret);
  return secret;
}

void hkdf_expand(std::span<const std::byte> secret, std::span<const std::byte> info, std::span<std::byte> out) {
  derive(EVP_KDF_HKDF_MODE_EXPAND_ONLY, secret, OSSL_KDF_PARAM_INFO, info, out);
}

void hkdf_expand_label(const Secret& secret, std::string_view label, std::span<const std::byte> context,
                       std::span<std::byte> out) {
  GW_ASSERT(label.size() <= kLabelBytesMax && context.size() <= kContextBytesMax && out.size() <= UINT16_MAX);
  // length u16 | prefix and label, with u8 length | context, with u8 length
  std::array<std::byte, 2 + 1 + kTlsPrefix.size() + kLabelBytesMax + 1 + kContextBytesMax> info{};
  wire::store_be<std::uint16_t>(info, 0, static_cast<std::uint16_t>(out.size()));
  std::size_t at = 2;
  info[at++] = static_cast<std::byte>(kTlsPrefix.size() + label.size());
  for (const std::span<const std::byte> part : {bytes_of(kTlsPrefix), bytes_of(label)}) {
    std::memcpy(info.data() + at, part.data(), part.size());
    at += part.size();
  }
  info[at++] = static_cast<std::byte>(context.size());
  if (!context.empty()) {
    std::memcpy(info.data() + at, context.data(), context.size());
    at += context.size();
  }
  hkdf_expand(secret, std::span(info).first(at), out);
}

Secret flow_secret(const Secret& migration, const FlowEnd& initiator, const FlowEnd& responder) {
  std::array<std::byte, 2 * (sizeof(FlowEnd::boot_id) + sizeof(FlowEnd::flow_id))> context{};
  std::size_t at = 0;
  for (const FlowEnd* end : {&initiator, &responder}) {
    std::memcpy(context.data() + at, end->boot_id.data(), end->boot_id.size());
    at += end->boot_id.size();
    wire::store_le<std::uint32_t>(context, at, end->flow_id);
    at += sizeof(end->flow_id);
  }
  Secret secret;
  hkdf_expand_label(hkdf_extract(bytes_of(kSalt), migration), kFlowLabel, context, secret);
  return secret;
}

Secret lane_secret(const Secret& flow, std::uint16_t lane, Direction direction) {
  std::array<std::byte, 3> context{};
  wire::store_le<std::uint16_t>(context, 0, lane);
  context[2] = static_cast<std::byte>(direction);
  Secret secret;
  hkdf_expand_label(flow, kLaneLabel, context, secret);
  return secret;
}

Secret next_secret(const Secret& secret) {
  Secret next;
  hkdf_expand_label(secret, kNextLabel, {}, next);
  return next;
}

}  // namespace godwit::transport
