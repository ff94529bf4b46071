#pragma once
// What a migration of one guest needs of its surroundings, lent by Vm for as long as the migration lives. Everything is
// used from the VM's queue, except emit, dataplane and qmp->execute(), which any thread but their own readers may use.

#include <functional>

#include "controlplane.pb.h"
#include "qemu-bridge/agent/dataplane_client.h"
#include "qemu-bridge/agent/journal.h"
#include "qemu-bridge/qmp/qmp_client.h"

namespace godwit::bridge {

struct GuestServices {
  QmpClient& qmp;
  DataplaneClient& dataplane;
  VmRecord& record;
  std::function<std::expected<void, dataplane::v1::Error>()> save;  // the record, to the journal
  std::function<void(controlplane::v1::MigrationEvent)> emit;
};

}  // namespace godwit::bridge
