#pragma once
// The way to one connected agent, as the control plane's logic sees it. send() and close() never block and may be
// called from any thread, also with the coordinator's lock held: implementations take no lock that is held while they
// call the coordinator. Messages arrive in the order of send(); after close() they go nowhere. A lost link is reported
// by whoever reads the stream (Coordinator::session_closed), not here.

#include "controlplane.pb.h"

namespace godwit::controlplane {

class AgentLink {
 public:
  virtual ~AgentLink() = default;
  virtual void send(v1::ToAgent message) = 0;
  virtual void close() = 0;
};

/// Somebody who watches a migration. update() as send() above; after one with ended() set nothing follows.
class MigrationWatcher {
 public:
  virtual ~MigrationWatcher() = default;
  virtual void update(const v1::Migration& migration) = 0;
};

}  // namespace godwit::controlplane
