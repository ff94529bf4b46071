#include "tests/unit/memory/target_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <utility>

#include "base/check.h"

namespace godwit::bridge::test {

TargetProcess TargetProcess::fork_with(const std::function<int(const std::function<void()>& ready)>& body) {
  int pipes[2];
  GW_ASSERT(pipe(pipes) == 0);
  const pid_t pid = fork();
  GW_ASSERT(pid >= 0);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(pipes[0]);
    _exit(body([&] {
      const char ready = 'r';
      if (write(pipes[1], &ready, 1) != 1) {
        _exit(99);
      }
    }));
  }
  close(pipes[1]);
  char ready = 0;
  GW_ASSERT(read(pipes[0], &ready, 1) == 1);
  close(pipes[0]);
  return TargetProcess(pid);
}

TargetProcess TargetProcess::execute(const std::vector<std::string>& command, uid_t uid) {
  const pid_t pid = fork();
  GW_ASSERT(pid >= 0);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (uid != 0 && (setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0)) {
      _exit(98);
    }
    const int null = open("/dev/null", O_RDWR);
    for (const int standard : {0, 1, 2}) {
      dup2(null, standard);
    }
    std::vector<char*> arguments;
    for (const std::string& argument : command) {
      arguments.push_back(const_cast<char*>(argument.c_str()));
    }
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(97);
  }
  return TargetProcess(pid);
}

TargetProcess::TargetProcess(TargetProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}

TargetProcess::~TargetProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
}

int TargetProcess::finish() {
  int status = 0;
  GW_ASSERT(waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool TargetProcess::runs() const { return waitpid(pid_, nullptr, WNOHANG) == 0; }

char TargetProcess::state() const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t after = line.rfind(") ");
  return after == std::string::npos ? '?' : line[after + 2];
}

}  // namespace godwit::bridge::test
