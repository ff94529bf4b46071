#include "base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/unique_fd.h"

namespace godwit {

namespace {

using Step = FileError::Step;

constexpr std::string_view kTemporaryMark = ".tmp.";

const char* step_verb(Step step) {
  switch (step) {
    case Step::kOpen:
      return "open";
    case Step::kWrite:
      return "write";
    case Step::kRead:
      return "read";
    case Step::kSync:
      return "sync";
    case Step::kRename:
      return "rename";
    case Step::kRemove:
      return "remove";
    case Step::kSyncDirectory:
      return "sync the directory of";
    case Step::kTooLarge:
      return "read";
  }
  return "use";
}

std::unexpected<FileError> failure(Step step, const std::filesystem::path& path) {
  return std::unexpected(FileError{step, errno, path});
}

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return false;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return true;
}

std::expected<void, FileError> sync_directory_of(const std::filesystem::path& path) {
  const auto directory = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || ::fsync(fd.get()) != 0) {
    return failure(Step::kSyncDirectory, path);
  }
  return {};
}

std::filesystem::path temporary_name(const std::filesystem::path& path) {
  static std::atomic<unsigned> counter{0};
  auto name = path;
  name += std::string(kTemporaryMark) + std::to_string(::getpid()) + "." + std::to_string(counter.fetch_add(1));
  return name;
}

std::expected<void, FileError> write_and_sync(const std::filesystem::path& temporary,
                                              std::span<const std::span<const std::byte>> pieces, mode_t mode) {
  const UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd.valid()) {
    return failure(Step::kOpen, temporary);
  }
  for (const auto piece : pieces) {
    if (!write_all(fd.get(), piece)) {
      return failure(Step::kWrite, temporary);
    }
  }
  if (::fsync(fd.get()) != 0) {
    return failure(Step::kSync, temporary);
  }
  return {};
}

/// "<anything>.tmp.<digits>.<digits>"
bool is_temporary_name(std::string_view name) {
  const auto mark = name.rfind(kTemporaryMark);
  if (mark == std::string_view::npos || mark == 0) {
    return false;
  }
  const auto tail = name.substr(mark + kTemporaryMark.size());
  const auto dot = tail.find('.');
  return dot != std::string_view::npos && dot > 0 && dot + 1 < tail.size() &&
         tail.find_first_not_of("0123456789.") == std::string_view::npos &&
         tail.find('.', dot + 1) == std::string_view::npos;
}

}  // namespace

std::string FileError::text() const {
  const std::string reason =
      step == Step::kTooLarge ? "larger than allowed" : std::generic_category().message(error_number);
  return std::string("cannot ") + step_verb(step) + " " + path.string() + ": " + reason;
}

std::expected<void, FileError> write_file_atomically(const std::filesystem::path& path,
                                                     std::span<const std::span<const std::byte>> pieces, mode_t mode) {
  const auto temporary = temporary_name(path);
  if (auto written = write_and_sync(temporary, pieces, mode); !written) {
    if (written.error().step != Step::kOpen) {
      ::unlink(temporary.c_str());
    }
    return written;
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    auto result = failure(Step::kRename, path);
    ::unlink(temporary.c_str());
    return result;
  }
  return sync_directory_of(path);
}

std::expected<void, FileError> write_file_atomically(const std::filesystem::path& path, std::string_view content,
                                                     mode_t mode) {
  const std::array pieces{std::as_bytes(std::span(content.data(), content.size()))};
  return write_file_atomically(path, pieces, mode);
}

std::expected<std::string, FileError> read_file(const std::filesystem::path& path, std::size_t bytes_max) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return failure(Step::kOpen, path);
  }
  std::string content;
  std::array<char, 16384> buffer;
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return failure(Step::kRead, path);
    }
    if (n == 0) {
      return content;
    }
    if (static_cast<std::size_t>(n) > bytes_max - content.size()) {
      return std::unexpected(FileError{Step::kTooLarge, 0, path});
    }
    content.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

std::expected<void, FileError> remove_file_durably(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return failure(Step::kRemove, path);
  }
  return sync_directory_of(path);
}

std::size_t remove_temporaries(const std::filesystem::path& directory) {
  std::size_t removed = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (is_temporary_name(it->path().filename().native()) && ::unlink(it->path().c_str()) == 0) {
      ++removed;
    }
  }
  return removed;
}

}  // namespace godwit
