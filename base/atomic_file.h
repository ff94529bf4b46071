#pragma once
// Files that are there whole or not at all, also after a power cut: write under a temporary name in the same directory,
// fsync, rename over the target, fsync the directory. Blocking; any thread, but one writer a target at a time. On
// failure the target is as it was and the temporary file is gone; a crash may leave "<name>.tmp.<pid>.<n>" behind,
// which remove_temporaries() clears at start. Sizes are bytes.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace godwit {

struct FileError {
  enum class Step : std::uint8_t { kOpen, kWrite, kRead, kSync, kRename, kRemove, kSyncDirectory, kTooLarge };
  Step step;
  int error_number;  // errno; 0 with kTooLarge
  std::filesystem::path path;

  /// "cannot rename /x/y: Permission denied"
  [[nodiscard]] std::string text() const;
};

/// Replaces `path` by a file of these bytes; pieces are written one after the other.
[[nodiscard]] std::expected<void, FileError> write_file_atomically(const std::filesystem::path& path,
                                                                   std::span<const std::span<const std::byte>> pieces,
                                                                   mode_t mode = 0600);
[[nodiscard]] std::expected<void, FileError> write_file_atomically(const std::filesystem::path& path,
                                                                   std::string_view content, mode_t mode = 0600);

/// The whole file, refused when it is larger than `bytes_max`. Works for /proc and /sys, whose sizes stat does not
/// know.
[[nodiscard]] std::expected<std::string, FileError> read_file(const std::filesystem::path& path,
                                                              std::size_t bytes_max = 16U << 20);

/// Unlinks a file and makes that durable; a file that is not there is no error.
[[nodiscard]] std::expected<void, FileError> remove_file_durably(const std::filesystem::path& path);

/// Removes what crashed writers of this module left in a directory; returns how many.
std::size_t remove_temporaries(const std::filesystem::path& directory);

}  // namespace godwit
