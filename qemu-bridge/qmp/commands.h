#pragma once
// The QMP commands that the bridge uses, each with a typed result. A reply that lacks what QEMU's schema promises is
// QmpErrorCode::kReply naming command and field. Stateless: any thread that may call QmpClient::execute().

#include <map>
#include <vector>

#include "qemu-bridge/qmp/qmp_client.h"

namespace godwit::bridge {

struct QemuVersion {
  int major = 0;
  int minor = 0;
  int micro = 0;
  std::string text;  // "7.2.22 (Debian 1:7.2+dfsg-7)"
};

/// One memory backend, as query-memdev says.
struct MemdevInfo {
  std::string id;    // empty: QEMU names no object, e.g. -m without a backend
  std::string type;  // QOM type: "memory-backend-file"
  std::uint64_t bytes = 0;
  bool share = false;
  std::string mem_path;  // "" for ram and memfd
};

struct MigrationInfo {
  std::string status;  // "none" where QEMU gives no status
  std::string error;
  std::vector<std::string> blocked_reasons;
};

/// One object of QEMU's device tree.
struct QomDevice {
  std::string path;
  std::string type;
};

struct CharacterDevice {
  std::string label;
  std::string file;
};

struct MachineType {
  std::string name;
  std::string alias;
};

std::expected<QemuVersion, QmpError> query_version(QmpClient& qmp);
/// "running", "paused", "postmigrate", "inmigrate", ...
std::expected<std::string, QmpError> query_status(QmpClient& qmp,
                                                  std::chrono::milliseconds time = QmpClient::kReplyTime);
std::expected<std::string, QmpError> query_uuid(QmpClient& qmp);
std::expected<std::string, QmpError> query_name(QmpClient& qmp);
std::expected<std::vector<MemdevInfo>, QmpError> query_memdev(QmpClient& qmp);
std::expected<std::uint64_t, QmpError> query_base_memory_bytes(QmpClient& qmp);
std::expected<std::uint32_t, QmpError> query_cpu_count(QmpClient& qmp);
std::expected<std::vector<MachineType>, QmpError> query_machines(QmpClient& qmp);
/// The machine's versioned type ("pc-i440fx-7.2"), whatever alias it was started with.
std::expected<std::string, QmpError> query_machine_type(QmpClient& qmp);
std::expected<std::vector<CharacterDevice>, QmpError> query_chardev(QmpClient& qmp);
/// Host side of every block device: file name by device.
std::expected<std::vector<std::string>, QmpError> query_block_files(QmpClient& qmp);
/// Every device under /machine, user-made and built in.
std::expected<std::vector<QomDevice>, QmpError> list_devices(QmpClient& qmp);
std::expected<Json, QmpError> qom_get(QmpClient& qmp, const std::string& path, const std::string& property);

std::expected<MigrationInfo, QmpError> query_migrate(QmpClient& qmp);
std::expected<std::map<std::string, bool>, QmpError> query_migrate_capabilities(QmpClient& qmp);
std::expected<void, QmpError> migrate_set_capabilities(QmpClient& qmp, const std::map<std::string, bool>& capabilities);
/// No bandwidth limit of QEMU's own, and a downtime limit for what QEMU itself sends of non-shared RAM.
std::expected<void, QmpError> migrate_set_parameters(QmpClient& qmp, std::uint64_t downtime_limit_ms);
/// Hands QEMU a descriptor under a name that "fd:NAME" then stands for.
std::expected<void, QmpError> getfd(QmpClient& qmp, const std::string& name, int fd);
std::expected<void, QmpError> closefd(QmpClient& qmp, const std::string& name);
std::expected<void, QmpError> migrate(QmpClient& qmp, const std::string& uri);
std::expected<void, QmpError> migrate_incoming(QmpClient& qmp, const std::string& uri);
std::expected<void, QmpError> migrate_cancel(QmpClient& qmp);
/// One whose thread waits for a page answers once that is there; it does what it was told all the same.
std::expected<void, QmpError> stop(QmpClient& qmp, std::chrono::milliseconds time = QmpClient::kReplyTime);
std::expected<void, QmpError> cont(QmpClient& qmp, std::chrono::milliseconds time = QmpClient::kReplyTime);
std::expected<void, QmpError> quit(QmpClient& qmp);

}  // namespace godwit::bridge
