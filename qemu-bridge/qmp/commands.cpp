#include "qemu-bridge/qmp/commands.h"

#include <deque>

namespace godwit::bridge {
namespace {

constexpr std::size_t kDevicesMax = 20'000;

std::unexpected<QmpError> bad_reply(const std::string& command, const std::string& field) {
  return std::unexpected(
      QmpError{QmpErrorCode::kReply, "QEMU's reply to " + command + " has no valid '" + field + "'"});
}

std::expected<void, QmpError> run(QmpClient& qmp, const std::string& command, Json arguments = Json::object(),
                                  std::chrono::milliseconds time = QmpClient::kReplyTime) {
  auto reply = qmp.execute(command, std::move(arguments), time);
  if (!reply) {
    return std::unexpected(reply.error());
  }
  return {};
}

std::expected<std::string, QmpError> string_of(QmpClient& qmp, const std::string& command, const char* field,
                                               std::chrono::milliseconds time = QmpClient::kReplyTime) {
  auto reply = qmp.execute(command, Json::object(), time);
  if (!reply) {
    return std::unexpected(reply.error());
  }
  auto text = json_string(*reply, field);
  if (!text) {
    return bad_reply(command, field);
  }
  return *text;
}

std::expected<Json, QmpError> array_of(QmpClient& qmp, const std::string& command) {
  auto reply = qmp.execute(command);
  if (reply && !reply->is_array()) {
    return bad_reply(command, "array");
  }
  return reply;
}

std::expected<Json, QmpError> qom_list(QmpClient& qmp, const std::string& path) {
  auto reply = qmp.execute("qom-list", {{"path", path}});
  if (reply && !reply->is_array()) {
    return bad_reply("qom-list", "array");
  }
  return reply;
}

/// The T of a property type "child<T>", empty for every other.
std::string child_type(const std::string& property_type) {
  constexpr std::string_view kOpen = "child<";
  if (!property_type.starts_with(kOpen) || !property_type.ends_with('>')) {
    return {};
  }
  return property_type.substr(kOpen.size(), property_type.size() - kOpen.size() - 1);
}

}  // namespace

std::expected<QemuVersion, QmpError> query_version(QmpClient& qmp) {
  auto reply = qmp.execute("query-version");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  const Json* qemu = json_member(*reply, "qemu");
  const auto major = qemu == nullptr ? std::nullopt : json_int(*qemu, "major");
  const auto minor = qemu == nullptr ? std::nullopt : json_int(*qemu, "minor");
  const auto micro = qemu == nullptr ? std::nullopt : json_int(*qemu, "micro");
  if (!major || !minor || !micro || *major < 0 || *major > 999 || *minor < 0 || *minor > 999 || *micro < 0 ||
      *micro > 999) {
    return bad_reply("query-version", "qemu");
  }
  QemuVersion version{static_cast<int>(*major), static_cast<int>(*minor), static_cast<int>(*micro), {}};
  version.text = std::to_string(*major) + "." + std::to_string(*minor) + "." + std::to_string(*micro);
  if (auto package = json_string(*reply, "package"); package && !package->empty()) {
    version.text += " (" + *package + ")";
  }
  return version;
}

std::expected<std::string, QmpError> query_status(QmpClient& qmp, std::chrono::milliseconds time) {
  return string_of(qmp, "query-status", "status", time);
}

std::expected<std::string, QmpError> query_uuid(QmpClient& qmp) { return string_of(qmp, "query-uuid", "UUID"); }

std::expected<std::string, QmpError> query_name(QmpClient& qmp) {
  auto reply = qmp.execute("query-name");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  return json_string(*reply, "name").value_or("");  // absent without -name
}

std::expected<std::vector<MemdevInfo>, QmpError> query_memdev(QmpClient& qmp) {
  auto reply = array_of(qmp, "query-memdev");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  std::vector<MemdevInfo> backends;
  for (const Json& entry : *reply) {
    MemdevInfo backend;
    const auto bytes = json_uint(entry, "size");
    if (!bytes) {
      return bad_reply("query-memdev", "size");
    }
    backend.bytes = *bytes;
    backend.id = json_string(entry, "id").value_or("");
    backend.share = json_bool(entry, "share").value_or(false);
    if (!backend.id.empty()) {
      const std::string path = "/objects/" + backend.id;
      // Machine-made backends ("pc.ram" of plain -m) are no objects of /objects: they keep an empty type.
      if (auto type = qom_get(qmp, path, "type"); type && type->is_string()) {
        backend.type = type->get<std::string>();
      } else if (!type && type.error().code != QmpErrorCode::kCommand) {
        return std::unexpected(type.error());
      }
      if (backend.type == "memory-backend-file") {
        if (auto file = qom_get(qmp, path, "mem-path"); file && file->is_string()) {
          backend.mem_path = file->get<std::string>();
        }
      }
    }
    backends.push_back(std::move(backend));
  }
  return backends;
}

std::expected<std::uint64_t, QmpError> query_base_memory_bytes(QmpClient& qmp) {
  auto reply = qmp.execute("query-memory-size-summary");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  const auto base = json_uint(*reply, "base-memory");
  if (!base) {
    return bad_reply("query-memory-size-summary", "base-memory");
  }
  const std::uint64_t plugged = json_uint(*reply, "plugged-memory").value_or(0);
  return *base + std::min(plugged, UINT64_MAX - *base);
}

std::expected<std::uint32_t, QmpError> query_cpu_count(QmpClient& qmp) {
  auto reply = array_of(qmp, "query-cpus-fast");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  return static_cast<std::uint32_t>(reply->size());
}

std::expected<std::vector<MachineType>, QmpError> query_machines(QmpClient& qmp) {
  auto reply = array_of(qmp, "query-machines");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  std::vector<MachineType> machines;
  for (const Json& entry : *reply) {
    auto name = json_string(entry, "name");
    if (!name) {
      return bad_reply("query-machines", "name");
    }
    machines.push_back({std::move(*name), json_string(entry, "alias").value_or("")});
  }
  return machines;
}

std::expected<std::string, QmpError> query_machine_type(QmpClient& qmp) {
  auto type = qom_get(qmp, "/machine", "type");
  if (!type) {
    return std::unexpected(type.error());
  }
  constexpr std::string_view kSuffix = "-machine";
  if (!type->is_string()) {
    return bad_reply("qom-get /machine", "type");
  }
  std::string name = type->get<std::string>();
  if (!name.ends_with(kSuffix)) {
    return bad_reply("qom-get /machine", "type");
  }
  name.resize(name.size() - kSuffix.size());
  return name;
}

std::expected<std::vector<CharacterDevice>, QmpError> query_chardev(QmpClient& qmp) {
  auto reply = array_of(qmp, "query-chardev");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  std::vector<CharacterDevice> devices;
  for (const Json& entry : *reply) {
    devices.push_back({json_string(entry, "label").value_or(""), json_string(entry, "filename").value_or("")});
  }
  return devices;
}

std::expected<std::vector<std::string>, QmpError> query_block_files(QmpClient& qmp) {
  auto reply = array_of(qmp, "query-block");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  std::vector<std::string> files;
  for (const Json& entry : *reply) {
    if (const Json* inserted = json_member(entry, "inserted")) {
      if (auto file = json_string(*inserted, "file")) {
        files.push_back(std::move(*file));
      }
    }
  }
  return files;
}

std::expected<std::vector<QomDevice>, QmpError> list_devices(QmpClient& qmp) {
  std::vector<QomDevice> devices;
  // Devices hang below these three; what is below a device (its buses) repeats them as links.
  std::deque<std::string> containers{"/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"};
  while (!containers.empty()) {
    const std::string path = std::move(containers.front());
    containers.pop_front();
    auto children = qom_list(qmp, path);
    if (!children) {
      if (children.error().code == QmpErrorCode::kCommand) {
        continue;  // -M none has none of them
      }
      return std::unexpected(children.error());
    }
    for (const Json& child : *children) {
      const std::string type = child_type(json_string(child, "type").value_or(""));
      const std::string name = json_string(child, "name").value_or("");
      if (type.empty() || name.empty()) {
        continue;
      }
      if (devices.size() == kDevicesMax) {
        return bad_reply("qom-list", "number of devices");
      }
      devices.push_back({path + "/" + name, type});
    }
  }
  return devices;
}

std::expected<Json, QmpError> qom_get(QmpClient& qmp, const std::string& path, const std::string& property) {
  return qmp.execute("qom-get", {{"path", path}, {"property", property}});
}

std::expected<MigrationInfo, QmpError> query_migrate(QmpClient& qmp) {
  auto reply = qmp.execute("query-migrate");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  MigrationInfo info;
  info.status = json_string(*reply, "status").value_or("none");
  info.error = json_string(*reply, "error-desc").value_or("");
  if (const Json* reasons = json_member(*reply, "blocked-reasons"); reasons != nullptr && reasons->is_array()) {
    for (const Json& reason : *reasons) {
      info.blocked_reasons.push_back(reason.is_string() ? reason.get<std::string>() : std::string("unnamed"));
    }
  }
  return info;
}

std::expected<std::map<std::string, bool>, QmpError> query_migrate_capabilities(QmpClient& qmp) {
  auto reply = array_of(qmp, "query-migrate-capabilities");
  if (!reply) {
    return std::unexpected(reply.error());
  }
  std::map<std::string, bool> capabilities;
  for (const Json& entry : *reply) {
    auto name = json_string(entry, "capability");
    auto state = json_bool(entry, "state");
    if (!name || !state) {
      return bad_reply("query-migrate-capabilities", "capability");
    }
    capabilities.emplace(std::move(*name), *state);
  }
  return capabilities;
}

std::expected<void, QmpError> migrate_set_capabilities(QmpClient& qmp,
                                                       const std::map<std::string, bool>& capabilities) {
  Json list = Json::array();
  for (const auto& [name, state] : capabilities) {
    list.push_back({{"capability", name}, {"state", state}});
  }
  return run(qmp, "migrate-set-capabilities", {{"capabilities", std::move(list)}});
}

std::expected<void, QmpError> migrate_set_parameters(QmpClient& qmp, std::uint64_t downtime_limit_ms) {
  constexpr std::uint64_t kUnlimitedBytesPerS = std::uint64_t{1} << 40;
  return run(qmp, "migrate-set-parameters",
             {{"max-bandwidth", kUnlimitedBytesPerS}, {"downtime-limit", downtime_limit_ms}});
}

std::expected<void, QmpError> getfd(QmpClient& qmp, const std::string& name, int fd) {
  auto reply = qmp.execute("getfd", {{"fdname", name}}, QmpClient::kReplyTime, fd);
  if (!reply) {
    return std::unexpected(reply.error());
  }
  return {};
}

std::expected<void, QmpError> closefd(QmpClient& qmp, const std::string& name) {
  return run(qmp, "closefd", {{"fdname", name}});
}

std::expected<void, QmpError> migrate(QmpClient& qmp, const std::string& uri) {
  return run(qmp, "migrate", {{"uri", uri}});
}

std::expected<void, QmpError> migrate_incoming(QmpClient& qmp, const std::string& uri) {
  return run(qmp, "migrate-incoming", {{"uri", uri}});
}

std::expected<void, QmpError> migrate_cancel(QmpClient& qmp) { return run(qmp, "migrate_cancel"); }

std::expected<void, QmpError> stop(QmpClient& qmp, std::chrono::milliseconds time) {
  return run(qmp, "stop", Json::object(), time);
}

std::expected<void, QmpError> cont(QmpClient& qmp, std::chrono::milliseconds time) {
  return run(qmp, "cont", Json::object(), time);
}

std::expected<void, QmpError> quit(QmpClient& qmp) { return run(qmp, "quit"); }

}  // namespace godwit::bridge
