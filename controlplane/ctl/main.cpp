// godwitctl: what a person, or a script with --json, asks of the control plane. Exit status: 0 done (migrate, watch:
// only when COMMITTED), 1 not done, 2 the command line or a file is wrong; one line on standard error says why.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>

#include "base/atomic_file.h"
#include "base/uuid.h"
#include "config/common.h"
#include "config/ctl_config.h"
#include "config/migration_plan.h"
#include "config/units.h"
#include "config/version.h"
#include "controlplane/ctl/client.h"
#include "controlplane/ctl/format.h"
#include "controlplane/ctl/heat_view.h"
#include "controlplane/ctl/json.h"
#include "controlplane/ctl/pki_commands.h"
#include "controlplane/ctl/plan_input.h"
#include "controlplane/ctl/watching.h"
#include "controlplane/tls/grpc_log.h"

namespace godwit::ctl {
namespace {

constexpr int kNotDone = 1;
constexpr int kBadUsage = 2;

struct Options {
  config::CtlFlags connection;
  bool json = false;
  std::string file, host, vm, qmp, id, svg, tracker = "auto";
  bool active_only = false;
  bool detach = false;
  std::string budget;
  std::vector<std::string> sub_hosts, without;
  std::optional<dpapi::Encryption> encryption;
  config::PlanFlags plan;  // of migrate; goes before the plan's file
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
  const auto listed = client.list_hosts();
  if (listed) {
    for (const auto& warning : certificate_warnings(*listed, unix_us_now())) {
      fmt::print(stderr, "godwitctl: {}\n", warning);
    }
  }
  return show(
      listed, options.json, [](const auto& r) { return hosts_table(r, unix_us_now()); },
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
  const auto found =
      std::find(config::kTrackerNames.begin(), config::kTrackerNames.end(), name);  // checked by the option
  return static_cast<dpapi::Tracker>(found - config::kTrackerNames.begin());
}

int print_vm(const api::Vm& vm, const Options& options, const char* what) {
  if (options.json) {
    fmt::print("{}\n", to_json(vm).dump(2));
  } else {
    fmt::print("VM {} {} on {}, tracked by {}\n", vm.name(), what, vm.host(), config::tracker_name(vm.tracker()));
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

int heat(Client& client, const Options& options) {
  const std::size_t columns = terminal_columns();
  api::GetHeatRequest request;
  request.set_vm(options.vm);
  request.set_cells(options.svg.empty() && !options.json ? heat_cells_wanted(columns) : kHeatCellsMax);
  const auto map = client.heat(request);
  if (!map) {
    return complain(map.error());
  }
  if (!options.svg.empty()) {
    if (const auto written = write_file_atomically(options.svg, heat_svg(*map), 0644); !written) {
      return complain(written.error().text());
    }
  }
  if (options.json) {
    fmt::print("{}\n", to_json(*map).dump(2));
  } else if (options.svg.empty()) {
    fmt::print("{}", heat_text(*map, columns, isatty(STDOUT_FILENO) != 0 ? Colour::kYes : Colour::kNo));
  }
  return 0;
}

int show_vm(Client& client, const Options& options) {
  const auto listed = client.list_vms();
  if (!listed) {
    return complain(listed.error());
  }
  const auto found = std::ranges::find_if(
      listed->vms(), [&](const auto& vm) { return vm.name() == options.vm || id_text(vm.uuid()) == options.vm; });
  if (found == listed->vms().end()) {
    return complain(fmt::format("no VM \"{}\" (godwitctl vms lists them)", options.vm));
  }
  fmt::print("{}", options.json ? to_json(*found).dump(2) + "\n" : vm_text(*found));
  return 0;
}

int print_split(const api::Vm& vm, const Options& options) {
  fmt::print("{}", options.json ? to_json(vm).dump(2) + "\n" : vm_text(vm));
  return 0;
}

int split_vm(Client& client, const Options& options) {
  api::SplitVmRequest request;
  request.set_vm(options.vm);
  if (!options.budget.empty()) {
    const auto bytes = config::parse_bytes(options.budget);
    if (!bytes) {
      return complain(fmt::format("--budget {}", bytes.error()), kBadUsage);
    }
    request.set_budget_bytes(*bytes);
  }
  for (const std::string& host : options.sub_hosts) {
    request.add_sub_hosts(host);
  }
  for (const std::string& host : options.without) {
    request.add_without(host);
  }
  if (options.encryption) {
    request.set_encryption(*options.encryption);
  }
  const auto split = client.split_vm(request);
  return split ? print_split(split->vm(), options) : complain(split.error());
}

int gather_vm(Client& client, const Options& options) {
  api::GatherVmRequest request;
  request.set_vm(options.vm);
  const auto gathered = client.gather_vm(request);
  return gathered ? print_split(gathered->vm(), options) : complain(gathered.error());
}

/// Not done if anything stays there.
int drain_host(Client& client, const Options& options) {
  api::DrainHostRequest request;
  request.set_host(options.host);
  const auto drained = client.drain_host(request);
  if (!drained) {
    return complain(drained.error());
  }
  fmt::print("{}", options.json ? to_json(*drained).dump(2) + "\n" : drain_text(*drained));
  const bool stays = std::ranges::any_of(drained->parts(), [](const auto& part) { return !part.refusal().empty(); });
  return stays ? kNotDone : 0;
}

int migrate(Client& client, const Options& options) {
  if (options.file.empty() && !(options.plan.contains("vm") && options.plan.contains("destination"))) {
    return complain("migrate needs a VM and a destination: --vm and --to, or a plan (-f)", kBadUsage);
  }
  const auto plan = config::load_migration_plan(options.file, options.plan);
  if (!plan) {
    config::print_diagnostics(plan.error());
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

/// Calls `act` with the id in bytes that the command line names.
template <typename Act>
int with_migration(const Options& options, Act act) {
  const auto id = Id128::parse(options.id);
  if (!id) {
    return complain(fmt::format("\"{}\" is no migration id (godwitctl migrations lists them)", options.id), kBadUsage);
  }
  return act(id->to_bytes());
}

int watch(Client& client, const Options& options) {
  return with_migration(options, [&](const std::string& id) {
    return watch_to_end(client, id, options.json ? WatchOutput::kJsonEach : WatchOutput::kPeople);
  });
}

int cancel(Client& client, const Options& options) {
  return with_migration(options, [&](const std::string& id) {
    if (const auto done = client.cancel_migration(id); !done) {
      return complain(done.error());
    }
    fmt::print("{}\n", options.json ? Json{{"cancelled", true}}.dump() : "cancelled: the VM stays where it was");
    return 0;
  });
}

int switch_to_postcopy(Client& client, const Options& options) {
  return with_migration(options, [&](const std::string& id) {
    if (const auto done = client.switch_to_postcopy(id); !done) {
      return complain(done.error());
    }
    fmt::print("{}\n", options.json ? Json{{"switching", true}}.dump()
                                    : fmt::format("it switches as soon as the destination is ready: godwitctl watch {}",
                                                  options.id));
    return 0;
  });
}

using Command = int (*)(Client&, const Options&);
using AddCommand = std::function<CLI::App*(CLI::App&, const char*, const char*, Command)>;

void add_vm_commands(CLI::App& app, Options& options, const AddCommand& add) {
  const CLI::IsMember trackers(std::vector<std::string>(config::kTrackerNames.begin(), config::kTrackerNames.end()));
  auto* starting = add(app, "start", "start a VM from its definition", start);
  auto* attaching = add(app, "attach", "adopt a VM whose QEMU runs already", attach);
  for (auto* command : {starting, attaching}) {
    command->add_option("-f,--file", options.file, "the VM's definition (TOML)")->required();
    command->add_option("--host", options.host, "host that runs it")->required();
    command->add_option("--tracker", options.tracker, "how written pages are found")->check(trackers);
  }
  attaching->add_option("--qmp", options.qmp, "QEMU's QMP socket on that host")->required();
  add(app, "stop", "end a VM", stop)->add_option("vm", options.vm, "name or uuid")->required();
  auto* one = app.add_subcommand("vm", "one VM, and which hosts hold its memory")->require_subcommand(1)->fallthrough();
  auto* showing = add(*one, "show", "how it stands, and what is wrong", show_vm);
  auto* splitting = add(*one, "split", "keep a part of its memory on its host, and the rest on sub hosts", split_vm);
  auto* gathering = add(*one, "gather", "bring all of a split VM back to its host", gather_vm);
  auto* warming = add(*one, "heat", "which parts of its memory are hot", heat);
  for (auto* command : {showing, splitting, gathering, warming}) {
    command->add_option("vm", options.vm, "name or uuid")->required();
  }
  splitting->add_option("--budget", options.budget,
                        "what its host may hold of it, e.g. 256MiB; split already: as it is");
  splitting->add_option("--sub", options.sub_hosts, "a sub host, may be given several times; none: chosen")
      ->allow_extra_args(false);
  splitting
      ->add_option("--without", options.without,
                   "a sub host that is to hold nothing of it any more, may be given several times")
      ->allow_extra_args(false);
  splitting->add_option("--encryption", options.encryption, "aes-128-gcm, aes-256-gcm or none; split already: as it is")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, dpapi::Encryption>{{"aes-128-gcm", dpapi::ENCRYPTION_AES_128_GCM},
                                                   {"aes-256-gcm", dpapi::ENCRYPTION_AES_256_GCM},
                                                   {"none", dpapi::ENCRYPTION_NONE}}));
  warming->add_option("--svg", options.svg, "draw it into this file instead");
}

void add_migration_commands(CLI::App& app, Options& options, const AddCommand& add) {
  auto* migrating = add(app, "migrate", "move a VM to another host", migrate);
  migrating->add_option("-f,--file", options.file, "the plan (TOML); flags override it");
  const auto flag = [&](const char* name, const char* key, const char* help) {
    migrating->add_option_function<std::string>(
        name, [&plan = options.plan, key](const std::string& value) { plan[key] = value; }, help);
  };
  flag("--vm", "vm", "name or uuid");
  flag("--to", "destination", "destination host");
  flag("--mode", "mode", "precopy, postcopy or hybrid");
  flag("--downtime-limit", "downtime_limit", "e.g. 300ms");
  flag("--bandwidth-limit", "bandwidth_limit", "e.g. 1Gbit/s");
  flag("--reuse", "reuse", "auto, never or require");
  flag("--verify", "verify", "off, sent or full");
  flag("--on-no-convergence", "on_no_convergence", "abort, postcopy or stop-anyway");
  flag("--rounds-max", "rounds_max", "rounds until it counts as not converging");
  flag("--time-limit", "time_limit", "e.g. 10min");
  flag("--postcopy-after-rounds", "postcopy_after_rounds", "mode hybrid: switch after so many rounds");
  flag("--postcopy-after", "postcopy_after", "mode hybrid: switch after so long, e.g. 30s");
  flag("--background-order", "background_order", "around-faults, sequential or hottest-first");
  flag("--encryption", "encryption", "aes-128-gcm, aes-256-gcm or none");
  flag("--budget", "resident_budget",
       "what the destination may hold of it, sub hosts hold the rest; split already: as it is");
  migrating
      ->add_option_function<std::vector<std::string>>(
          "--sub",
          [&plan = options.plan](const auto& hosts) { plan["sub_hosts"] = fmt::format("{}", fmt::join(hosts, ",")); },
          "a sub host of a VM that is split for it, may be given several times; none: chosen")
      ->allow_extra_args(false);
  migrating->add_flag_callback(
      "--whole", [&plan = options.plan] { plan["whole"] = "true"; },
      "a split VM: all of it is gathered where it arrives");
  migrating->add_flag("--detach", options.detach, "do not wait: print the migration's id");
  add(app, "migrations", "all migrations, newest first", migrations)
      ->add_flag("--active", options.active_only, "only those under way");
  add(app, "watch", "follow a migration to its end", watch)->add_option("id", options.id)->required();
  add(app, "switch-to-postcopy", "end the rounds of a hybrid migration: the guest moves now, its pages follow",
      switch_to_postcopy)
      ->add_option("migration", options.id, "its id")
      ->required();
  add(app, "cancel", "abort a migration; the VM stays where it is", cancel)->add_option("id", options.id)->required();
}

int run(int argc, char** argv) {
  CLI::App app{"godwitctl: hosts, VMs and migrations of a godwit cluster"};
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("--version", config::version());
  Options options;
  app.add_option("--server", options.connection.server, "control plane: host:port or unix:/path (also GODWIT_SERVER)");
  app.add_option("--config", options.connection.config, fmt::format("instead of {}", config::kCtlConfigFile));
  app.add_flag("--insecure", options.connection.insecure, "no certificates: only where the network is trusted");
  app.add_flag("--json", options.json, "for programs: JSON with stable keys");
  Command chosen = nullptr;
  const AddCommand add = [&](CLI::App& parent, const char* name, const char* help, Command command) {
    auto* added = parent.add_subcommand(name, help);
    added->fallthrough();
    added->callback([&chosen, command] { chosen = chosen == nullptr ? command : chosen; });
    return added;
  };
  add(app, "hosts", "hosts and their free memory", hosts);
  auto* one_host = app.add_subcommand("host", "one host")->require_subcommand(1)->fallthrough();
  add(*one_host, "drain", "move all that it holds of any VM to other hosts", drain_host)
      ->add_option("host", options.host, "its name")
      ->required();
  add(app, "vms", "VMs, and where they run", vms);
  auto* listing = add(app, "images", "retained images", images);
  auto* dropping = add(*listing, "drop", "forget a retained image", drop_image);
  dropping->add_option("--host", options.host, "host that keeps it")->required();
  dropping->add_option("vm", options.vm, "name or uuid of its VM")->required();
  add_vm_commands(app, options, add);
  add_migration_commands(app, options, add);
  std::function<int()> local;
  add_pki_commands(app, options.json, [&](std::function<int()> command) { local = std::move(command); });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kBadUsage;
  }
  if (local) {
    return local();
  }
  const auto config = config::find_server(options.connection);
  if (!config) {
    config::print_diagnostics(config.error());
    return kBadUsage;
  }
  if (chosen == migrate || chosen == watch) {
    block_interrupt();  // before gRPC starts its threads
  }
  start_logging("godwitctl", LogLevel::kError);
  controlplane::route_grpc_log();
  Client client(*config);
  return chosen(client, options);
}

}  // namespace
}  // namespace godwit::ctl

int main(int argc, char** argv) { return godwit::ctl::run(argc, argv); }
