#include "controlplane/service/operators_service.h"

#include <spdlog/spdlog.h>

#include <deque>
#include <memory>
#include <mutex>

namespace godwit::controlplane {
namespace {

template <typename Response>
void answer(grpc::ServerUnaryReactor* reactor, Response* response, std::expected<Response, ServiceError> result) {
  if (result) {
    *response = std::move(*result);
  }
  reactor->Finish(result ? grpc::Status::OK : status_of(result.error()));
}

/// What answers once a host has.
auto when_done(grpc::ServerUnaryReactor* reactor) {
  return [reactor](const std::expected<void, ServiceError>& done) {
    reactor->Finish(done ? grpc::Status::OK : status_of(done.error()));
  };
}

template <typename Response>
auto when_it_runs(grpc::ServerUnaryReactor* reactor, Response* response) {
  return [reactor, response](const std::expected<api::Vm, ServiceError>& vm) {
    if (vm) {
      *response->mutable_vm() = *vm;
    }
    reactor->Finish(vm ? grpc::Status::OK : status_of(vm.error()));
  };
}

/// Ends a stream before it begins.
class RefusedWatch final : public grpc::ServerWriteReactor<api::Migration> {
 public:
  explicit RefusedWatch(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

/// Streams one migration. Progress that the watcher is too slow for is skipped, a change of state never.
class Watch final : public grpc::ServerWriteReactor<api::Migration>,
                    public MigrationWatcher,
                    public std::enable_shared_from_this<Watch> {
 public:
  Watch(Coordinator& coordinator, std::string migration_id)
      : coordinator_(coordinator), migration_id_(std::move(migration_id)) {}

  void start() {
    self_ = shared_from_this();
    if (auto watched = coordinator_.watch(migration_id_, self_); !watched) {
      finish(status_of(watched.error()));
    }
  }

  void update(const api::Migration& migration) override {
    {
      const std::lock_guard lock(mutex_);
      if (finished_ || closing_) {
        return;
      }
      if (writing_) {
        // One entry a state at most, so the queue is bounded by the number of states.
        if (!queue_.empty() && queue_.back().state() == migration.state() && !queue_.back().ended()) {
          queue_.back() = migration;
        } else {
          queue_.push_back(migration);
        }
        return;
      }
      writing_ = true;
      outgoing_ = migration;
    }
    StartWrite(&outgoing_);
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      if (ok && !closing_ && !queue_.empty()) {
        outgoing_ = std::move(queue_.front());
        queue_.pop_front();
      } else {
        writing_ = false;
        if (ok && !closing_ && !outgoing_.ended()) {
          return;
        }
        if (finished_) {
          return;
        }
        finished_ = true;
      }
    }
    if (finished_) {
      Finish(grpc::Status::OK);
    } else {
      StartWrite(&outgoing_);
    }
  }

  void OnCancel() override {
    coordinator_.unwatch(migration_id_, this);
    finish(grpc::Status::CANCELLED);
  }

  void OnDone() override {
    coordinator_.unwatch(migration_id_, this);
    self_.reset();
  }

 private:
  void finish(const grpc::Status& status) {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      if (writing_ || finished_) {
        return;
      }
      finished_ = true;
    }
    Finish(status);
  }

  Coordinator& coordinator_;
  const std::string migration_id_;
  std::shared_ptr<Watch> self_;

  std::mutex mutex_;  // nothing is called with it held
  std::deque<api::Migration> queue_;
  api::Migration outgoing_;
  bool writing_ = false;
  bool closing_ = false;
  bool finished_ = false;
};

}  // namespace

grpc::StatusCode status_code_of(ServiceError::Code code) {
  switch (code) {
    case ServiceError::Code::kInvalid:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case ServiceError::Code::kNotFound:
      return grpc::StatusCode::NOT_FOUND;
    case ServiceError::Code::kExists:
      return grpc::StatusCode::ALREADY_EXISTS;
    case ServiceError::Code::kNotNow:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case ServiceError::Code::kNotAvailable:
      return grpc::StatusCode::UNIMPLEMENTED;
    case ServiceError::Code::kHostGone:
      return grpc::StatusCode::UNAVAILABLE;
    case ServiceError::Code::kTimeout:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case ServiceError::Code::kRefused:
      return grpc::StatusCode::ABORTED;
    case ServiceError::Code::kStore:
      return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::INTERNAL;
}

grpc::Status status_of(const ServiceError& error) { return {status_code_of(error.code), error.text}; }

template <typename F>
OperatorsService::Unary* OperatorsService::admitted(Context* context, const F& do_it) {
  auto* reactor = context->DefaultReactor();
  if (auto status = gate_.admit_operator(*context); !status.ok()) {
    reactor->Finish(status);
  } else {
    do_it(reactor);
  }
  return reactor;
}

OperatorsService::Unary* OperatorsService::ListHosts(Context* context, const api::ListHostsRequest*,
                                                     api::ListHostsResponse* response) {
  return admitted(context, [&](auto* reactor) {
    auto hosts = coordinator_.list_hosts();
    if (hosts && certificate_ != nullptr) {
      hosts->set_certificate_end_unix_us(certificate_->end_unix_us());
    }
    answer(reactor, response, std::move(hosts));
  });
}

OperatorsService::Unary* OperatorsService::ListVms(Context* context, const api::ListVmsRequest*,
                                                   api::ListVmsResponse* response) {
  return admitted(context, [&](auto* reactor) { answer(reactor, response, coordinator_.list_vms()); });
}

OperatorsService::Unary* OperatorsService::ListImages(Context* context, const api::ListImagesRequest*,
                                                      api::ListImagesResponse* response) {
  return admitted(context, [&](auto* reactor) { answer(reactor, response, coordinator_.list_images()); });
}

OperatorsService::Unary* OperatorsService::DropImage(Context* context, const api::DropImageRequest* request,
                                                     api::DropImageResponse*) {
  return admitted(context,
                  [&](auto* reactor) { coordinator_.drop_image(request->host(), request->vm(), when_done(reactor)); });
}

OperatorsService::Unary* OperatorsService::StartVm(Context* context, const api::StartVmRequest* request,
                                                   api::StartVmResponse* response) {
  return admitted(context, [&](auto* reactor) { coordinator_.start_vm(*request, when_it_runs(reactor, response)); });
}

OperatorsService::Unary* OperatorsService::AttachVm(Context* context, const api::AttachVmRequest* request,
                                                    api::AttachVmResponse* response) {
  return admitted(context, [&](auto* reactor) { coordinator_.attach_vm(*request, when_it_runs(reactor, response)); });
}

OperatorsService::Unary* OperatorsService::StopVm(Context* context, const api::StopVmRequest* request,
                                                  api::StopVmResponse*) {
  return admitted(context, [&](auto* reactor) { coordinator_.stop_vm(request->vm(), when_done(reactor)); });
}

OperatorsService::Unary* OperatorsService::GetHeat(Context* context, const api::GetHeatRequest* request,
                                                   api::GetHeatResponse* response) {
  return admitted(context, [&](auto* reactor) {
    coordinator_.heat(*request, [reactor, response](auto heat) { answer(reactor, response, std::move(heat)); });
  });
}

OperatorsService::Unary* OperatorsService::SplitVm(Context* context, const api::SplitVmRequest* request,
                                                   api::SplitVmResponse* response) {
  return admitted(context, [&](auto* reactor) { coordinator_.split_vm(*request, when_it_runs(reactor, response)); });
}

OperatorsService::Unary* OperatorsService::DrainHost(Context* context, const api::DrainHostRequest* request,
                                                     api::DrainHostResponse* response) {
  return admitted(context, [&](auto* reactor) {
    coordinator_.drain_host(request->host(),
                            [reactor, response](auto drained) { answer(reactor, response, std::move(drained)); });
  });
}

OperatorsService::Unary* OperatorsService::GatherVm(Context* context, const api::GatherVmRequest* request,
                                                    api::GatherVmResponse* response) {
  return admitted(context,
                  [&](auto* reactor) { when_it_runs(reactor, response)(coordinator_.gather_vm(request->vm())); });
}

OperatorsService::Unary* OperatorsService::Migrate(Context* context, const api::MigrateRequest* request,
                                                   api::MigrateResponse* response) {
  return admitted(context, [&](auto* reactor) {
    const auto id = coordinator_.migrate(request->plan());
    if (id) {
      response->set_migration_id(id->to_bytes());
    }
    reactor->Finish(id ? grpc::Status::OK : status_of(id.error()));
  });
}

OperatorsService::Unary* OperatorsService::ListMigrations(Context* context, const api::ListMigrationsRequest* request,
                                                          api::ListMigrationsResponse* response) {
  return admitted(
      context, [&](auto* reactor) { answer(reactor, response, coordinator_.list_migrations(request->active_only())); });
}

grpc::ServerWriteReactor<api::Migration>* OperatorsService::WatchMigration(Context* context,
                                                                           const api::WatchMigrationRequest* request) {
  if (const auto status = gate_.admit_operator(*context); !status.ok()) {
    return new RefusedWatch(status);  // owns itself
  }
  const auto watch = std::make_shared<Watch>(coordinator_, request->migration_id());
  watch->start();
  return watch.get();
}

OperatorsService::Unary* OperatorsService::CancelMigration(Context* context, const api::CancelMigrationRequest* request,
                                                           api::CancelMigrationResponse*) {
  return admitted(context,
                  [&](auto* reactor) { when_done(reactor)(coordinator_.cancel_migration(request->migration_id())); });
}

OperatorsService::Unary* OperatorsService::SwitchToPostcopy(Context* context,
                                                            const api::SwitchToPostcopyRequest* request,
                                                            api::SwitchToPostcopyResponse*) {
  return admitted(context,
                  [&](auto* reactor) { coordinator_.switch_to_postcopy(request->migration_id(), when_done(reactor)); });
}

}  // namespace godwit::controlplane
