#pragma once
// What is wrong with a configuration file: every mistake, with its place. Values; any thread.
// Lines and columns count from 1; line 0 means the file as a whole.

#include <cstdint>
#include <expected>
#include <filesystem>
#include <string>
#include <vector>

namespace godwit::config {

struct Diagnostic {
  enum class Kind : std::uint8_t { kUnreadable, kMistake };
  Kind kind = Kind::kMistake;
  std::string file;
  std::uint32_t line = 0;
  std::uint32_t column = 0;
  std::string key;      // "port[0].mtu"; empty for the file as a whole
  std::string message;  // one line: what is wrong, what to do

  /// "file:3:7: port[0].mtu: message"
  [[nodiscard]] std::string text() const;
};

using Diagnostics = std::vector<Diagnostic>;

/// A configuration without any mistake, or all mistakes of it in the order of their lines.
template <class T>
using Loaded = std::expected<T, Diagnostics>;

/// What `--check-config` and a failed start print: each diagnostic on its own line of standard error.
void print_diagnostics(const Diagnostics& diagnostics);

/// Exit status of --check-config: 0 valid, 1 mistakes, 2 unreadable.
[[nodiscard]] int exit_status(const Diagnostics& diagnostics);

/// The whole of `--check-config`: prints "<file>: ok" to standard output, or the diagnostics; returns the exit status.
[[nodiscard]] int report_check(const std::filesystem::path& file, const Diagnostics& diagnostics);

template <class T>
[[nodiscard]] int check_config(const std::filesystem::path& file, Loaded<T> (*load)(const std::filesystem::path&)) {
  const auto loaded = load(file);
  return report_check(file, loaded ? Diagnostics{} : loaded.error());
}

}  // namespace godwit::config
