#include "pki/authority.h"

#include <fmt/format.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "base/ip_address.h"
#include "base/log.h"

namespace godwit::pki {
namespace {

constexpr int kSerialBits = 127;      // positive, and within RFC 5280's 20 octets
constexpr long kVersion3 = 2;         // X.509 counts from 0
constexpr std::size_t kDnsMax = 253;  // RFC 1035

using Extension = std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)>;
using GeneralName = std::unique_ptr<GENERAL_NAME, decltype(&GENERAL_NAME_free)>;

bool set_serial(X509* certificate) {
  const std::unique_ptr<BIGNUM, decltype(&BN_free)> number(BN_new(), &BN_free);
  return number != nullptr && BN_rand(number.get(), kSerialBits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
         BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

bool set_subject(X509* certificate, const std::string& text) {
  X509_NAME* name = X509_get_subject_name(certificate);
  return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(text.data()),
                                    static_cast<int>(text.size()), -1, 0) == 1;
}

/// `value` is ours, never from outside: libcrypto's little language is not for text of others.
bool add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_nconf_nid(nullptr, &context, nid, value), &X509_EXTENSION_free);
  return extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1;
}

/// The octets of an address, or the text of a name, as an alternative name of this type.
GeneralName general_name(int type, std::string_view value) {
  GeneralName name(GENERAL_NAME_new(), &GENERAL_NAME_free);
  ASN1_STRING* text = ASN1_STRING_type_new(type == GEN_IPADD ? V_ASN1_OCTET_STRING : V_ASN1_IA5STRING);
  if (name == nullptr || text == nullptr || ASN1_STRING_set(text, value.data(), static_cast<int>(value.size())) != 1) {
    ASN1_STRING_free(text);
    return {nullptr, &GENERAL_NAME_free};
  }
  GENERAL_NAME_set0_value(name.get(), type, text);
  return name;
}

bool add_alternative_names(X509* certificate, const Authority::Request& request) {
  const std::unique_ptr<GENERAL_NAMES, decltype(&GENERAL_NAMES_free)> names(GENERAL_NAMES_new(), &GENERAL_NAMES_free);
  const auto add = [&](int type, std::string_view value) {
    GeneralName name = general_name(type, value);
    if (names == nullptr || name == nullptr || sk_GENERAL_NAME_push(names.get(), name.get()) == 0) {
      return false;
    }
    name.release();  // the list's now
    return true;
  };
  bool good = add(GEN_URI, request.identity.uri());
  for (const std::string& address : request.addresses) {
    if (const auto ip = IpAddress::parse(address)) {
      const auto bytes = ip->bytes();
      good = good && add(GEN_IPADD, {reinterpret_cast<const char*>(bytes.data()), ip->bits() / 8});
    } else {
      good = good && add(GEN_DNS, address);
    }
  }
  return good && X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) == 1;
}

std::string address_mistake(const std::string& address) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  };
  const bool good = !address.empty() && address.size() <= kDnsMax &&
                    (IpAddress::parse(address) || std::ranges::all_of(address, allowed));
  return good ? "" : fmt::format("\"{}\" is neither a DNS name nor an IP address", printable(address, 80));
}

/// All that a certificate of either kind has.
Result<std::shared_ptr<X509>> unsigned_certificate(const std::string& subject, const PrivateKey& key,
                                                   const Validity& validity, const Certificate* issuer) {
  std::shared_ptr<X509> made(X509_new(), &X509_free);
  X509* certificate = made.get();
  const bool good =
      certificate != nullptr && X509_set_version(certificate, kVersion3) == 1 && set_serial(certificate) &&
      ASN1_TIME_set(X509_getm_notBefore(certificate), validity.not_before_unix_s) != nullptr &&
      ASN1_TIME_set(X509_getm_notAfter(certificate), validity.not_after_unix_s) != nullptr &&
      set_subject(certificate, subject) &&
      X509_set_issuer_name(certificate, X509_get_subject_name(issuer == nullptr ? certificate : issuer->get())) == 1 &&
      X509_set_pubkey(certificate, key.get()) == 1;
  if (!good) {
    return std::unexpected(crypto_error("making a certificate"));
  }
  return made;
}

Result<Certificate> sign(std::shared_ptr<X509> certificate, const PrivateKey& key) {
  if (X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) {
    return std::unexpected(crypto_error("signing a certificate"));
  }
  return Certificate(std::move(certificate));
}

}  // namespace

Result<Authority> Authority::create(Validity validity) {
  auto key = PrivateKey::generate();
  if (!key) {
    return std::unexpected(key.error());
  }
  const auto made = unsigned_certificate("godwit CA", *key, validity, nullptr);
  if (!made) {
    return std::unexpected(made.error());
  }
  X509* own = made->get();
  if (!add_extension(own, own, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
      !add_extension(own, own, NID_key_usage, "critical,keyCertSign,cRLSign") ||
      !add_extension(own, own, NID_subject_key_identifier, "hash")) {
    return std::unexpected(crypto_error("making a CA's certificate"));
  }
  auto certificate = sign(*made, *key);
  if (!certificate) {
    return std::unexpected(certificate.error());
  }
  return Authority(Issued{std::move(*certificate), std::move(*key)});
}

Result<Authority> Authority::load(Certificate certificate, PrivateKey key) {
  if (!certificate.is_authority()) {
    return std::unexpected(Error{Error::Code::kAuthority, "the certificate is not a CA's"});
  }
  if (!certificate.belongs_to(key)) {
    return std::unexpected(Error{Error::Code::kAuthority, "the CA's key is another one than its certificate's"});
  }
  return Authority(Issued{std::move(certificate), std::move(key)});
}

Result<Issued> Authority::issue(const Request& request) const {
  for (const std::string& address : request.addresses) {
    if (std::string mistake = address_mistake(address); !mistake.empty()) {
      return std::unexpected(Error{Error::Code::kName, std::move(mistake)});
    }
  }
  Validity validity = request.validity;
  const std::int64_t end_unix_s = certificate().validity().not_after_unix_s;
  if (end_unix_s <= unix_s_now()) {
    return std::unexpected(
        Error{Error::Code::kAuthority, fmt::format("the CA has expired on {}: make a new one", date_text(end_unix_s))});
  }
  validity.not_after_unix_s = std::min(validity.not_after_unix_s, end_unix_s);
  auto key = PrivateKey::generate();
  if (!key) {
    return std::unexpected(key.error());
  }
  const auto made = unsigned_certificate("godwit: " + request.identity.text(), *key, validity, &certificate());
  if (!made) {
    return std::unexpected(made.error());
  }
  X509* issuer = certificate().get();
  const char* usage = request.identity.role == Role::kControlplane ? "serverAuth" : "clientAuth";
  if (!add_extension(made->get(), issuer, NID_basic_constraints, "critical,CA:FALSE") ||
      !add_extension(made->get(), issuer, NID_key_usage, "critical,digitalSignature") ||
      !add_extension(made->get(), issuer, NID_ext_key_usage, usage) ||
      !add_extension(made->get(), issuer, NID_subject_key_identifier, "hash") ||
      !add_extension(made->get(), issuer, NID_authority_key_identifier, "keyid:always") ||
      !add_alternative_names(made->get(), request)) {
    return std::unexpected(crypto_error("making a certificate"));
  }
  auto signed_one = sign(*made, this->key());
  if (!signed_one) {
    return std::unexpected(signed_one.error());
  }
  return Issued{std::move(*signed_one), std::move(*key)};
}

}  // namespace godwit::pki
