#pragma once
// A queue of a port that there is not: nothing arrives, nothing can be sent. Tests derive from it what they need.

#include "dataplane/port/port.h"

namespace godwit::tests {

class NoQueue : public port::Queue {
 public:
  std::span<const std::span<std::byte>> receive() override { return {}; }
  port::ReceivedFrame keep(std::size_t) override { return {}; }
  std::span<std::byte> next_frame(port::Priority) override { return {}; }
  void commit(port::Priority, std::size_t) override {}
  bool can_refer() override { return false; }
  void commit_referring(port::Priority, std::size_t, std::size_t, std::span<const std::span<const std::byte>>,
                        const port::Loan&) override {}
  bool flush() override { return true; }
  [[nodiscard]] const port::QueueCounters& counters() const override { return counters_; }

 private:
  port::QueueCounters counters_;
};

}  // namespace godwit::tests
