#pragma once
// A certificate authority of one cluster: signs certificates for the control plane, hosts and operators. Owns its key.
// A value; any thread. What is signed: EC P-256 with ECDSA and SHA-256 (what every TLS of today speaks), a random
// serial number of 127 bits, and the usages that the role needs and no other: a host's certificate cannot serve.

#include <string>
#include <vector>

#include "pki/certificate.h"

namespace godwit::pki {

/// A certificate and its key.
struct Issued {
  Certificate certificate;
  PrivateKey key;
};

class Authority {
 public:
  /// A new one, signed by itself.
  [[nodiscard]] static Result<Authority> create(Validity validity);
  /// One that exists; its key must be its certificate's.
  [[nodiscard]] static Result<Authority> load(Certificate certificate, PrivateKey key);

  struct Request {
    Identity identity;
    std::vector<std::string> addresses;  // DNS names and IP addresses that it is reached by; may be empty
    Validity validity;                   // cut where the authority's own ends
  };
  [[nodiscard]] Result<Issued> issue(const Request& request) const;

  [[nodiscard]] const Certificate& certificate() const { return own_.certificate; }
  [[nodiscard]] const PrivateKey& key() const { return own_.key; }

 private:
  explicit Authority(Issued own) : own_(std::move(own)) {}
  Issued own_;
};

}  // namespace godwit::pki
