#include "dataplane/daemon/flows.h"

#include <sys/random.h>

namespace godwit::daemon {
namespace {

std::uint32_t kernel_random() {
  std::uint32_t value = 0;
  GW_ASSERT(getrandom(&value, sizeof value, 0) == static_cast<ssize_t>(sizeof value));
  return value;
}

}  // namespace

FlowIds::FlowIds() : random_(kernel_random) {}

std::uint32_t FlowIds::draw() {
  if (used_ == kFlowsMax) {
    return 0;
  }
  // The index is random too, then walks on to a free place: nobody can guess an id from the number of flows.
  const std::uint32_t drawn = random_();
  for (std::uint32_t step = 0; step < kFlowsMax; ++step) {
    const std::uint32_t index = (drawn + step) & (kFlowsMax - 1);
    if (ids_[index] != 0) {
      continue;
    }
    std::uint32_t id = (random_() << kFlowIndexBits) | index;
    if (id == 0) {
      id = std::uint32_t{1} << kFlowIndexBits;
    }
    ids_[index] = id;
    ++used_;
    return id;
  }
  return 0;
}

void FlowIds::release(std::uint32_t flow_id) {
  std::uint32_t& id = ids_[flow_index(flow_id)];
  if (flow_id != 0 && id == flow_id) {
    id = 0;
    --used_;
  }
}

}  // namespace godwit::daemon
