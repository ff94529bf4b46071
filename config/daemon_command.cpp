#include "config/daemon_command.h"

#include <CLI/CLI.hpp>

#include "config/version.h"

namespace godwit::config {

std::expected<DaemonCommand, int> parse_daemon_command(int argc, const char* const* argv, const DaemonHelp& help) {
  constexpr int kBadUsage = 2;
  CLI::App app(help.description);
  DaemonCommand command{.file = help.default_file};
  std::string checked_file;
  app.set_version_flag("--version", version());
  app.add_option("-c,--config", command.file, "configuration file")->capture_default_str();
  const auto* check = app.add_option("--check-config", checked_file, "report every mistake of the file, and do no more")
                          ->type_name("[FILE]")
                          ->expected(0, 1);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return std::unexpected(app.exit(error) == 0 ? 0 : kBadUsage);
  }
  command.check_only = check->count() > 0;
  if (!checked_file.empty()) {
    command.file = checked_file;
  }
  return command;
}

}  // namespace godwit::config
