#include "config/diagnostic.h"

#include <algorithm>
#include <cstdio>

namespace godwit::config {

std::string Diagnostic::text() const {
  std::string out = file;
  if (line > 0) {
    out += ":" + std::to_string(line) + ":" + std::to_string(column);
  }
  out += ": ";
  if (!key.empty()) {
    out += key + ": ";
  }
  return out + message;
}

void print_diagnostics(const Diagnostics& diagnostics) {
  for (const auto& diagnostic : diagnostics) {
    std::fputs((diagnostic.text() + "\n").c_str(), stderr);
  }
}

int exit_status(const Diagnostics& diagnostics) {
  if (diagnostics.empty()) {
    return 0;
  }
  const bool unreadable = std::ranges::any_of(
      diagnostics, [](const Diagnostic& diagnostic) { return diagnostic.kind == Diagnostic::Kind::kUnreadable; });
  return unreadable ? 2 : 1;
}

int report_check(const std::filesystem::path& file, const Diagnostics& diagnostics) {
  if (diagnostics.empty()) {
    std::fputs((file.string() + ": ok\n").c_str(), stdout);
  }
  print_diagnostics(diagnostics);
  return exit_status(diagnostics);
}

}  // namespace godwit::config
