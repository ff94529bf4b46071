#pragma once
// The page stores of this host: PrepareStore, StartStore and DropStore, and what is told of them. Control thread; a
// store is opened and dropped by jobs, and used on the home lcore by its flow. Owns what is open; files of stores that
// are not stay until somebody opens or drops them. Failure: each request is answered by one Reply.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/uuid.h"
#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/flows.h"
#include "dataplane/daemon/service_options.h"
#include "dataplane/daemon/split_flow.h"
#include "dataplane/daemon/worker.h"

namespace godwit::daemon {

class StoreService {
 public:
  using Respond = std::function<void(api::Reply)>;
  StoreService(const ServiceOptions& options, Inbox& control, DataPath& data_path, Worker& disk, FlowIds& flow_ids,
               std::function<void(const api::Event&)> emit);

  void prepare(const api::PrepareStore& request, const Respond& respond);
  void start(api::StartStore& request, const Respond& respond);
  void drop(const api::DropStore& request, const Respond& respond);
  void add_status(api::Status& status) const;

 private:
  struct Session {
    enum class State : std::uint8_t { kOpening, kPrepared, kStarted, kChanging };
    State state = State::kOpening;
    Id128 vm_uuid;
    std::uint64_t ownership = 0;
    std::uint64_t pages = 0;
    std::uint64_t budget_bytes = 0;
    transport::Cipher cipher = transport::Cipher::kAes128Gcm;
    std::uint32_t flow_id = 0;
    std::string start_request;
    transport::Secret secret;
    std::string reason = "not connected yet";
    std::shared_ptr<OpenStore> store;
  };
  [[nodiscard]] std::string file(const Id128& vm, const Id128& store, const char* ending) const;
  void open(const Id128& id, bool create, const Respond& respond);
  void opened(const Id128& id, std::expected<std::shared_ptr<OpenStore>, ApiError> store, const Respond& respond);
  void give_up_flow(const Id128& id, std::function<void()> then);
  void prepared(const Id128& id, const Respond& respond);
  void remove_files(const Id128& id, const Respond& respond);

  const ServiceOptions& options_;
  Inbox& control_;
  DataPath& data_path_;
  Worker& disk_;
  FlowIds& flow_ids_;
  const std::function<void(const api::Event&)> emit_;
  std::map<Id128, Session> sessions_;
};

}  // namespace godwit::daemon
