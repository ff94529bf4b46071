#pragma once
// QEMU as a Linux process: started so that it outlives this daemon, recognised again later (pid and start time together
// name a process for ever), watched and ended. Stateless but for ProcessWatch; any thread. Failure: one line naming the
// call and what to do.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "qemu-bridge/agent/qemu_arguments.h"

namespace godwit::bridge {

struct ProcessId {
  pid_t pid = -1;
  std::uint64_t start_ticks = 0;  // field 22 of /proc/PID/stat
  bool operator==(const ProcessId&) const = default;
};

/// nullopt: there is no such process (a zombie counts as none).
std::optional<ProcessId> identify(pid_t pid);
/// True while just this process runs.
bool is_alive(const ProcessId& process);
/// The process that has `argument` as one of its arguments.
std::optional<ProcessId> find_process(const std::string& argument);

struct UserIds {
  uid_t uid = 0;
  gid_t gid = 0;
};
std::expected<UserIds, std::string> find_user(const std::string& name);

struct Launch {
  std::vector<std::string> argv;
  std::filesystem::path log_file;  // standard output and error, appended
  std::optional<UserIds> user;     // none: ours
  std::string user_name;           // for its supplementary groups
};

/// Starts it in a session of its own, child of init: nothing that happens to us reaches it.
std::expected<ProcessId, std::string> launch(const Launch& launch);

/// Ends it: SIGTERM, and SIGKILL when it is still there after `grace`. Without grace nothing of its own clean-up runs.
/// True once it is gone.
bool end_process(const ProcessId& process, std::chrono::milliseconds grace);
bool wait_for_exit(const ProcessId& process, std::chrono::milliseconds time);

/// Tells once, from a thread of its own, that the process has exited. The destructor ends the watch.
class ProcessWatch {
 public:
  ProcessWatch(const ProcessId& process, std::function<void()> on_exit);
  ~ProcessWatch();
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;

 private:
  UniqueFd wake_;
  std::thread thread_;
};

/// The accelerator to use: what was asked, or for kAuto KVM where this user may create a VM, else TCG.
config::Accel decide_accel(config::Accel asked);

/// The last lines of a log, on one line, for an error text; "" when there is nothing.
std::string log_tail(const std::filesystem::path& path);

}  // namespace godwit::bridge
