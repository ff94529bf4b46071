#pragma once
// Ends a process that a test started, also when the test fails. Test thread.

#include "qemu-bridge/agent/qemu_process.h"

namespace godwit::bridge {

class OwnedQemu {
 public:
  explicit OwnedQemu(const ProcessId& process) : process_(process) {}
  ~OwnedQemu() { end_process(process_, std::chrono::milliseconds(0)); }
  OwnedQemu(const OwnedQemu&) = delete;
  OwnedQemu& operator=(const OwnedQemu&) = delete;

 private:
  ProcessId process_;
};

}  // namespace godwit::bridge
