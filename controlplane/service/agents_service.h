#pragma once
// The Agents door: one gRPC stream a host, callback API, so that a message is sent by the thread that decides on it and
// nobody ever blocks on an agent that does not read. An agent that lets 1024 messages pile up is cut off.

#include "controlplane.grpc.pb.h"
#include "controlplane/service/coordinator.h"

namespace godwit::controlplane {

class AgentsService final : public api::Agents::CallbackService {
 public:
  explicit AgentsService(Coordinator& coordinator) : coordinator_(coordinator) {}
  grpc::ServerBidiReactor<api::FromAgent, api::ToAgent>* Session(grpc::CallbackServerContext* context) override;

 private:
  Coordinator& coordinator_;
};

}  // namespace godwit::controlplane
