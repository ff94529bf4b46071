#pragma once
// X.509 certificates and keys as a cluster uses them: EC P-256, SHA-256, and the role in the cluster as a URI among the
// subject's alternative names. OpenSSL's libcrypto (3.0) stays behind this header. Values; any thread. Text in an Error
// is one line for a person. Times are seconds since 1970; names of validity periods: RFC 5280.

#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// OpenSSL's X509 and EVP_PKEY
struct x509_st;
struct evp_pkey_st;

namespace godwit::pki {

struct Error {
  enum class Code : std::uint8_t {
    kCrypto,     // libcrypto failed
    kFormat,     // not what its name says: no PEM, no certificate, no key
    kFile,       // cannot be read or written
    kExists,     // there already, and not to be overwritten
    kName,       // a name or address that no certificate can have
    kAuthority,  // the CA cannot sign this: expired, or not the owner of its key
  };
  Code code;
  std::string text;
};

template <class T>
using Result = std::expected<T, Error>;

enum class Role : std::uint8_t { kControlplane, kOperator, kHost };

/// What a certificate lets its owner be.
struct Identity {
  Role role;
  std::string host;  // kHost only: the host's name in the cluster

  /// "godwit://controlplane", "godwit://operator", "godwit://host/host-a"
  [[nodiscard]] std::string uri() const;
  [[nodiscard]] static std::optional<Identity> parse_uri(std::string_view uri);
  /// "the control plane", "an operator", "host host-a"
  [[nodiscard]] std::string text() const;

  bool operator==(const Identity&) const = default;
};

/// What is wrong with a host's name, or "": 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit.
[[nodiscard]] std::string name_mistake(std::string_view name);

struct Validity {
  std::int64_t not_before_unix_s = 0;
  std::int64_t not_after_unix_s = 0;
};

[[nodiscard]] std::int64_t unix_s_now();
/// "2026-01-02 03:04 UTC"
[[nodiscard]] std::string date_text(std::int64_t unix_s);

class PrivateKey {
 public:
  [[nodiscard]] static Result<PrivateKey> generate();
  /// A key that is encrypted is not understood.
  [[nodiscard]] static Result<PrivateKey> parse(std::string_view pem);
  [[nodiscard]] Result<std::string> pem() const;
  [[nodiscard]] evp_pkey_st* get() const { return key_.get(); }

 private:
  explicit PrivateKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}
  std::shared_ptr<evp_pkey_st> key_;
};

class Certificate {
 public:
  explicit Certificate(std::shared_ptr<x509_st> certificate) : certificate_(std::move(certificate)) {}
  /// All certificates of a PEM file, in its order; at least one.
  [[nodiscard]] static Result<std::vector<Certificate>> parse_all(std::string_view pem);

  /// Nothing when it names no role, or more than one.
  [[nodiscard]] std::optional<Identity> identity() const;
  [[nodiscard]] Validity validity() const;
  /// DNS names and IP addresses.
  [[nodiscard]] std::vector<std::string> addresses() const;
  /// Is this DNS name or IP address, as a client dials it, among addresses()? Wildcards count.
  [[nodiscard]] bool covers(const std::string& address) const;
  [[nodiscard]] bool belongs_to(const PrivateKey& key) const;
  [[nodiscard]] bool is_authority() const;
  /// Hexadecimal.
  [[nodiscard]] std::string serial() const;
  [[nodiscard]] Result<std::string> pem() const;
  [[nodiscard]] x509_st* get() const { return certificate_.get(); }

 private:
  std::shared_ptr<x509_st> certificate_;
};

/// Why `chain` (its first: the certificate; the rest helps) does not lead to one of `authorities`, or nothing. Whether
/// it is valid today is not looked at.
[[nodiscard]] std::optional<std::string> chain_mistake(const std::vector<Certificate>& chain,
                                                       const std::vector<Certificate>& authorities);

/// "libcrypto: <doing>: <its own reason>"; empties libcrypto's queue of errors.
[[nodiscard]] Error crypto_error(std::string_view doing);

}  // namespace godwit::pki
