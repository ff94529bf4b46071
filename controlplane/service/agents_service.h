#pragma once
// The Agents door: one gRPC stream a host, callback API, so that a message is sent by the thread that decides on it and
// nobody ever blocks on an agent that does not read. An agent that lets 1024 messages pile up is cut off. The gate says
// which host the caller may act as.

#include "controlplane.grpc.pb.h"
#include "controlplane/service/coordinator.h"
#include "controlplane/tls/gate.h"

namespace godwit::controlplane {

class AgentsService final : public api::Agents::CallbackService {
 public:
  AgentsService(Coordinator& coordinator, Gate gate) : coordinator_(coordinator), gate_(gate) {}
  grpc::ServerBidiReactor<api::FromAgent, api::ToAgent>* Session(grpc::CallbackServerContext* context) override;

 private:
  Coordinator& coordinator_;
  const Gate gate_;
};

}  // namespace godwit::controlplane
