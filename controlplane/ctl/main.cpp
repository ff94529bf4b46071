// godwitctl: what a person, or a script with --json, asks of the control plane. Exit status: 0 done (migrate, watch:
// only when COMMITTED), 1 not done, 2 the command line or a file is wrong; one line on standard error says why.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>

#include "base/uuid.h"
#include "config/ctl_config.h"
#include "config/units.h"
#include "controlplane/ctl/client.h"
#include "controlplane/ctl/format.h"
#include "controlplane/ctl/plan_input.h"
#include "controlplane/ctl/watching.h"

namespace godwit::ctl {
namespace {

constexpr int kNotDone = 1;
constexpr int kBadUsage = 2;

struct Options {
  std::optional<std::string> server;
  bool json = false;
  std::string file, host, vm, qmp, id, tracker = "auto";
  bool active_only = false;
  bool detach = false;
  // of migrate; what is given overrides the plan's file
  std::optional<std::string> destination, plan_vm, downtime_limit, bandwidth_limit, time_limit, mode, reuse, verify,
      on_no_convergence, encryption;
  std::optional<std::uint32_t> rounds_max;
};

int complain(const std::string& text, int status = kNotDone) {
  fmt::print(stderr, "godwitctl: {}\n", text);
  return status;
}

std::int64_t unix_us_now() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

template <typename List>
Json json_list(const List& list) {
  Json array = Json::array();
  for (const auto& each : list) {
    array.push_back(to_json(each));
  }
  return array;
}

/// Prints a list either way, or the error.
template <typename Response, typename Table, typename List>
int show(const Client::Result<Response>& response, bool json, Table table_of, List list_of) {
  if (!response) {
    return complain(response.error());
  }
  fmt::print("{}{}", json ? json_list(list_of(*response)).dump(2) : table_of(*response), json ? "\n" : "");
  return 0;
}

int hosts(Client& client, const Options& options) {
  return show(
      client.list_hosts(), options.json, [](const auto& r) { return hosts_table(r, unix_us_now()); },
      [](const auto& r) -> const auto& { return r.hosts(); });
}

int vms(Client& client, const Options& options) {
  return show(
      client.list_vms(), options.json, vms_table, [](const auto& r) -> const auto& { return r.vms(); });
}

int images(Client& client, const Options& options) {
  return show(
      client.list_images(), options.json, images_table, [](const auto& r) -> const auto& { return r.images(); });
}

int migrations(Client& client, const Options& options) {
  return show(
      client.list_migrations(options.active_only), options.json, migrations_table,
      [](const auto& r) -> const auto& { return r.migrations(); });
}

int drop_image(Client& client, const Options& options) {
  api::DropImageRequest request;
  request.set_host(options.host);
  request.set_vm(options.vm);
  if (const auto done = client.drop_image(request); !done) {
    return complain(done.error());
  }
  fmt::print("{}", options.json ? Json{{"dropped", true}}.dump() + "\n"
                                : fmt::format("{} keeps no image of {} any more\n", options.host, options.vm));
  return 0;
}

dpapi::Tracker tracker_of(const std::string& name) {
  static const std::map<std::string, dpapi::Tracker> kTrackers{
      {"auto", dpapi::TRACKER_AUTO},
      {"pagemap-scan", dpapi::TRACKER_PAGEMAP_SCAN},
      {"write-protect-events", dpapi::TRACKER_WRITE_PROTECT_EVENTS},
      {"hashes", dpapi::TRACKER_HASHES}};
  return kTrackers.at(name);  // checked by the option
}

int print_vm(const api::Vm& vm, const Options& options, const char* what) {
  if (options.json) {
    fmt::print("{}\n", to_json(vm).dump(2));
  } else {
    fmt::print("VM {} {} on {}, tracked by {}\n", vm.name(), what, vm.host(), tracker_text(vm.tracker()));
  }
  return 0;
}

int start(Client& client, const Options& options) {
  const auto definition = config::load_vm_definition(options.file);
  if (!definition) {
    config::print_diagnostics(definition.error());
    return kBadUsage;
  }
  api::StartVmRequest request;
  request.set_host(options.host);
  *request.mutable_definition() = to_api(*definition);
  request.set_tracker(tracker_of(options.tracker));
  const auto started = client.start_vm(request);
  return started ? print_vm(started->vm(), options, "started") : complain(started.error());
}

int attach(Client& client, const Options& options) {
  const auto definition = config::load_vm_definition(options.file);
  if (!definition) {
    config::print_diagnostics(definition.error());
    return kBadUsage;
  }
  api::AttachVmRequest request;
  request.set_host(options.host);
  *request.mutable_definition() = to_api(*definition);
  request.set_qmp_socket(options.qmp);
  request.set_tracker(tracker_of(options.tracker));
  const auto attached = client.attach_vm(request);
  return attached ? print_vm(attached->vm(), options, "attached") : complain(attached.error());
}

int stop(Client& client, const Options& options) {
  api::StopVmRequest request;
  request.set_vm(options.vm);
  if (const auto done = client.stop_vm(request); !done) {
    return complain(done.error());
  }
  fmt::print("{}", options.json ? Json{{"stopped", true}}.dump() + "\n" : fmt::format("VM {} stopped\n", options.vm));
  return 0;
}

/// Parses one flag into the plan; says which is wrong.
template <typename Parsed, typename Set>
bool apply(const std::optional<std::string>& value, const char* flag, Parsed (*parse)(std::string_view), Set set) {
  if (!value) {
    return true;
  }
  const auto parsed = parse(*value);
  if (!parsed) {
    complain(fmt::format("{} {}: {}", flag, *value, parsed.error()));
    return false;
  }
  set(*parsed);
  return true;
}

template <typename Enum>
void apply(const std::optional<std::string>& value, const std::map<std::string, Enum>& names, Enum& target) {
  if (value) {
    target = names.at(*value);  // checked by the option
  }
}

const std::map<std::string, config::Mode> kModes{
    {"precopy", config::Mode::kPrecopy}, {"postcopy", config::Mode::kPostcopy}, {"hybrid", config::Mode::kHybrid}};
const std::map<std::string, config::Reuse> kReuses{
    {"auto", config::Reuse::kAuto}, {"never", config::Reuse::kNever}, {"require", config::Reuse::kRequire}};
const std::map<std::string, config::Verify> kVerifies{
    {"sent", config::Verify::kSent}, {"off", config::Verify::kOff}, {"full", config::Verify::kFull}};
const std::map<std::string, config::OnNoConvergence> kOnNoConvergences{
    {"abort", config::OnNoConvergence::kAbort},
    {"postcopy", config::OnNoConvergence::kPostcopy},
    {"stop-anyway", config::OnNoConvergence::kStopAnyway}};

const std::map<std::string, config::Encryption> kEncryptions{{"aes-128-gcm", config::Encryption::kAes128Gcm},
                                                             {"aes-256-gcm", config::Encryption::kAes256Gcm},
                                                             {"none", config::Encryption::kNone}};

std::optional<config::MigrationPlan> plan_of(const Options& options) {
  config::MigrationPlan plan;
  if (!options.file.empty()) {
    auto loaded = config::load_migration_plan(options.file);
    if (!loaded) {
      config::print_diagnostics(loaded.error());
      return std::nullopt;
    }
    plan = std::move(*loaded);
  }
  plan.vm = options.plan_vm.value_or(plan.vm);
  plan.destination = options.destination.value_or(plan.destination);
  if (plan.vm.empty() || plan.destination.empty()) {
    complain("migrate needs a VM and a destination: --vm and --to, or a plan (-f)");
    return std::nullopt;
  }
  apply(options.mode, kModes, plan.mode);
  apply(options.reuse, kReuses, plan.reuse);
  apply(options.verify, kVerifies, plan.verify);
  apply(options.on_no_convergence, kOnNoConvergences, plan.on_no_convergence);
  apply(options.encryption, kEncryptions, plan.encryption);
  plan.rounds_max = options.rounds_max.value_or(plan.rounds_max);
  const bool parsed = apply(options.downtime_limit, "--downtime-limit", config::parse_duration,
                            [&](Duration limit) { plan.downtime_limit = limit; }) &&
                      apply(options.time_limit, "--time-limit", config::parse_duration,
                            [&](Duration limit) { plan.time_limit = limit; }) &&
                      apply(options.bandwidth_limit, "--bandwidth-limit", config::parse_rate_bps,
                            [&](std::uint64_t rate_bps) { plan.bandwidth_limit_bps = rate_bps; });
  return parsed ? std::optional(plan) : std::nullopt;
}

int migrate(Client& client, const Options& options) {
  const auto plan = plan_of(options);
  if (!plan) {
    return kBadUsage;
  }
  api::MigrateRequest request;
  *request.mutable_plan() = to_api(*plan);
  const auto begun = client.migrate(request);
  if (!begun) {
    return complain(begun.error());
  }
  const std::string id = id_text(begun->migration_id());
  if (options.detach) {
    fmt::print("{}\n", options.json ? Json{{"id", id}}.dump() : id);
    return 0;
  }
  return watch_to_end(client, begun->migration_id(), options.json ? WatchOutput::kJsonLast : WatchOutput::kPeople);
}

int watch(Client& client, const Options& options) {
  const auto id = Id128::parse(options.id);
  if (!id) {
    return complain(fmt::format("\"{}\" is no migration id (godwitctl migrations lists them)", options.id), kBadUsage);
  }
  return watch_to_end(client, id->to_bytes(), options.json ? WatchOutput::kJsonEach : WatchOutput::kPeople);
}

int cancel(Client& client, const Options& options) {
  const auto id = Id128::parse(options.id);
  if (!id) {
    return complain(fmt::format("\"{}\" is no migration id (godwitctl migrations lists them)", options.id), kBadUsage);
  }
  if (const auto done = client.cancel_migration(id->to_bytes()); !done) {
    return complain(done.error());
  }
  fmt::print("{}\n", options.json ? Json{{"cancelled", true}}.dump() : "cancelled: the VM stays where it was");
  return 0;
}

template <typename Enum>
CLI::Validator one_of(const std::map<std::string, Enum>& names) {
  std::vector<std::string> keys;
  for (const auto& [name, value] : names) {
    keys.push_back(name);
  }
  return CLI::IsMember(keys);
}

using Command = int (*)(Client&, const Options&);
using AddCommand = std::function<CLI::App*(CLI::App&, const char*, const char*, Command)>;

void add_vm_commands(CLI::App& app, Options& options, const AddCommand& add) {
  const CLI::IsMember trackers({"auto", "pagemap-scan", "write-protect-events", "hashes"});
  auto* starting = add(app, "start", "start a VM from its definition", start);
  auto* attaching = add(app, "attach", "adopt a VM whose QEMU runs already", attach);
  for (auto* command : {starting, attaching}) {
    command->add_option("-f,--file", options.file, "the VM's definition (TOML)")->required();
    command->add_option("--host", options.host, "host that runs it")->required();
    command->add_option("--tracker", options.tracker, "how written pages are found")->check(trackers);
  }
  attaching->add_option("--qmp", options.qmp, "QEMU's QMP socket on that host")->required();
  add(app, "stop", "end a VM", stop)->add_option("vm", options.vm, "name or uuid")->required();
}

void add_migration_commands(CLI::App& app, Options& options, const AddCommand& add) {
  auto* migrating = add(app, "migrate", "move a VM to another host", migrate);
  migrating->add_option("-f,--file", options.file, "the plan (TOML); flags override it");
  migrating->add_option("--vm", options.plan_vm, "name or uuid");
  migrating->add_option("--to", options.destination, "destination host");
  migrating->add_option("--mode", options.mode, "precopy, postcopy or hybrid")->check(one_of(kModes));
  migrating->add_option("--downtime-limit", options.downtime_limit, "e.g. 300ms");
  migrating->add_option("--bandwidth-limit", options.bandwidth_limit, "e.g. 1Gbit/s");
  migrating->add_option("--reuse", options.reuse, "auto, never or require")->check(one_of(kReuses));
  migrating->add_option("--verify", options.verify, "off, sent or full")->check(one_of(kVerifies));
  migrating->add_option("--on-no-convergence", options.on_no_convergence, "abort, postcopy or stop-anyway")
      ->check(one_of(kOnNoConvergences));
  migrating->add_option("--rounds-max", options.rounds_max, "rounds until it counts as not converging")
      ->check(CLI::Range(1, 1000));
  migrating->add_option("--time-limit", options.time_limit, "e.g. 10min");
  migrating->add_option("--encryption", options.encryption, "aes-128-gcm, aes-256-gcm or none")
      ->check(one_of(kEncryptions));
  migrating->add_flag("--detach", options.detach, "do not wait: print the migration's id");
  add(app, "migrations", "all migrations, newest first", migrations)
      ->add_flag("--active", options.active_only, "only those under way");
  add(app, "watch", "follow a migration to its end", watch)->add_option("id", options.id)->required();
  add(app, "cancel", "abort a migration; the VM stays where it is", cancel)->add_option("id", options.id)->required();
}

int run(int argc, char** argv) {
  CLI::App app{"godwitctl: hosts, VMs and migrations of a godwit cluster"};
  app.require_subcommand(1);
  app.fallthrough();
  Options options;
  app.add_option("--server", options.server, "control plane: host:port or unix:/path (also GODWIT_SERVER)");
  app.add_flag("--json", options.json, "for programs: JSON with stable keys");
  Command chosen = nullptr;
  const AddCommand add = [&](CLI::App& parent, const char* name, const char* help, Command command) {
    auto* added = parent.add_subcommand(name, help);
    added->fallthrough();
    added->callback([&chosen, command] { chosen = chosen == nullptr ? command : chosen; });
    return added;
  };
  add(app, "hosts", "hosts and their free memory", hosts);
  add(app, "vms", "VMs, and where they run", vms);
  auto* listing = add(app, "images", "retained images", images);
  auto* dropping = add(*listing, "drop", "forget a retained image", drop_image);
  dropping->add_option("--host", options.host, "host that keeps it")->required();
  dropping->add_option("vm", options.vm, "name or uuid of its VM")->required();
  add_vm_commands(app, options, add);
  add_migration_commands(app, options, add);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kBadUsage;
  }
  const auto config = config::find_server(options.server);
  if (!config) {
    config::print_diagnostics(config.error());
    return kBadUsage;
  }
  if (chosen == migrate || chosen == watch) {
    block_interrupt();  // before gRPC starts its threads
  }
  Client client(config->server);
  return chosen(client, options);
}

}  // namespace
}  // namespace godwit::ctl

int main(int argc, char** argv) { return godwit::ctl::run(argc, argv); }
