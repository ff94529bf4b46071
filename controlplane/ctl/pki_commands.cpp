#include "controlplane/ctl/pki_commands.h"

#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "controlplane/ctl/format.h"
#include "controlplane/ctl/json.h"
#include "pki/directory.h"
#include "pki/tls_files.h"

namespace godwit::ctl {
namespace {

constexpr const char* kDefaultDirectory = "/etc/godwit/tls";
constexpr double kDay_s = 24 * 3600;
constexpr double kDaysMax = 3650;

struct Options {
  std::string directory = kDefaultDirectory;
  double days = 365;
  std::vector<std::string> hosts, addresses;
  std::string name;
  bool force = false;

  [[nodiscard]] pki::Directory::Lifetime lifetime() const {
    return {.seconds = std::max<std::int64_t>(1, static_cast<std::int64_t>(days * kDay_s))};
  }
};

int complain(const pki::Error& error) {
  fmt::print(stderr, "godwitctl: {}\n", error.text);
  // A name that cannot be is a mistake of the command line.
  return error.code == pki::Error::Code::kName ? 2 : 1;
}

int init(const Options& options, bool json) {
  const pki::Directory directory(options.directory);
  if (const auto made = directory.init(options.hosts, options.addresses, options.lifetime(), options.force); !made) {
    return complain(made.error());
  }
  if (json) {
    fmt::print("{}\n", Json{{"directory", options.directory}}.dump());
    return 0;
  }
  fmt::print("{}: a CA, and certificates for controlplane, operator{}{}\n", options.directory,
             options.hosts.empty() ? "" : ", ", fmt::join(options.hosts, ", "));
  fmt::print(
      "Each machine needs ca.crt and its own .crt and .key. ca.key signs for the cluster: keep it off the network.\n");
  return 0;
}

int issue(const Options& options, bool json) {
  const pki::Directory directory(options.directory);
  const auto made = directory.issue({.name = options.name,
                                     .addresses = options.addresses,
                                     .lifetime = options.lifetime(),
                                     .overwrite = options.force});
  if (!made) {
    return complain(made.error());
  }
  const std::string certificate = directory.certificate_path(options.name), key = directory.key_path(options.name);
  if (json) {
    fmt::print("{}\n", Json{{"certificate", certificate}, {"key", key}}.dump());
  } else {
    fmt::print("{} and {}\n", certificate, key);
  }
  return 0;
}

int show(const Options& options, bool json) {
  const auto entries = pki::Directory(options.directory).list();
  if (!entries) {
    return complain(entries.error());
  }
  const std::int64_t now_unix_s = pki::unix_s_now();
  std::vector<std::vector<std::string>> rows{{"NAME", "FOR", "EXPIRES", "ADDRESSES", "SERIAL", "STATE"}};
  Json array = Json::array();
  for (const auto& entry : *entries) {
    const bool readable = !entry.serial.empty();
    const bool fine = entry.problem.empty() && pki::expiry_at(entry.validity, now_unix_s) == pki::Expiry::kValid;
    const std::string state = fine                     ? "good"
                              : !entry.problem.empty() ? entry.problem
                                                       : pki::expiry_text(entry.validity, now_unix_s);
    rows.push_back({entry.name, entry.holder.empty() ? "-" : entry.holder,
                    readable ? pki::date_text(entry.validity.not_after_unix_s) : "-",
                    entry.addresses.empty() ? "-" : fmt::format("{}", fmt::join(entry.addresses, ",")),
                    readable ? entry.serial : "-", state});
    array.push_back({{"name", entry.name},
                     {"for", entry.holder},
                     {"not_before_unix_us", entry.validity.not_before_unix_s * 1'000'000},
                     {"not_after_unix_us", entry.validity.not_after_unix_s * 1'000'000},
                     {"addresses", entry.addresses},
                     {"serial", entry.serial},
                     {"problem", entry.problem}});
  }
  fmt::print("{}{}", json ? array.dump(2) : table(rows), json ? "\n" : "");
  return 0;
}

}  // namespace

void add_pki_commands(CLI::App& app, const bool& json, const std::function<void(std::function<int()>)>& chosen) {
  const auto options = std::make_shared<Options>();
  auto* pki = app.add_subcommand("pki", "keys and certificates of a cluster");
  pki->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, int (*run)(const Options&, bool)) {
    auto* command = pki->add_subcommand(name, help);
    command->fallthrough();
    command->add_option("--directory", options->directory, "where they are")->capture_default_str();
    command->callback([options, run, &json, chosen] { chosen([options, run, &json] { return run(*options, json); }); });
    return command;
  };
  auto* making = add("init", "make a CA, and certificates for the control plane, an operator and each host", init);
  making->add_option("HOST", options->hosts, "hosts' names, as in their bridge.toml");
  auto* issuing = add("issue", "make one more, or with --force a new one", issue);
  issuing->add_option("NAME", options->name, "a host's name, controlplane or operator")->required();
  for (auto* command : {making, issuing}) {
    command->add_option("--days", options->days, "how long they are valid; decimals are allowed")
        ->check(CLI::Range(1 / kDay_s, kDaysMax))
        ->capture_default_str();
    command
        ->add_option("--address", options->addresses,
                     "DNS name or IP address that the control plane is reached by; may be repeated")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    command->add_flag("--force", options->force, "replace what is there");
  }
  add("show", "list them, with their ends", show);
}

}  // namespace godwit::ctl
