#pragma once
// A directory of a cluster's keys and certificates, as `godwitctl pki` makes it: ca.crt, ca.key, and NAME.crt, NAME.key
// for "controlplane", "operator" and each host. Keys have mode 0600, each file is written whole or not at all, and none
// is overwritten unless `overwrite` says so. Blocks on the files; one writer at a time, any thread.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "pki/certificate.h"

namespace godwit::pki {

inline constexpr const char* kControlplaneName = "controlplane";
inline constexpr const char* kOperatorName = "operator";

/// What the files of its certificate and key are called.
[[nodiscard]] std::string name_of(const Identity& identity);
/// The command that renews them, for whoever must be told.
[[nodiscard]] std::string renewal_text(const std::string& name);

class Directory {
 public:
  struct Lifetime {
    std::int64_t seconds = 365LL * 24 * 3600;
  };
  struct Request {
    std::string name;                    // a host's, or one of the names above
    std::vector<std::string> addresses;  // that it is reached by, beside its name; for the control plane's clients
    Lifetime lifetime;
    bool overwrite = false;
  };
  struct Entry {
    std::string name;    // "ca" too
    std::string holder;  // Identity::text(), or "CA"; "" when it cannot be read
    std::vector<std::string> addresses;
    Validity validity;
    std::string serial;
    std::string problem;  // what is wrong with it, "" for nothing
  };

  explicit Directory(std::filesystem::path path) : path_(std::move(path)) {}

  /// Makes the directory, a CA of ten years, and certificates for the control plane (reached by `addresses`, and by
  /// loopback), an operator and each of `hosts`. Nothing is written when any of it is there already, or a name is
  /// wrong.
  [[nodiscard]] Result<void> init(const std::vector<std::string>& hosts, const std::vector<std::string>& addresses,
                                  Lifetime lifetime, bool overwrite) const;
  /// Adds one, signed by the CA that is there. The control plane keeps its addresses when none are given.
  [[nodiscard]] Result<void> issue(const Request& request) const;
  /// All certificates, by name.
  [[nodiscard]] Result<std::vector<Entry>> list() const;

  [[nodiscard]] std::filesystem::path certificate_path(const std::string& name) const {
    return path_ / (name + ".crt");
  }
  [[nodiscard]] std::filesystem::path key_path(const std::string& name) const { return path_ / (name + ".key"); }

 private:
  std::filesystem::path path_;
};

}  // namespace godwit::pki
