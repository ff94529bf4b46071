#pragma once
// What dpdk-telemetry.py shows of this daemon: /godwit/drops and /godwit/loop. Register once, before the lcores start;
// what it points to outlives EAL. Read on DPDK's telemetry thread, without locks: counters of one writer each, possibly
// a moment old.

#include "dataplane/daemon/data_path.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/telemetry.h"

namespace godwit::daemon {

void register_telemetry(const DataPath& data_path, const port::PollLoop& loop, port::Port& port);

}  // namespace godwit::daemon
