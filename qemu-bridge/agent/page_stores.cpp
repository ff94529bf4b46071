#include "qemu-bridge/agent/page_stores.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/log.h"
#include "config/units.h"
#include "qemu-bridge/qmp/json.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::AgentReply;
using controlplane::v1::HeldStore;
using dataplane::v1::Error;

constexpr int kVersion = 1;
constexpr std::size_t kNameLengthMax = 64;

std::unexpected<Error> bad(std::string text) {
  return std::unexpected(make_error(Error::BAD_REQUEST, std::move(text)));
}

std::expected<StoreRecord, Error> record_of(const controlplane::v1::PrepareStore& command) {
  const auto id = Id128::from_bytes(command.store_id());
  const auto vm = Id128::from_bytes(command.vm_uuid());
  if (!id || id->is_nil() || !vm || vm->is_nil() || command.bytes_lent() == 0 || command.pages() == 0 ||
      command.vm_name().size() > kNameLengthMax || command.main_host().size() > kNameLengthMax) {
    return bad("PrepareStore: store_id, vm_uuid, bytes_lent, pages or a name is no such thing");
  }
  return StoreRecord{.id = *id,
                     .vm_uuid = *vm,
                     .vm_name = printable(command.vm_name()),
                     .main_host = printable(command.main_host()),
                     .ownership = command.ownership(),
                     .bytes_lent = command.bytes_lent()};
}

}  // namespace

std::string to_text(const StoreRecord& record) {
  const Json json = {{"version", kVersion},
                     {"store_id", record.id.text()},
                     {"vm_uuid", record.vm_uuid.text()},
                     {"vm_name", record.vm_name},
                     {"main_host", record.main_host},
                     {"ownership", record.ownership},
                     {"bytes_lent", record.bytes_lent},
                     {"made", record.made}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::expected<StoreRecord, std::string> parse_store_record(const std::string& text) {
  const auto json = parse_json(text);
  if (!json || json_int(*json, "version") != kVersion) {
    return std::unexpected("not a record of version " + std::to_string(kVersion));
  }
  const auto id = Id128::parse(json_string(*json, "store_id").value_or(""));
  const auto vm = Id128::parse(json_string(*json, "vm_uuid").value_or(""));
  const auto name = json_string(*json, "vm_name");
  const auto main_host = json_string(*json, "main_host");
  const auto ownership = json_uint(*json, "ownership");
  const auto bytes_lent = json_uint(*json, "bytes_lent");
  const auto made = json_bool(*json, "made");
  if (!id || !vm || !name || !main_host || !ownership || !bytes_lent || !made) {
    return std::unexpected("a field is missing or impossible");
  }
  return StoreRecord{*id, *vm, *name, *main_host, *ownership, *bytes_lent, *made};
}

std::expected<std::vector<std::string>, FileError> PageStores::load() {
  std::error_code error;
  std::filesystem::create_directories(dir_, error);
  std::filesystem::directory_iterator entries(dir_, error);
  if (error) {
    return std::unexpected(FileError{FileError::Step::kOpen, error.value(), dir_});
  }
  remove_temporaries(dir_);
  std::vector<std::string> problems;
  const std::lock_guard lock(mutex_);
  for (const auto& entry : entries) {
    if (entry.path().extension() != ".json") {
      continue;
    }
    const auto text = read_file(entry.path());
    const auto record = text ? parse_store_record(*text) : std::unexpected(text.error().text());
    if (record && path_of(record->id) == entry.path()) {
      stores_[record->id].record = *record;
      stores_[record->id].status.set_store_id(record->id.to_bytes());
      continue;
    }
    std::filesystem::rename(entry.path(), entry.path().string() + ".broken", error);
    problems.push_back("page store " + entry.path().string() + ": " +
                       (record ? "its id is not that of its file name" : record.error()) +
                       "; kept as .broken, its pages stay");
  }
  return problems;
}

std::expected<void, Error> PageStores::save(const StoreRecord& record) {
  if (auto saved = write_file_atomically(path_of(record.id), to_text(record)); !saved) {
    return std::unexpected(make_error(Error::KERNEL, "record of a page store: " + saved.error().text()));
  }
  const std::lock_guard lock(mutex_);
  stores_[record.id].record = record;
  stores_[record.id].status.set_store_id(record.id.to_bytes());
  return {};
}

std::expected<void, Error> PageStores::check(const StoreRecord& asked, bool create, std::uint64_t free_bytes) const {
  const std::uint64_t lent = lent_bytes();
  const std::lock_guard lock(mutex_);
  if (const auto known = stores_.find(asked.id); known != stores_.end()) {
    const StoreRecord& record = known->second.record;
    if (record.vm_uuid != asked.vm_uuid || record.bytes_lent != asked.bytes_lent) {
      return bad("PrepareStore: this store is another VM's here, or of another size");
    }
    if (asked.ownership < record.ownership) {
      return std::unexpected(
          make_error(Error::STALE_OWNERSHIP, "PrepareStore: ownership " + std::to_string(asked.ownership) +
                                                 " is older than " + std::to_string(record.ownership)));
    }
    return {};
  }
  // What is here already is never refused, whatever the configuration says by now.
  if (create && asked.bytes_lent > lend_bytes_ - std::min(lend_bytes_, lent)) {
    return std::unexpected(make_error(
        Error::NO_MEMORY, "this host lends " + config::format_bytes(lend_bytes_) + " ([memory] lend in bridge.toml), " +
                              config::format_bytes(lent) +
                              " of it are promised: " + config::format_bytes(asked.bytes_lent) + " more are too much"));
  }
  if (create && asked.bytes_lent > free_bytes) {
    return std::unexpected(make_error(
        Error::NO_MEMORY, "this host has " + config::format_bytes(free_bytes) +
                              " of memory free: " + config::format_bytes(asked.bytes_lent) + " are too much"));
  }
  return {};
}

PageStores::Result PageStores::prepare(DataplaneClient& dataplane, const controlplane::v1::PrepareStore& command,
                                       std::uint64_t free_bytes) {
  auto record = record_of(command);
  if (!record) {
    return std::unexpected(record.error());
  }
  if (auto checked = check(*record, command.create(), free_bytes); !checked) {
    return std::unexpected(checked.error());
  }
  {
    const std::lock_guard lock(mutex_);
    const auto known = stores_.find(record->id);
    record->made = known != stores_.end() && known->second.record.made;
  }
  if (command.create()) {
    if (auto saved = save(*record); !saved) {
      return std::unexpected(saved.error());
    }
  }
  dataplane::v1::ToDataplane request;
  auto& prepare = *request.mutable_prepare_store();
  prepare.set_store_id(command.store_id());
  prepare.set_vm_uuid(command.vm_uuid());
  prepare.set_ownership(command.ownership());
  prepare.set_pages(command.pages());
  prepare.set_budget_bytes(command.bytes_lent());
  prepare.set_create(command.create());
  prepare.set_encryption(command.encryption());
  auto reply = dataplane.call(std::move(request));
  if (!reply) {
    return std::unexpected(reply.error().code() == Error::NO_SUCH_STORE
                               ? make_error(Error::NO_SUCH_STORE, "this host has lost what it held of VM " +
                                                                      record->vm_name + ": " + reply.error().text())
                               : reply.error());
  }
  record->made = true;
  if (auto saved = save(*record); !saved) {
    return std::unexpected(saved.error());
  }
  AgentReply answer;
  *answer.mutable_flow_prepared()->mutable_endpoint() = reply->prepare_store().endpoint();
  return answer;
}

PageStores::Result PageStores::start(DataplaneClient& dataplane, const controlplane::v1::StartStore& command) {
  dataplane::v1::ToDataplane request;
  auto& start = *request.mutable_start_store();
  start.set_store_id(command.store_id());
  *start.mutable_peer() = command.peer();
  start.set_secret(command.secret());
  const auto reply = dataplane.call(std::move(request));
  return reply ? Result(AgentReply()) : std::unexpected(reply.error());
}

PageStores::Result PageStores::drop(DataplaneClient& dataplane, const controlplane::v1::DropStore& command) {
  const auto id = Id128::from_bytes(command.store_id());
  if (!id) {
    return bad("DropStore: store_id is not 16 bytes");
  }
  dataplane::v1::ToDataplane request;
  request.mutable_drop_store()->set_store_id(command.store_id());
  const auto reply = dataplane.call(std::move(request));
  if (!reply && reply.error().code() != Error::NO_SUCH_STORE) {
    return std::unexpected(reply.error());
  }
  if (auto removed = remove_file_durably(path_of(*id)); !removed) {
    return std::unexpected(make_error(Error::KERNEL, "record of a page store: " + removed.error().text()));
  }
  const std::lock_guard lock(mutex_);
  if (const auto known = stores_.find(*id); known != stores_.end()) {
    spdlog::info("VM {}, which ran on {}: what was held of it here is freed", known->second.record.vm_name,
                 known->second.record.main_host);
    stores_.erase(known);
  }
  return AgentReply();
}

void PageStores::take(const dataplane::v1::Status* status) {
  const std::lock_guard lock(mutex_);
  strangers_.clear();
  for (auto& [id, held] : stores_) {
    held.lost = status != nullptr && held.record.made;
    held.status.set_connected(false);
    held.status.set_reason(status == nullptr ? "the data plane of this host is down"
                           : held.lost       ? "its data plane has no such store any more: was the host booted anew?"
                                             : "");
  }
  if (status == nullptr) {
    return;
  }
  for (const auto& store : status->stores()) {
    const auto id = Id128::from_bytes(store.store_id());
    const auto known = id ? stores_.find(*id) : stores_.end();
    if (known == stores_.end()) {
      strangers_.push_back(store);
      continue;
    }
    known->second.status = store;
    known->second.status.set_reason(printable(store.reason()));
    known->second.lost = false;
  }
}

std::vector<HeldStore> PageStores::held() const {
  std::vector<HeldStore> all;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, held] : stores_) {
    auto& out = all.emplace_back();
    out.set_vm_name(held.record.vm_name);
    out.set_main_host(held.record.main_host);
    out.set_bytes_lent(held.record.bytes_lent);
    out.set_lost(held.lost);
    *out.mutable_status() = held.status;
    out.mutable_status()->set_vm_uuid(held.record.vm_uuid.to_bytes());
  }
  for (const auto& status : strangers_) {
    auto& out = all.emplace_back();
    out.set_bytes_lent(status.budget_bytes());
    *out.mutable_status() = status;
  }
  return all;
}

std::uint64_t PageStores::lent_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& store : held()) {
    bytes += store.bytes_lent();
  }
  return bytes;
}

std::uint64_t PageStores::unfilled_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& store : held()) {
    bytes += store.bytes_lent() - std::min(store.bytes_lent(), store.status().resident_bytes());
  }
  return bytes;
}

}  // namespace godwit::bridge
