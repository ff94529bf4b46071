#include "pki/directory.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/atomic_file.h"
#include "pki/authority.h"
#include "pki/tls_files.h"

namespace godwit::pki {
namespace {

constexpr const char* kAuthorityName = "ca";
constexpr std::int64_t kAuthorityLifetime_s = 3650LL * 24 * 3600;
constexpr std::int64_t kClockSkew_s = 300;  // hosts whose clocks are a little behind must not refuse it
constexpr mode_t kKeyMode = 0600, kCertificateMode = 0644;

template <class... Arguments>
std::unexpected<Error> failure(Error::Code code, fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  return std::unexpected(Error{code, fmt::format(format, std::forward<Arguments>(arguments)...)});
}

Validity validity_of(std::int64_t lifetime_s) {
  const std::int64_t now_unix_s = unix_s_now();
  return {.not_before_unix_s = now_unix_s - kClockSkew_s, .not_after_unix_s = now_unix_s + lifetime_s};
}

Identity identity_of(const std::string& name) {
  if (name == kControlplaneName) {
    return {Role::kControlplane, {}};
  }
  return name == kOperatorName ? Identity{Role::kOperator, {}} : Identity{Role::kHost, name};
}

Result<void> check_new(const Directory& directory, const std::string& name, bool overwrite) {
  if (name == kAuthorityName) {
    return failure(Error::Code::kName, "\"{}\" is the CA's own name: call the host otherwise", name);
  }
  if (std::string mistake = name_mistake(name); !mistake.empty()) {
    return std::unexpected(Error{Error::Code::kName, std::move(mistake)});
  }
  for (const auto& path : {directory.certificate_path(name), directory.key_path(name)}) {
    std::error_code error;
    if (!overwrite && std::filesystem::exists(path, error)) {
      return failure(Error::Code::kExists, "{} is there already; --force replaces it", path.string());
    }
  }
  return {};
}

Result<void> write(const std::filesystem::path& path, const Result<std::string>& pem, mode_t mode) {
  if (!pem) {
    return std::unexpected(pem.error());
  }
  struct stat former {};
  const bool renewed = ::lstat(path.c_str(), &former) == 0 && S_ISREG(former.st_mode);
  if (auto written = write_file_atomically(path, *pem, mode); !written) {
    return failure(Error::Code::kFile, "{}", written.error().text());
  }
  // It is a new file: whoever could use the old one shall be able to use it.
  if (renewed && ::lchown(path.c_str(), former.st_uid, former.st_gid) != 0) {
    return failure(Error::Code::kFile, "cannot give {} the owner that it had", path.string());
  }
  // Whatever the umask took away: a daemon of another user reads certificates too.
  if (::chmod(path.c_str(), mode) != 0) {
    return failure(Error::Code::kFile, "cannot set the mode of {}", path.string());
  }
  return {};
}

/// The key first: a certificate without its key is noticed at once, the other way round too late.
Result<void> write_pair(const Directory& directory, const std::string& name, const Certificate& certificate,
                        const PrivateKey& key) {
  if (auto written = write(directory.key_path(name), key.pem(), kKeyMode); !written) {
    return written;
  }
  return write(directory.certificate_path(name), certificate.pem(), kCertificateMode);
}

std::vector<std::string> with_loopback(std::vector<std::string> addresses) {
  std::array<char, 256> name{};
  if (addresses.empty() && ::gethostname(name.data(), name.size() - 1) == 0) {
    addresses.emplace_back(name.data());
  }
  for (const char* loopback : {"localhost", "127.0.0.1", "::1"}) {
    if (std::ranges::find(addresses, loopback) == addresses.end()) {
      addresses.emplace_back(loopback);
    }
  }
  return addresses;
}

Result<Issued> make(const Authority& authority, const std::string& name, std::vector<std::string> addresses,
                    Directory::Lifetime lifetime) {
  const Identity identity = identity_of(name);
  if (identity.role == Role::kControlplane) {
    addresses = with_loopback(std::move(addresses));
  }
  if (identity.role == Role::kHost) {
    addresses.insert(addresses.begin(), name);
  }
  return authority.issue({identity, std::move(addresses), validity_of(lifetime.seconds)});
}

}  // namespace

std::string name_of(const Identity& identity) {
  switch (identity.role) {
    case Role::kControlplane:
      return kControlplaneName;
    case Role::kOperator:
      return kOperatorName;
    case Role::kHost:
      break;
  }
  return identity.host;
}

std::string renewal_text(const std::string& name) {
  return fmt::format("`godwitctl pki issue {} --force` makes a new one", name);
}

Result<void> Directory::init(const std::vector<std::string>& hosts, const std::vector<std::string>& addresses,
                             Lifetime lifetime, bool overwrite) const {
  std::vector<std::string> names{kControlplaneName, kOperatorName};
  names.insert(names.end(), hosts.begin(), hosts.end());
  for (const auto& name : std::set<std::string>(names.begin(), names.end())) {
    if (std::ranges::count(names, name) > 1) {
      return failure(Error::Code::kName, "\"{}\" is named twice, or is not a host's name", name);
    }
    if (auto good = check_new(*this, name, overwrite); !good) {
      return good;
    }
  }
  for (const auto& path : {certificate_path(kAuthorityName), key_path(kAuthorityName)}) {
    std::error_code error;
    if (!overwrite && std::filesystem::exists(path, error)) {
      return failure(Error::Code::kExists,
                     "{} is there already: `godwitctl pki issue` adds to it; --force makes a new CA, and every old "
                     "certificate worthless",
                     path.string());
    }
  }
  const auto authority = Authority::create(validity_of(std::max(kAuthorityLifetime_s, lifetime.seconds)));
  if (!authority) {
    return std::unexpected(authority.error());
  }
  std::vector<Issued> made;
  for (const auto& name : names) {
    auto issued = make(*authority, name, name == kControlplaneName ? addresses : std::vector<std::string>{}, lifetime);
    if (!issued) {
      return std::unexpected(issued.error());
    }
    made.push_back(std::move(*issued));
  }
  std::error_code error;
  std::filesystem::create_directories(path_, error);
  if (error) {
    return failure(Error::Code::kFile, "cannot make {}: {}", path_.string(), error.message());
  }
  if (auto written = write_pair(*this, kAuthorityName, authority->certificate(), authority->key()); !written) {
    return written;
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (auto written = write_pair(*this, names[i], made[i].certificate, made[i].key); !written) {
      return written;
    }
  }
  return {};
}

Result<void> Directory::issue(const Request& request) const {
  if (auto good = check_new(*this, request.name, request.overwrite); !good) {
    return good;
  }
  auto certificate = load_certificate(certificate_path(kAuthorityName));
  if (!certificate) {
    return failure(certificate.error().code, "{}; `godwitctl pki init` makes a CA", certificate.error().text);
  }
  auto key = load_key(key_path(kAuthorityName));
  if (!key) {
    return std::unexpected(key.error());
  }
  const auto authority = Authority::load(std::move(*certificate), std::move(*key));
  if (!authority) {
    return failure(authority.error().code, "{}: {}", path_.string(), authority.error().text);
  }
  auto addresses = request.addresses;
  if (const auto old = load_certificate(certificate_path(request.name));
      old && addresses.empty() && request.name == kControlplaneName) {
    addresses = old->addresses();
  }
  const auto issued = make(*authority, request.name, std::move(addresses), request.lifetime);
  if (!issued) {
    return std::unexpected(issued.error());
  }
  return write_pair(*this, request.name, issued->certificate, issued->key);
}

Result<std::vector<Directory::Entry>> Directory::list() const {
  const auto ca = load_certificate(certificate_path(kAuthorityName));
  if (!ca) {
    return failure(ca.error().code, "{}; `godwitctl pki init` makes a CA", ca.error().text);
  }
  std::set<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".crt") {
      names.insert(it->path().stem());
    }
  }
  std::vector<Entry> entries;
  for (const auto& name : names) {
    Entry entry{.name = name};
    const auto certificate = load_certificate(certificate_path(name));
    if (!certificate) {
      entry.problem = certificate.error().text;
      entries.push_back(std::move(entry));
      continue;
    }
    const auto identity = certificate->identity();
    entry.holder = identity ? identity->text() : certificate->is_authority() ? "CA" : "";
    entry.addresses = certificate->addresses();
    entry.validity = certificate->validity();
    entry.serial = certificate->serial();
    if (const auto mistake = chain_mistake({*certificate}, {*ca})) {
      entry.problem = "not signed by this CA: " + *mistake;
    } else if (!identity && name != kAuthorityName) {
      entry.problem = "names no role in a cluster";
    } else if (const auto key = load_key(key_path(name)); key && !certificate->belongs_to(*key)) {
      entry.problem = fmt::format("{} is another certificate's key", key_path(name).string());
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace godwit::pki
