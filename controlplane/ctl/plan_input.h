#pragma once
// From typed configuration to the API's messages: plan and VM definition. Pure; any thread.

#include "config/migration_plan.h"
#include "config/vm_definition.h"
#include "controlplane.pb.h"

namespace godwit::ctl {

[[nodiscard]] controlplane::v1::Plan to_api(const config::MigrationPlan& plan);
[[nodiscard]] controlplane::v1::VmDefinition to_api(const config::VmDefinition& definition);

}  // namespace godwit::ctl
