#include "qemu-bridge/agent/journal.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "base/check.h"
#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/qmp/json.h"

namespace godwit::bridge {
namespace {

constexpr int kVersion = 1;
constexpr std::size_t kFaultDescriptorsMax = 64;
constexpr std::size_t kBackendsMax = 64;
constexpr std::size_t kSubsMax = 4096;
constexpr std::uint64_t kPagesMax = 1ULL << 52;
constexpr std::array<std::string_view, 6> kPhaseNames{"preparing", "transferring", "switching",
                                                      "committed", "aborted",      "pulling"};

std::expected<MigrationRecord, std::string> parse_migration(const Json& json) {
  const auto id = Id128::parse(json_string(json, "id").value_or(""));
  const auto role = json_string(json, "role");
  const auto phase = std::ranges::find(kPhaseNames, json_string(json, "phase").value_or(""));
  const auto ownership = json_uint(json, "ownership_after");
  const std::uint64_t epoch_base = json_uint(json, "epoch_base").value_or(0);
  const auto place = phase - kPhaseNames.begin();
  if (!id || !role || (*role != "source" && *role != "destination") || phase == kPhaseNames.end() || !ownership ||
      epoch_base > UINT32_MAX || (*role == "destination" && place > 1 && *phase != "pulling")) {
    return std::unexpected("'migration' is not valid");
  }
  const Json* const begun = json_member(json, "switch_begun");
  if (begun != nullptr && !begun->is_boolean()) {
    return std::unexpected("'migration' is not valid");
  }
  const auto phase_reached = static_cast<MigrationPhase>(place);
  return MigrationRecord{*id,
                         *role == "source" ? MigrationRole::kSource : MigrationRole::kDestination,
                         phase_reached,
                         *ownership,
                         json_bool(json, "may_pull").value_or(false),  // absent before there was post-copy
                         static_cast<std::uint32_t>(epoch_base),
                         begun != nullptr ? begun->get<bool>() : phase_reached >= MigrationPhase::kSwitching,
                         json_bool(json, "keeps_stores").value_or(false),  // absent before the main part could move
                         json_bool(json, "continued").value_or(true)};     // absent when it came before kPulling
}

/// Absent where one userfaultfd does for all pages.
std::optional<std::vector<FaultDescriptor>> parse_fault_descriptors(const Json* json) {
  std::vector<FaultDescriptor> descriptors;
  if (json == nullptr) {
    return descriptors;
  }
  if (!json->is_array() || json->size() > kFaultDescriptorsMax) {
    return std::nullopt;
  }
  std::uint64_t next = 0;
  for (const Json& entry : *json) {
    const auto number = json_int(entry, "in_qemu");
    const auto first = json_uint(entry, "first_page");
    const auto pages = json_uint(entry, "pages");
    if (!number || *number < 0 || *number > INT32_MAX || first != next || !pages || *pages == 0 || *pages > kPagesMax) {
      return std::nullopt;
    }
    descriptors.push_back({static_cast<int>(*number), *first, *pages});
    next = *first + *pages;
  }
  return descriptors;
}

std::optional<std::map<std::string, std::string>> parse_ram_files(const Json* json) {
  if (json == nullptr || !json->is_object()) {
    return std::nullopt;
  }
  std::map<std::string, std::string> files;
  for (const auto& [region, path] : json->items()) {
    if (!path.is_string() || !path.get_ref<const std::string&>().starts_with('/')) {
      return std::nullopt;
    }
    files.emplace(region, path.get<std::string>());
  }
  return files;
}

/// Absent before they were noted.
std::optional<std::vector<MemoryBackend>> parse_backends(const Json* json) {
  std::vector<MemoryBackend> backends;
  if (json == nullptr) {
    return backends;
  }
  if (!json->is_array() || json->size() > kBackendsMax) {
    return std::nullopt;
  }
  for (const Json& entry : *json) {
    const auto id = json_string(entry, "id");
    const auto bytes = json_uint(entry, "bytes");
    const auto share = json_bool(entry, "share");
    const auto type = json_string(entry, "type");
    const auto path = json_string(entry, "mem_path");
    if (!id || !bytes || !share || !type || !path) {
      return std::nullopt;
    }
    backends.push_back({.id = *id, .bytes = *bytes, .share = *share, .type = *type, .mem_path = *path});
  }
  return backends;
}

/// False: it is there, and not valid.
bool parse_split(const Json& json, VmRecord& record) {
  const Json* const split = json_member(json, "split");
  const auto evictable = json_bool(json, "evictable");
  const auto pin_in_qemu = json_bool(json, "pin_in_qemu");
  const auto paused = json_bool(json, "paused_for_pages");
  // Absent before VMs could be split, or paused.
  if ((!evictable && json.contains("evictable")) || (!pin_in_qemu && json.contains("pin_in_qemu")) ||
      (!paused && json.contains("paused_for_pages"))) {
    return false;
  }
  record.evictable = evictable.value_or(false);
  record.pin_in_qemu = pin_in_qemu.value_or(false);
  record.paused_for_pages = paused.value_or(false);
  if (split == nullptr) {
    return true;
  }
  const auto budget = json_uint(*split, "budget_bytes");
  const auto gather = json_bool(*split, "gather");
  const auto gathered = json_bool(*split, "gathered");
  const Json* const subs = json_member(*split, "subs");
  if (!budget || !gather || !gathered || subs == nullptr || !subs->is_array() || subs->size() > kSubsMax) {
    return false;
  }
  record.split = SplitRecord{.budget_bytes = *budget, .subs = {}, .gather = *gather, .gathered = *gathered};
  for (const Json& entry : *subs) {
    const auto id = Id128::parse(json_string(entry, "store_id").value_or(""));
    const auto number = json_uint(entry, "number");
    const auto host = json_string(entry, "host");
    const auto drain = json_bool(entry, "drain");  // absent before stores could be drained
    if (!id || !number || *number >= kSubsMax || !host || (!drain && entry.contains("drain"))) {
      return false;
    }
    record.split->subs.push_back({*id, static_cast<std::uint32_t>(*number), *host, drain.value_or(false)});
  }
  return true;
}

}  // namespace

std::string_view name_of(MigrationPhase phase) { return kPhaseNames.at(static_cast<std::size_t>(phase)); }

std::string to_text(const VmRecord& record) {
  std::string definition;
  const auto status = google::protobuf::util::MessageToJsonString(to_proto(record.definition), &definition);
  GW_ASSERT(status.ok());
  Json json = {{"version", kVersion},
               {"definition", parse_json(definition).value_or(Json())},
               {"image_id", record.image_id.text()},
               {"ownership", record.ownership},
               {"epoch", record.epoch},
               {"qmp_path", record.qmp_path},
               {"pid", record.process.pid},
               {"start_ticks", record.process.start_ticks},
               {"ours", record.ours},
               {"userfaultfd_in_qemu", record.userfaultfd_in_qemu},
               {"userfaultfd_events", record.userfaultfd_events},
               {"tracker", static_cast<int>(record.tracker)},
               {"machine_type", record.machine_type},
               {"has_balloon", record.has_balloon},
               {"ram_files", record.ram_files}};
  if (record.migration) {
    json["migration"] = {{"id", record.migration->id.text()},
                         {"role", record.migration->role == MigrationRole::kSource ? "source" : "destination"},
                         {"phase", name_of(record.migration->phase)},
                         {"ownership_after", record.migration->ownership_after},
                         {"switch_begun", record.migration->switch_begun},
                         {"may_pull", record.migration->may_pull},
                         {"keeps_stores", record.migration->keeps_stores},
                         {"continued", record.migration->continued},
                         {"epoch_base", record.migration->epoch_base}};
  }
  for (const auto& descriptor : record.fault_descriptors) {
    json["fault_descriptors"].push_back(
        {{"in_qemu", descriptor.in_qemu}, {"first_page", descriptor.first_page}, {"pages", descriptor.pages}});
  }
  for (const auto& backend : record.backends) {
    json["backends"].push_back({{"id", backend.id},
                                {"bytes", backend.bytes},
                                {"share", backend.share},
                                {"type", backend.type},
                                {"mem_path", backend.mem_path}});
  }
  json["evictable"] = record.evictable;
  json["pin_in_qemu"] = record.pin_in_qemu;
  json["paused_for_pages"] = record.paused_for_pages;
  if (record.split) {
    Json subs = Json::array();
    for (const auto& sub : record.split->subs) {
      subs.push_back(
          {{"store_id", sub.store_id.text()}, {"number", sub.number}, {"host", sub.host}, {"drain", sub.drain}});
    }
    json["split"] = {{"budget_bytes", record.split->budget_bytes},
                     {"subs", std::move(subs)},
                     {"gather", record.split->gather},
                     {"gathered", record.split->gathered}};
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::expected<VmRecord, std::string> parse_record(const std::string& text) {
  const auto json = parse_json(text);
  if (!json || json_int(*json, "version") != kVersion) {
    return std::unexpected("not a journal record of version " + std::to_string(kVersion));
  }
  const Json* definition_json = json_member(*json, "definition");
  controlplane::v1::VmDefinition proto;
  if (definition_json == nullptr ||
      !google::protobuf::util::JsonStringToMessage(dump_json(*definition_json), &proto).ok()) {
    return std::unexpected("'definition' is not valid");
  }
  auto definition = definition_of(proto);
  if (!definition) {
    return std::unexpected(definition.error());
  }
  const auto image_id = Id128::parse(json_string(*json, "image_id").value_or(""));
  const auto ownership = json_uint(*json, "ownership");
  const auto epoch = json_uint(*json, "epoch");
  const auto qmp_path = json_string(*json, "qmp_path");
  const auto pid = json_int(*json, "pid");
  const auto start_ticks = json_uint(*json, "start_ticks");
  const auto ours = json_bool(*json, "ours");
  const auto userfaultfd = json_int(*json, "userfaultfd_in_qemu");
  const auto events = json_bool(*json, "userfaultfd_events");
  const auto tracker = json_int(*json, "tracker");
  const auto machine_type = json_string(*json, "machine_type");
  const auto has_balloon = json_bool(*json, "has_balloon");
  auto ram_files = parse_ram_files(json_member(*json, "ram_files"));
  auto fault_descriptors = parse_fault_descriptors(json_member(*json, "fault_descriptors"));
  auto backends = parse_backends(json_member(*json, "backends"));
  if (!image_id || !ownership || !epoch || *epoch > UINT32_MAX || !qmp_path || !pid || *pid < -1 || *pid > INT32_MAX ||
      !start_ticks || !ours || !userfaultfd || *userfaultfd < -1 || *userfaultfd > INT32_MAX || !events || !tracker ||
      *tracker < 0 || *tracker > dataplane::v1::Tracker_MAX || !machine_type || !has_balloon || !ram_files ||
      !fault_descriptors || !backends) {
    return std::unexpected("a field is missing or impossible");
  }
  VmRecord record{std::move(*definition),
                  *image_id,
                  *ownership,
                  static_cast<std::uint32_t>(*epoch),
                  *qmp_path,
                  {static_cast<pid_t>(*pid), *start_ticks},
                  *ours,
                  static_cast<int>(*userfaultfd),
                  *events,
                  static_cast<dataplane::v1::Tracker>(*tracker),
                  *machine_type,
                  *has_balloon,
                  std::move(*ram_files),
                  std::nullopt,
                  std::move(*fault_descriptors)};
  record.backends = std::move(*backends);
  if (const Json* migration = json_member(*json, "migration")) {
    auto parsed = parse_migration(*migration);
    if (!parsed) {
      return std::unexpected(parsed.error());
    }
    record.migration = *parsed;
  }
  if (!parse_split(*json, record)) {
    return std::unexpected("'split' is not valid");
  }
  return record;
}

std::expected<Journal::Loaded, FileError> Journal::load() {
  std::error_code error;
  std::filesystem::create_directories(dir_, error);
  if (error) {
    return std::unexpected(FileError{FileError::Step::kOpen, error.value(), dir_});
  }
  remove_temporaries(dir_);
  Loaded loaded;
  std::filesystem::directory_iterator entries(dir_, error);
  if (error) {
    return std::unexpected(FileError{FileError::Step::kOpen, error.value(), dir_});
  }
  for (const auto& entry : entries) {
    if (entry.path().extension() != ".json") {
      continue;
    }
    const auto text = read_file(entry.path());
    auto record = text ? parse_record(*text) : std::unexpected(text.error().text());
    if (record && path_of(record->definition.uuid) == entry.path()) {
      loaded.records.push_back(std::move(*record));
      continue;
    }
    const std::string reason = record ? "its uuid is not that of its file name" : record.error();
    std::filesystem::rename(entry.path(), entry.path().string() + ".broken", error);
    loaded.problems.push_back("journal " + entry.path().string() + ": " + reason +
                              "; kept as .broken, its QEMU is left as it is");
  }
  return loaded;
}

std::expected<void, FileError> Journal::save(const VmRecord& record) const {
  return write_file_atomically(path_of(record.definition.uuid), to_text(record));
}

std::expected<void, FileError> Journal::remove(const Id128& uuid) const { return remove_file_durably(path_of(uuid)); }

}  // namespace godwit::bridge
