#include "dataplane/memory/userfault.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "dataplane/memory/kernel_abi.h"

namespace godwit::memory {
namespace {

std::string describe(QemuRange range) {
  char text[64];
  std::snprintf(text, sizeof text, "QEMU range 0x%llx+0x%llx", static_cast<unsigned long long>(range.address),
                static_cast<unsigned long long>(range.bytes));
  return text;
}

Error missing_features(std::uint64_t wanted, std::uint64_t offered) {
  char text[160];
  std::snprintf(text, sizeof text, "userfaultfd: features 0x%llx are missing (wanted 0x%llx, there are 0x%llx)",
                static_cast<unsigned long long>(wanted & ~offered), static_cast<unsigned long long>(wanted),
                static_cast<unsigned long long>(offered));
  return {ErrorCode::kUnsupported, text};
}

int write_protect(int fd, QemuRange range, std::uint64_t mode) {
  uffdio_writeprotect request{};
  request.range = {range.address, range.bytes};
  request.mode = mode;
  return ioctl(fd, UFFDIO_WRITEPROTECT, &request) == 0 ? 0 : errno;
}

/// Goes on after a part, which the kernel reports as EAGAIN. `step` maps what is left and returns bytes or -errno; 0
/// where the kernel did not even begin.
template <class Step>
Mapped map_all(QemuRange range, Step step) {
  Mapped mapped;
  while (mapped.bytes < range.bytes) {
    errno = 0;
    const std::int64_t got = step({range.address + mapped.bytes, range.bytes - mapped.bytes}, mapped.bytes);
    if (got <= 0) {
      mapped.error = got < 0 ? static_cast<int>(-got) : errno;
      break;
    }
    mapped.bytes += static_cast<std::uint64_t>(got);
  }
  return mapped;
}

}  // namespace

Error mapping_error(const std::string& call, QemuRange range, int error_number) {
  Error error = kernel_error(call, describe(range), error_number);
  if (error_number == ENOENT) {
    error = {ErrorCode::kLost, error.text + " (QEMU maps it no more, or it is not registered)"};
  }
  return error;
}

std::expected<std::uint64_t, Error> Userfault::features_of(int fd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
  for (std::string line; std::getline(info, line);) {
    unsigned long long api = 0;
    unsigned long long features = 0;
    if (std::sscanf(line.c_str(), "API: %llx:%llx:", &api, &features) == 2) {
      return (features & abi::kFeatureInitialized) != 0 ? features & ~abi::kFeatureInitialized : 0;
    }
  }
  return std::unexpected(Error{ErrorCode::kBadArgument, "the descriptor given as userfaultfd is not one"});
}

std::expected<std::uint64_t, Error> Userfault::kernel_features() {
  UniqueFd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (!fd.valid()) {
    return std::unexpected(kernel_error("userfaultfd", "this process", errno));
  }
  uffdio_api api{UFFD_API, 0, 0};
  if (ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    return std::unexpected(kernel_error("UFFDIO_API", "userfaultfd", errno));
  }
  return api.features;
}

std::expected<Userfault, Error> Userfault::adopt(UniqueFd fd, std::uint64_t features) {
  const auto present = features_of(fd.get());
  if (!present) {
    return std::unexpected(present.error());
  }
  if (*present != 0) {
    if ((features & ~*present) != 0) {
      return std::unexpected(missing_features(features, *present));
    }
    return Userfault(std::move(fd), *present, true);
  }
  const auto offered = kernel_features();
  if (offered && (features & ~*offered) != 0) {
    return std::unexpected(missing_features(features, *offered));
  }
  uffdio_api api{UFFD_API, features, 0};
  if (ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    return std::unexpected(kernel_error("UFFDIO_API", "userfaultfd", errno));
  }
  return Userfault(std::move(fd), features, false);
}

std::expected<void, Error> Userfault::register_write_protect(QemuRange range) {
  uffdio_register request{};
  request.range = {range.address, range.bytes};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  if (ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0) {
    return std::unexpected(kernel_error("UFFDIO_REGISTER", describe(range), errno));
  }
  return {};
}

std::expected<void, Error> Userfault::register_missing(QemuRange range, bool huge, bool write_protect) {
  uffdio_register request{};
  request.range = {range.address, range.bytes};
  request.mode = UFFDIO_REGISTER_MODE_MISSING | (huge ? UFFDIO_REGISTER_MODE_MINOR : 0) |
                 (write_protect ? UFFDIO_REGISTER_MODE_WP : 0);
  if (ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0) {
    return std::unexpected(kernel_error("UFFDIO_REGISTER (missing)", describe(range), errno));
  }
  return {};
}

Mapped Userfault::copy(QemuRange range, const std::byte* from, bool protect) {
  return map_all(range, [&](QemuRange rest, std::uint64_t done) -> std::int64_t {
    uffdio_copy request{};
    request.dst = rest.address;
    request.src = reinterpret_cast<std::uint64_t>(from + done);
    request.len = rest.bytes;
    request.mode = protect ? UFFDIO_COPY_MODE_WP : 0;
    return ioctl(fd_.get(), UFFDIO_COPY, &request) == 0 ? static_cast<std::int64_t>(rest.bytes) : request.copy;
  });
}

Mapped Userfault::map_cached(QemuRange range, bool protect) {
  return map_all(range, [&](QemuRange rest, std::uint64_t /*done*/) -> std::int64_t {
    uffdio_continue request{};
    request.range = {rest.address, rest.bytes};
    request.mode = protect ? abi::kContinueWriteProtected : 0;
    return ioctl(fd_.get(), UFFDIO_CONTINUE, &request) == 0 ? static_cast<std::int64_t>(rest.bytes) : request.mapped;
  });
}

std::expected<void, Error> Userfault::protect(QemuRange range) {
  for (;;) {
    const int failed = write_protect(fd_.get(), range, UFFDIO_WRITEPROTECT_MODE_WP);
    if (failed == 0) {
      return {};
    }
    if (failed != EAGAIN) {
      return std::unexpected(kernel_error("UFFDIO_WRITEPROTECT", describe(range), failed));
    }
    std::this_thread::yield();
  }
}

std::expected<bool, Error> Userfault::try_unprotect(QemuRange range) {
  const int failed = write_protect(fd_.get(), range, 0);
  if (failed != 0 && failed != EAGAIN) {
    return std::unexpected(mapping_error("UFFDIO_WRITEPROTECT (off)", range, failed));
  }
  return failed == 0;
}

std::expected<void, Error> Userfault::unregister(QemuRange range) {
  uffdio_range request{range.address, range.bytes};
  if (ioctl(fd_.get(), UFFDIO_UNREGISTER, &request) != 0) {
    const int failed = errno;
    // Of an address space that is gone this call says ENOMEM, the other says so plainly.
    const bool gone = failed == ENOMEM && write_protect(fd_.get(), range, 0) == ESRCH;
    return std::unexpected(kernel_error("UFFDIO_UNREGISTER", describe(range), gone ? ESRCH : failed));
  }
  return {};
}

std::expected<void, Error> Userfault::wake(QemuRange range) {
  uffdio_range request{range.address, range.bytes};
  if (ioctl(fd_.get(), UFFDIO_WAKE, &request) != 0) {
    return std::unexpected(kernel_error("UFFDIO_WAKE", describe(range), errno));
  }
  return {};
}

}  // namespace godwit::memory
