#pragma once
// What dpdk-telemetry.py shows of this daemon: /godwit/drops and /godwit/loop of all lcores together,
// /godwit/lcoreN/loop of each. Register once, before the lcores start; what it points to outlives EAL. Read on DPDK's
// telemetry thread, without locks: counters of one writer each, possibly a moment old.

#include <vector>

#include "dataplane/daemon/data_path.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/telemetry.h"

namespace godwit::daemon {

struct LcoreFigures {
  const DataPath* data_path = nullptr;
  const port::PollLoop* loop = nullptr;
};
void register_telemetry(const std::vector<LcoreFigures>& lcores, port::Port& port);

}  // namespace godwit::daemon
