#pragma once
// Logging set-up: one pattern for all daemons, through spdlog's default logger to standard error. Call start_logging()
// once from main, before other threads start; after that spdlog::info(...) and friends may be used from any thread.
// Under systemd (JOURNAL_STREAM names our standard error) a line starts with the journal's "<N>" priority and leaves
// time and process to the journal. Nothing here fails: a line that cannot be written is lost.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace godwit {

enum class LogLevel : std::uint8_t { kTrace, kDebug, kInfo, kWarning, kError };

inline constexpr std::string_view kLogLevelNames[] = {"trace", "debug", "info", "warning", "error"};

[[nodiscard]] std::optional<LogLevel> parse_log_level(std::string_view text);
[[nodiscard]] std::string_view log_level_name(LogLevel level);

/// `component` is the daemon's name, e.g. "godwit-bridge"; it starts every line outside of the journal.
void start_logging(std::string_view component, LogLevel level);
void set_log_level(LogLevel level);

/// True if file descriptor 2 is the stream that JOURNAL_STREAM ("device:inode") names.
[[nodiscard]] bool standard_error_is_journal();

/// For text that came from outside: control characters, and what is not UTF-8, are written as \xNN, so that one message
/// stays one line, and may stand in a protobuf string. At most `length_max` bytes of `text`, in whole characters.
[[nodiscard]] std::string printable(std::string_view text, std::size_t length_max = 512);

}  // namespace godwit
