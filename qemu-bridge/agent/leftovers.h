#pragma once
// What a crash leaves on this host and no VM here answers for: a guest that the data plane still holds although its
// QEMU is gone, an image that a migration was writing into, RAM files that are no image's. Stateless; blocking; any
// thread. The caller sees to it that no VM of a uuid begins here while its leftover is cleared. Whatever a process
// still has open is left alone. Failure: it is found again next time.

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/uuid.h"
#include "config/bridge_config.h"
#include "qemu-bridge/agent/dataplane_client.h"

namespace godwit::bridge {

struct Leftover {
  std::optional<dataplane::v1::GuestStatus> guest;    // to be let go first: its memory may become an image
  std::optional<dataplane::v1::ImageId> interrupted;  // image in use by nobody
  std::vector<std::filesystem::path> ram_files;
};

/// By VM. `here`: the VMs of this host, which have no leftovers. Memory that a guest elsewhere still needs is none.
std::map<Id128, Leftover> find_leftovers(const dataplane::v1::Status& status,
                                         const dataplane::v1::ListImagesResult& images,
                                         const config::BridgeConfig& config, const std::set<Id128>& here);
void clear_leftover(DataplaneClient& dataplane, const Id128& vm, const Leftover& leftover);

}  // namespace godwit::bridge
