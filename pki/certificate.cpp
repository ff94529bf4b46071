#include "pki/certificate.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>

#include "base/ip_address.h"
#include "base/log.h"

namespace godwit::pki {
namespace {

constexpr std::string_view kScheme = "godwit://";
constexpr std::string_view kHostPath = "host/";

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using AlternativeNames = std::unique_ptr<GENERAL_NAMES, decltype(&GENERAL_NAMES_free)>;

Bio bio_of(std::string_view text) {
  return {BIO_new_mem_buf(text.data(), static_cast<int>(std::min<std::size_t>(text.size(), INT_MAX))), &BIO_free};
}

std::string text_of(const Bio& bio) {
  const char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return size > 0 ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

/// An encrypted key must fail, not ask the terminal.
int no_password(char*, int, int, void*) { return -1; }

AlternativeNames alternative_names(x509_st* certificate) {
  return {static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)),
          &GENERAL_NAMES_free};
}

template <class F>
void for_each_name(x509_st* certificate, const F& take) {
  const AlternativeNames names = alternative_names(certificate);
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_URI || name->type == GEN_DNS || name->type == GEN_IPADD) {
      const ASN1_STRING* value = name->type == GEN_IPADD ? name->d.iPAddress : name->d.ia5;
      take(name->type, std::string_view(reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
                                        static_cast<std::size_t>(ASN1_STRING_length(value))));
    }
  }
}

std::int64_t unix_s_of(const ASN1_TIME* time) {
  std::tm broken_down{};
  return ASN1_TIME_to_tm(time, &broken_down) == 1 ? timegm(&broken_down) : 0;
}

std::string ip_text(std::string_view octets) {
  IpAddress::Bytes bytes{};
  if (octets.size() != 4 && octets.size() != bytes.size()) {
    return {};
  }
  std::copy(octets.begin(), octets.end(), bytes.begin());
  return IpAddress(octets.size() == 4 ? IpAddress::Family::kIpv4 : IpAddress::Family::kIpv6, bytes).text();
}

}  // namespace

std::string Identity::uri() const {
  switch (role) {
    case Role::kControlplane:
      return std::string(kScheme) + "controlplane";
    case Role::kOperator:
      return std::string(kScheme) + "operator";
    case Role::kHost:
      return std::string(kScheme) + std::string(kHostPath) + host;
  }
  return {};
}

std::optional<Identity> Identity::parse_uri(std::string_view uri) {
  if (!uri.starts_with(kScheme)) {
    return std::nullopt;
  }
  uri.remove_prefix(kScheme.size());
  if (uri == "controlplane") {
    return Identity{Role::kControlplane, {}};
  }
  if (uri == "operator") {
    return Identity{Role::kOperator, {}};
  }
  if (uri.starts_with(kHostPath) && name_mistake(uri.substr(kHostPath.size())).empty()) {
    return Identity{Role::kHost, std::string(uri.substr(kHostPath.size()))};
  }
  return std::nullopt;
}

std::string Identity::text() const {
  switch (role) {
    case Role::kControlplane:
      return "the control plane";
    case Role::kOperator:
      return "an operator";
    case Role::kHost:
      return "host " + host;
  }
  return {};
}

std::string name_mistake(std::string_view name) {
  const auto is_alphanumeric = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  const bool good =
      !name.empty() && name.size() <= 63 && is_alphanumeric(name[0]) &&
      std::ranges::all_of(name, [&](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
  return good ? ""
              : fmt::format(
                    "\"{}\" is no name of a host: 1 to 63 letters, digits, '.', '_' or '-', the first a "
                    "letter or digit",
                    printable(name, 80));
}

std::int64_t unix_s_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string date_text(std::int64_t unix_s) {
  const std::time_t time = unix_s;
  std::tm broken_down{};
  gmtime_r(&time, &broken_down);
  std::array<char, 32> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M UTC", &broken_down)};
}

Error crypto_error(std::string_view doing) {
  const unsigned long number = ERR_peek_error();
  const char* reason = number == 0 ? nullptr : ERR_reason_error_string(number);
  ERR_clear_error();
  return {Error::Code::kCrypto, fmt::format("libcrypto: {}: {}", doing, reason == nullptr ? "failed" : reason)};
}

// ---- keys -----------------------------------------------------------------------------------------------------------

Result<PrivateKey> PrivateKey::generate() {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  if (key == nullptr) {
    return std::unexpected(crypto_error("making a key"));
  }
  return PrivateKey(std::shared_ptr<EVP_PKEY>(key, &EVP_PKEY_free));
}

Result<PrivateKey> PrivateKey::parse(std::string_view pem) {
  const Bio bio = bio_of(pem);
  EVP_PKEY* key = bio == nullptr ? nullptr : PEM_read_bio_PrivateKey(bio.get(), nullptr, &no_password, nullptr);
  ERR_clear_error();
  if (key == nullptr) {
    return std::unexpected(Error{Error::Code::kFormat, "is no private key in PEM without a password"});
  }
  return PrivateKey(std::shared_ptr<EVP_PKEY>(key, &EVP_PKEY_free));
}

Result<std::string> PrivateKey::pem() const {
  const Bio bio(BIO_new(BIO_s_secmem()), &BIO_free);
  if (bio == nullptr ||
      PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return std::unexpected(crypto_error("writing a key"));
  }
  return text_of(bio);
}

// ---- certificates ---------------------------------------------------------------------------------------------------

Result<std::vector<Certificate>> Certificate::parse_all(std::string_view pem) {
  const Bio bio = bio_of(pem);
  std::vector<Certificate> all;
  while (bio != nullptr) {
    X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, &no_password, nullptr);
    if (certificate == nullptr) {
      break;
    }
    all.emplace_back(std::shared_ptr<X509>(certificate, &X509_free));
  }
  const unsigned long last = ERR_peek_last_error();
  ERR_clear_error();
  // The end of the file shows as "no start line"; anything else is damage.
  const bool ended = ERR_GET_LIB(last) == ERR_LIB_PEM && ERR_GET_REASON(last) == PEM_R_NO_START_LINE;
  if (all.empty() || !ended) {
    return std::unexpected(Error{Error::Code::kFormat, "is no certificate in PEM"});
  }
  return all;
}

std::optional<Identity> Certificate::identity() const {
  std::vector<std::optional<Identity>> found;
  for_each_name(get(), [&](int type, std::string_view value) {
    if (type == GEN_URI && value.starts_with(kScheme)) {
      found.push_back(Identity::parse_uri(value));
    }
  });
  return found.size() == 1 ? found[0] : std::nullopt;
}

Validity Certificate::validity() const {
  return {.not_before_unix_s = unix_s_of(X509_get0_notBefore(get())),
          .not_after_unix_s = unix_s_of(X509_get0_notAfter(get()))};
}

std::vector<std::string> Certificate::addresses() const {
  std::vector<std::string> all;
  for_each_name(get(), [&](int type, std::string_view value) {
    if (type == GEN_DNS) {
      all.push_back(printable(value));
    } else if (type == GEN_IPADD) {
      all.push_back(ip_text(value));
    }
  });
  return all;
}

bool Certificate::covers(const std::string& address) const {
  if (IpAddress::parse(address)) {
    return X509_check_ip_asc(get(), address.c_str(), 0) == 1;
  }
  return X509_check_host(get(), address.data(), address.size(), X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, nullptr) == 1;
}

bool Certificate::belongs_to(const PrivateKey& key) const {
  const bool same = X509_check_private_key(get(), key.get()) == 1;
  ERR_clear_error();
  return same;
}

bool Certificate::is_authority() const { return X509_check_ca(get()) == 1; }

std::string Certificate::serial() const {
  const std::unique_ptr<BIGNUM, decltype(&BN_free)> number(ASN1_INTEGER_to_BN(X509_get0_serialNumber(get()), nullptr),
                                                           &BN_free);
  if (number == nullptr) {
    return {};
  }
  char* hexadecimal = BN_bn2hex(number.get());
  std::string text = hexadecimal == nullptr ? "" : hexadecimal;
  OPENSSL_free(hexadecimal);
  return text;
}

Result<std::string> Certificate::pem() const {
  const Bio bio(BIO_new(BIO_s_mem()), &BIO_free);
  if (bio == nullptr || PEM_write_bio_X509(bio.get(), get()) != 1) {
    return std::unexpected(crypto_error("writing a certificate"));
  }
  return text_of(bio);
}

std::optional<std::string> chain_mistake(const std::vector<Certificate>& chain,
                                         const std::vector<Certificate>& authorities) {
  const std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(), &X509_STORE_free);
  const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> context(X509_STORE_CTX_new(),
                                                                                &X509_STORE_CTX_free);
  const std::unique_ptr<STACK_OF(X509), void (*)(STACK_OF(X509)*)> helpers(sk_X509_new_null(),
                                                                           [](STACK_OF(X509) * s) { sk_X509_free(s); });
  if (store == nullptr || context == nullptr || helpers == nullptr || chain.empty()) {
    return "cannot be checked";
  }
  for (const Certificate& authority : authorities) {
    X509_STORE_add_cert(store.get(), authority.get());
  }
  for (std::size_t i = 1; i < chain.size(); ++i) {
    sk_X509_push(helpers.get(), chain[i].get());
  }
  if (X509_STORE_CTX_init(context.get(), store.get(), chain[0].get(), helpers.get()) != 1) {
    return crypto_error("checking a certificate").text;
  }
  X509_STORE_CTX_set_flags(context.get(), X509_V_FLAG_NO_CHECK_TIME);
  const bool good = X509_verify_cert(context.get()) == 1;
  ERR_clear_error();
  if (good) {
    return std::nullopt;
  }
  return X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get()));
}

}  // namespace godwit::pki
