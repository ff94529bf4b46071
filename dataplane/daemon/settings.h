#pragma once
// From the daemon's configuration to what each part is started with. Pure but for drawing ids and asking which
// directory is no hugetlbfs.

#include "config/dataplane_config.h"
#include "dataplane/daemon/service.h"
#include "dataplane/port/environment.h"
#include "dataplane/port/idle.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/port.h"

namespace godwit::daemon {

struct Settings {
  port::EnvironmentOptions environment;
  port::PortOptions port;
  port::NeighboursOptions neighbours;  // without the MAC address, which the port tells
  ServiceOptions service;
  std::string image_dir;  // where records of retained images are: hugetlbfs takes no ordinary file
};

Settings make_settings(const config::DataplaneConfig& config);
port::IdleOptions idle_options(const config::DataplaneConfig& config, bool has_doorbell);

}  // namespace godwit::daemon
