#include "dataplane/daemon/store_service.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/log.h"
#include "dataplane/daemon/guest.h"
#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

constexpr const char* kRecords = ".store";
constexpr const char* kPages = ".store-pages";

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

std::expected<std::shared_ptr<OpenStore>, ApiError> open_store(const memserver::StoreOptions& options, const Id128& id,
                                                               bool create) {
  const bool there = std::filesystem::exists(options.records_file);
  if (!there && !create) {
    return std::unexpected(ApiError{api::Error::NO_SUCH_STORE,
                                    "PrepareStore: there is no store " + id.text() + " here: what it held is lost"});
  }
  auto store = there ? memserver::PageStore::open(options) : memserver::PageStore::create(options);
  if (!store) {
    return std::unexpected(ApiError{to_api(store.error().code), "PrepareStore: " + store.error().text});
  }
  const auto vm = store->add_vm(to_memory_id(id));
  if (!vm) {
    return std::unexpected(bad_request("PrepareStore: " + options.records_file + " is another store's"));
  }
  return std::make_shared<OpenStore>(std::move(*store), *vm);
}

}  // namespace

StoreService::StoreService(const ServiceOptions& options, Inbox& control, DataPath& data_path, Worker& disk,
                           FlowIds& flow_ids, std::function<void(const api::Event&)> emit)
    : options_(options),
      control_(control),
      data_path_(data_path),
      disk_(disk),
      flow_ids_(flow_ids),
      emit_(std::move(emit)) {}

std::string StoreService::file(const Id128& vm, const Id128& store, const char* ending) const {
  return options_.missing_dir + "/" + vm.text() + "." + store.text() + ending;
}

void StoreService::prepare(const api::PrepareStore& request, const Respond& respond) {
  const auto id = parse_id(request.store_id(), "PrepareStore: store_id");
  const auto vm = parse_id(request.vm_uuid(), "PrepareStore: vm_uuid");
  const auto cipher = parse_encryption(request.encryption());
  if (!id || !vm || !cipher) {
    return respond(refusal(!id ? id.error() : !vm ? vm.error() : cipher.error()));
  }
  if (const auto refused = options_.refuse_clear_text(*cipher)) {
    return respond(refusal(*refused));
  }
  if (request.pages() == 0 || request.pages() > split::kPagesMax) {
    return respond(refusal(bad_request("PrepareStore: " + std::to_string(request.pages()) + " pages")));
  }
  const auto found = sessions_.find(*id);
  if (found == sessions_.end()) {
    Session& session = sessions_[*id];
    session.vm_uuid = *vm;
    session.ownership = request.ownership();
    session.pages = request.pages();
    session.budget_bytes = request.budget_bytes();
    session.cipher = *cipher;
    return open(*id, request.create(), respond);
  }
  Session& session = found->second;
  if (session.vm_uuid != *vm || session.pages != request.pages() || session.budget_bytes != request.budget_bytes()) {
    return respond(
        refusal(bad_request("PrepareStore: store " + id->text() + " is of another VM, or has another size or budget")));
  }
  if (request.ownership() < session.ownership) {
    return respond(refusal({api::Error::STALE_OWNERSHIP, "PrepareStore: ownership " +
                                                             std::to_string(request.ownership()) + " was given, " +
                                                             std::to_string(session.ownership) + " is known here"}));
  }
  if (session.state != Session::State::kPrepared && session.state != Session::State::kStarted) {
    return respond(refusal(bad_request("PrepareStore: store " + id->text() + " is being prepared: ask again")));
  }
  session.ownership = request.ownership();
  session.cipher = *cipher;
  give_up_flow(*id, [this, id = *id, respond] { prepared(id, respond); });
}

void StoreService::open(const Id128& id, bool create, const Respond& respond) {
  const Session& session = sessions_.at(id);
  memserver::StoreOptions options{.records_file = file(session.vm_uuid, id, kRecords),
                                  .pages_file = file(session.vm_uuid, id, kPages),
                                  .budget_bytes = session.budget_bytes,
                                  .boot_id = to_memory_id(options_.host_boot_id)};
  auto result = std::make_shared<std::expected<std::shared_ptr<OpenStore>, ApiError>>();
  disk_.submit([result, options, id, create] { *result = open_store(options, id, create); }, control_,
               [this, result, id, respond] { opened(id, std::move(*result), respond); });
}

void StoreService::opened(const Id128& id, std::expected<std::shared_ptr<OpenStore>, ApiError> store,
                          const Respond& respond) {
  if (!store) {
    spdlog::warn("store {}: not opened: {}", id.text(), printable(store.error().text));
    sessions_.erase(id);
    return respond(refusal(store.error()));
  }
  sessions_.at(id).store = std::move(*store);
  prepared(id, respond);
}

void StoreService::prepared(const Id128& id, const Respond& respond) {
  Session& session = sessions_.at(id);
  session.state = Session::State::kPrepared;
  session.flow_id = flow_ids_.draw();
  if (session.flow_id == 0) {
    return respond(refusal({api::Error::NO_MEMORY, "PrepareStore: no flow is free"}));
  }
  api::Reply reply;
  options_.describe(session.flow_id, *reply.mutable_prepare_store()->mutable_endpoint());
  reply.mutable_prepare_store()->set_pages_held(session.store->pages_held);
  spdlog::info("store {} of VM {}: prepared, holds {} pages", id.text(), session.vm_uuid.text(),
               session.store->pages_held.get());
  respond(std::move(reply));
}

/// Nothing of a former flow is called any more when `then` runs.
void StoreService::give_up_flow(const Id128& id, std::function<void()> then) {
  Session& session = sessions_.at(id);
  session.state = Session::State::kChanging;
  session.start_request.clear();
  const std::uint32_t flow_id = std::exchange(session.flow_id, 0);
  data_path_.inbox().post([this, flow_id, then = std::move(then)] {
    data_path_.release(flow_id, [this, flow_id, then](std::unique_ptr<Flow> flow) {
      flow.reset();
      control_.post([this, flow_id, then] {
        if (flow_id != 0) {
          flow_ids_.release(flow_id);
        }
        then();
      });
    });
  });
}

void StoreService::start(api::StartStore& request, const Respond& respond) {
  const auto id = parse_id(request.store_id(), "StartStore: store_id");
  auto start = parse_flow(request.peer(), request.secret(), "StartStore");
  wipe_secret(*request.mutable_secret());
  if (!id || !start) {
    return respond(refusal(!id ? id.error() : start.error()));
  }
  const auto found = sessions_.find(*id);
  if (found == sessions_.end()) {
    return respond(refusal({api::Error::NO_SUCH_STORE, "StartStore: store " + id->text() + " is not prepared"}));
  }
  Session& session = found->second;
  std::string serialised = request.SerializeAsString();
  if (session.state == Session::State::kStarted && session.start_request == serialised &&
      session.secret == start->secret) {
    return respond({});
  }
  const auto local = source_address(options_, start->peer);
  if (session.state != Session::State::kPrepared || session.flow_id == 0 || !local) {
    return respond(
        refusal(!local ? local.error() : bad_request("StartStore: store " + id->text() + " is not prepared")));
  }
  session.state = Session::State::kStarted;
  session.start_request = std::move(serialised);
  session.secret = start->secret;
  session.reason = "the main host has not come yet";
  const FlowConfig config = flow_config(options_, {session.flow_id, session.cipher, false}, *start, *local,
                                        static_cast<std::uint16_t>(data_path_.lcore_count()));
  const auto lost = [this, id = *id, flow_id = session.flow_id](const std::string& why) {
    control_.post([this, id, flow_id, why] {
      const auto its = sessions_.find(id);
      if (its == sessions_.end() || its->second.flow_id != flow_id) {
        return;
      }
      its->second.reason = why;
      spdlog::warn("store {}: {}", id.text(), printable(why));
      api::Event event;
      event.mutable_store_lost()->set_store_id(id.to_bytes());
      event.mutable_store_lost()->set_reason(printable(why, kTextBytesMax));
      emit_(event);
    });
  };
  data_path_.inbox().post([this, config, lost, store = session.store, id = to_memory_id(*id), pages = session.pages] {
    const Instant now = port::now();
    data_path_.add(std::make_unique<StoreFlow>(config, store, id, pages, lost, now), now);
  });
  respond({});
}

void StoreService::drop(const api::DropStore& request, const Respond& respond) {
  const auto id = parse_id(request.store_id(), "DropStore: store_id");
  if (!id) {
    return respond(refusal(id.error()));
  }
  const auto found = sessions_.find(*id);
  if (found == sessions_.end()) {
    return remove_files(*id, respond);
  }
  if (found->second.state == Session::State::kOpening || found->second.state == Session::State::kChanging) {
    return respond(refusal(bad_request("DropStore: store " + id->text() + " is being prepared: ask again")));
  }
  give_up_flow(*id, [this, id = *id, respond] {
    sessions_.erase(id);
    remove_files(id, respond);
  });
}

void StoreService::remove_files(const Id128& id, const Respond& respond) {
  disk_.submit(
      [directory = options_.missing_dir, id] {
        std::error_code ignored;
        for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
          const std::string name = entry.path().filename().string();
          if (name.ends_with("." + id.text() + kRecords) || name.ends_with("." + id.text() + kPages)) {
            std::filesystem::remove(entry.path(), ignored);
          }
        }
      },
      control_,
      [id, respond] {
        spdlog::info("store {}: dropped", id.text());
        respond({});
      });
}

void StoreService::add_status(api::Status& status) const {
  for (const auto& [id, session] : sessions_) {
    api::StoreStatus& store = *status.add_stores();
    store.set_store_id(id.to_bytes());
    store.set_vm_uuid(session.vm_uuid.to_bytes());
    store.set_ownership(session.ownership);
    if (!session.store) {
      continue;
    }
    store.set_open(true);
    store.set_connected(session.store->connected);
    store.set_reason(session.store->connected ? "" : printable(session.reason, kTextBytesMax));
    store.set_budget_bytes(session.budget_bytes);
    store.set_resident_bytes(session.store->resident_bytes);
    store.set_pages_held(session.store->pages_held);
    store.set_zero_pages(session.store->zero_pages);
    store.set_pages_max(session.store->pages_max);
  }
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(options_.missing_dir, ignored)) {
    const std::string name = entry.path().filename().string();
    constexpr std::size_t kText = Id128::kTextLength;
    if (name.size() != 2 * kText + 1 + std::strlen(kRecords) || !name.ends_with(kRecords) || name[kText] != '.') {
      continue;
    }
    const auto vm = Id128::parse(std::string_view(name).substr(0, kText));
    const auto id = Id128::parse(std::string_view(name).substr(kText + 1, kText));
    if (vm && id && !sessions_.contains(*id)) {
      api::StoreStatus& store = *status.add_stores();
      store.set_store_id(id->to_bytes());
      store.set_vm_uuid(vm->to_bytes());
      store.set_reason("files of a former daemon: nobody has prepared it yet");
    }
  }
}

}  // namespace godwit::daemon
