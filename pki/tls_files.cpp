#include "pki/tls_files.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "base/atomic_file.h"

namespace godwit::pki {
namespace {

constexpr std::size_t kFileBytesMax = 1U << 20;
constexpr mode_t kOthersMode = 0077;
constexpr std::int64_t kDay_s = 24LL * 3600;

class Checker {
 public:
  explicit Checker(const TlsFiles& files) : files_(files) {}

  std::vector<TlsMistake> run(const Identity& expected) {
    const auto authorities = certificates(TlsMistake::File::kCa, files_.ca);
    const auto chain = certificates(TlsMistake::File::kCertificate, files_.certificate);
    check_key(chain);
    if (chain) {
      check_identity((*chain)[0], expected);
    }
    if (chain && authorities) {
      if (const auto mistake = chain_mistake(*chain, *authorities)) {
        add(TlsMistake::File::kCertificate, fmt::format("{} is not signed by the CA of {}: {}",
                                                        files_.certificate.string(), files_.ca.string(), *mistake));
      }
    }
    return std::move(mistakes_);
  }

 private:
  void add(TlsMistake::File file, std::string text) { mistakes_.push_back({file, std::move(text)}); }

  std::optional<std::string> content(TlsMistake::File file, const std::filesystem::path& path) {
    auto content = read_file(path, kFileBytesMax);
    if (!content) {
      add(file, content.error().text());
      return std::nullopt;
    }
    return std::move(*content);
  }

  std::optional<std::vector<Certificate>> certificates(TlsMistake::File file, const std::filesystem::path& path) {
    const auto pem = content(file, path);
    if (!pem) {
      return std::nullopt;
    }
    auto all = Certificate::parse_all(*pem);
    if (!all) {
      add(file, path.string() + " " + all.error().text);
      return std::nullopt;
    }
    return std::move(*all);
  }

  void check_key(const std::optional<std::vector<Certificate>>& chain) {
    struct stat status {};
    if (::stat(files_.key.c_str(), &status) == 0 && (status.st_mode & kOthersMode) != 0) {
      add(TlsMistake::File::kKey, fmt::format("{} is open to others (mode {:04o}): chmod 600 {}", files_.key.string(),
                                              status.st_mode & 07777, files_.key.string()));
    }
    const auto pem = content(TlsMistake::File::kKey, files_.key);
    if (!pem) {
      return;
    }
    const auto key = PrivateKey::parse(*pem);
    if (!key) {
      add(TlsMistake::File::kKey, files_.key.string() + " " + key.error().text);
    } else if (chain && !(*chain)[0].belongs_to(*key)) {
      add(TlsMistake::File::kKey,
          fmt::format("{} is not the key of {}", files_.key.string(), files_.certificate.string()));
    }
  }

  void check_identity(const Certificate& certificate, const Identity& expected) {
    const auto identity = certificate.identity();
    if (identity != expected) {
      add(TlsMistake::File::kCertificate,
          fmt::format("{} is a certificate for {}, not for {}: it needs the URI {} as a name",
                      files_.certificate.string(), identity ? identity->text() : "nobody of a cluster", expected.text(),
                      expected.uri()));
    }
  }

  const TlsFiles& files_;
  std::vector<TlsMistake> mistakes_;
};

std::string time_left_text(std::int64_t left_s) {
  const auto count = [](std::int64_t number, const char* unit) {
    return fmt::format("{} {}{}", number, unit, number == 1 ? "" : "s");
  };
  return left_s >= kDay_s ? count(left_s / kDay_s, "day")
         : left_s >= 3600 ? count(left_s / 3600, "hour")
         : left_s >= 60   ? count(left_s / 60, "minute")
                          : count(left_s, "second");
}

}  // namespace

std::vector<TlsMistake> tls_mistakes(const TlsFiles& files, const Identity& expected) {
  return Checker(files).run(expected);
}

Expiry expiry_at(const Validity& validity, std::int64_t unix_s) {
  if (unix_s > validity.not_after_unix_s) {
    return Expiry::kExpired;
  }
  if (unix_s < validity.not_before_unix_s) {
    return Expiry::kNotYet;
  }
  return validity.not_after_unix_s - unix_s <= kWarnBefore_s ? Expiry::kSoon : Expiry::kValid;
}

std::string expiry_text(const Validity& validity, std::int64_t unix_s) {
  const std::string end = date_text(validity.not_after_unix_s);
  switch (expiry_at(validity, unix_s)) {
    case Expiry::kExpired:
      return "has expired on " + end;
    case Expiry::kNotYet:
      return fmt::format("is valid from {} only", date_text(validity.not_before_unix_s));
    case Expiry::kSoon:
      return fmt::format("expires in {} ({})", time_left_text(validity.not_after_unix_s - unix_s), end);
    case Expiry::kValid:
      return "is valid until " + end;
  }
  return {};
}

Result<Certificate> load_certificate(const std::filesystem::path& file) {
  const auto pem = read_file(file, kFileBytesMax);
  if (!pem) {
    return std::unexpected(Error{Error::Code::kFile, pem.error().text()});
  }
  auto all = Certificate::parse_all(*pem);
  if (!all) {
    return std::unexpected(Error{all.error().code, file.string() + " " + all.error().text});
  }
  return std::move((*all)[0]);
}

Result<PrivateKey> load_key(const std::filesystem::path& file) {
  const auto pem = read_file(file, kFileBytesMax);
  if (!pem) {
    return std::unexpected(Error{Error::Code::kFile, pem.error().text()});
  }
  auto key = PrivateKey::parse(*pem);
  if (!key) {
    return std::unexpected(Error{key.error().code, file.string() + " " + key.error().text});
  }
  return key;
}

}  // namespace godwit::pki
