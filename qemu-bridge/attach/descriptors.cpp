#include "qemu-bridge/attach/descriptors.h"

#include <dirent.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>

namespace godwit::bridge {
namespace {

std::optional<int> parse_number(const char* text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), value);
  return error == std::errc{} && *end == '\0' ? std::optional(value) : std::nullopt;
}

InjectError fetch_error(const std::string& call, pid_t pid, int error_number) {
  const InjectFailure failure = error_number == ESRCH                             ? InjectFailure::kProcessGone
                                : error_number == EPERM || error_number == EACCES ? InjectFailure::kNotPermitted
                                                                                  : InjectFailure::kKernel;
  return {failure, error_number, call + " of " + process_name(pid) + ": " + std::strerror(error_number)};
}

}  // namespace

std::string process_name(pid_t pid) { return "process " + std::to_string(pid); }

std::vector<int> numbers_in(pid_t pid, const char* what) {
  std::vector<int> numbers;
  if (DIR* opened = opendir(("/proc/" + std::to_string(pid) + "/" + what).c_str())) {
    while (const dirent* entry = readdir(opened)) {
      if (const auto number = parse_number(entry->d_name)) {
        numbers.push_back(*number);
      }
    }
    closedir(opened);
  }
  std::ranges::sort(numbers);
  return numbers;
}

bool is_descriptor(pid_t pid, int number, std::string_view target) {
  const std::string link = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(number);
  std::array<char, 64> shown{};
  const ssize_t length = readlink(link.c_str(), shown.data(), shown.size());
  return length > 0 && std::string_view(shown.data(), static_cast<std::size_t>(length)) == target;
}

std::expected<std::vector<int>, InjectError> find_descriptors(pid_t pid, std::string_view target) {
  if (access(("/proc/" + std::to_string(pid) + "/fd").c_str(), R_OK) != 0) {
    return std::unexpected(fetch_error("/proc/PID/fd", pid, errno == ENOENT ? ESRCH : errno));
  }
  std::vector<int> numbers = numbers_in(pid, "fd");
  std::erase_if(numbers, [&](int number) { return !is_descriptor(pid, number, target); });
  return numbers;
}

std::expected<UniqueFd, InjectError> fetch_descriptor(pid_t pid, int number, std::string_view target) {
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!process.valid()) {
    return std::unexpected(fetch_error("pidfd_open", pid, errno));
  }
  if (!is_descriptor(pid, number, target)) {
    return std::unexpected(InjectError{InjectFailure::kKernel, EBADF,
                                       "descriptor " + std::to_string(number) + " of " + process_name(pid) + " is no " +
                                           std::string(target) + " (any more)"});
  }
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), number, 0)));
  if (!fd.valid()) {
    return std::unexpected(fetch_error("pidfd_getfd", pid, errno));
  }
  return fd;
}

}  // namespace godwit::bridge
