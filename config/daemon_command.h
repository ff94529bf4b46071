#pragma once
// The command line that all daemons have: --config FILE, --check-config [FILE], --version, --help. Main thread, before
// any other starts. An error is the exit status to end with; what there was to say has been printed.

#include <expected>
#include <string>

#include "config/diagnostic.h"

namespace godwit::config {

struct DaemonHelp {
  const char* description;
  const char* default_file;  // read when the command line names none
};

struct DaemonCommand {
  std::string file;
  bool check_only = false;
};

/// 0: help or version was asked for; 2: the command line is wrong.
[[nodiscard]] std::expected<DaemonCommand, int> parse_daemon_command(int argc, const char* const* argv,
                                                                     const DaemonHelp& help);

/// The configuration to run with. An error after --check-config too: its verdict.
template <class T>
[[nodiscard]] std::expected<T, int> daemon_config(int argc, const char* const* argv, const DaemonHelp& help,
                                                  Loaded<T> (*load)(const std::filesystem::path&)) {
  const auto command = parse_daemon_command(argc, argv, help);
  if (!command) {
    return std::unexpected(command.error());
  }
  if (command->check_only) {
    return std::unexpected(check_config(command->file, load));
  }
  auto loaded = load(command->file);
  if (!loaded) {
    print_diagnostics(loaded.error());
    return std::unexpected(exit_status(loaded.error()));
  }
  return std::move(*loaded);
}

}  // namespace godwit::config
