#pragma once
// Descriptors of another process: found by what /proc says they are, fetched with pidfd_getfd.
//
// Stateless; any thread. Needs the right to trace the process (CAP_SYS_PTRACE). What a descriptor is may change between
// the look and the fetch: who uses a fetched one checks it, as the kernel does. Failure: InjectError.

#include <sys/types.h>

#include <expected>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "qemu-bridge/attach/inject.h"

namespace godwit::bridge {

/// Numeric names in /proc/PID/`what`, ascending: of threads, the main thread comes first, as its id is the process's.
std::vector<int> numbers_in(pid_t pid, const char* what);
/// Numbers of all descriptors of the process that /proc shows as `target`, e.g. "anon_inode:kvm-vm"; ascending.
std::expected<std::vector<int>, InjectError> find_descriptors(pid_t pid, std::string_view target);
[[nodiscard]] bool is_descriptor(pid_t pid, int number, std::string_view target);
/// A copy of descriptor `number`, which must be a `target`.
std::expected<UniqueFd, InjectError> fetch_descriptor(pid_t pid, int number, std::string_view target);

/// For texts.
std::string process_name(pid_t pid);

}  // namespace godwit::bridge
