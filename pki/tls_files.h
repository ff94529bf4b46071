#pragma once
// The three files of one end of TLS, as a configuration names them, and everything that can be wrong with them before a
// connection is tried. Blocks on the files; any thread.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "pki/certificate.h"

namespace godwit::pki {

/// Absolute paths of PEM files. `ca` may hold several certificates, `certificate` the ones between it and the CA too.
struct TlsFiles {
  std::filesystem::path ca;
  std::filesystem::path certificate;
  std::filesystem::path key;
};

struct TlsMistake {
  enum class File : std::uint8_t { kCa, kCertificate, kKey };
  File file;
  std::string text;  // one line, what to do in it
};

/// All mistakes; none: a handshake can be tried. An expired certificate is none: it is renewed while the daemon runs,
/// see expiry_at(). `expected` is who this end must be.
[[nodiscard]] std::vector<TlsMistake> tls_mistakes(const TlsFiles& files, const Identity& expected);

/// How the certificate's time stands.
enum class Expiry : std::uint8_t { kValid, kSoon, kExpired, kNotYet };
inline constexpr std::int64_t kWarnBefore_s = 14LL * 24 * 3600;
[[nodiscard]] Expiry expiry_at(const Validity& validity, std::int64_t unix_s);
/// "expires in 3 days (2026-01-02 03:04 UTC)", "has expired on ...", "is valid from ... only", "is valid until ..."
[[nodiscard]] std::string expiry_text(const Validity& validity, std::int64_t unix_s);

/// The first certificate of a file.
[[nodiscard]] Result<Certificate> load_certificate(const std::filesystem::path& file);
[[nodiscard]] Result<PrivateKey> load_key(const std::filesystem::path& file);

}  // namespace godwit::pki
