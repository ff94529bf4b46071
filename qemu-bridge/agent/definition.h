#pragma once
// A VM's definition as the control plane sends it, made into config::VmDefinition: what comes out needs no further
// check. Stateless, any thread. A bad definition is one line naming field and value.

#include <expected>
#include <string>

#include "config/vm_definition.h"
#include "controlplane.pb.h"

namespace godwit::bridge {

std::expected<config::VmDefinition, std::string> definition_of(const controlplane::v1::VmDefinition& proto);
controlplane::v1::VmDefinition to_proto(const config::VmDefinition& definition);
std::uint64_t bytes_total(const config::VmDefinition& definition);

}  // namespace godwit::bridge
