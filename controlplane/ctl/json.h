#pragma once
// How godwitctl shows things to programs: JSON that stays as it is. Ids in their text form, times in microseconds since
// 1970, sizes in bytes; keys are as in controlplane.proto. Pure: protobuf messages in, JSON out; any thread; nothing
// fails.

#include <nlohmann/json.hpp>

#include "controlplane.pb.h"

namespace godwit::ctl {

namespace api = godwit::controlplane::v1;
namespace dpapi = godwit::dataplane::v1;
using Json = nlohmann::ordered_json;

[[nodiscard]] Json to_json(const api::DrainHostResponse& response);
[[nodiscard]] Json to_json(const api::Host& host);
[[nodiscard]] Json to_json(const api::Vm& vm);
[[nodiscard]] Json to_json(const api::HostImage& image);
[[nodiscard]] Json to_json(const api::Migration& migration);

}  // namespace godwit::ctl
