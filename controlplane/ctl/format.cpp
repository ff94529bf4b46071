#include "controlplane/ctl/format.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "base/log.h"
#include "base/uuid.h"
#include "config/common.h"
#include "config/units.h"
#include "pki/directory.h"
#include "pki/tls_files.h"

namespace godwit::ctl {
namespace {

constexpr std::size_t kBarCells = 24;
constexpr std::uint64_t kPageBytes = 4096;

std::string or_dash(const std::string& text) { return text.empty() ? "-" : printable(text); }

/// Characters, not bytes: continuation bytes of UTF-8 take no place.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::string count_text(std::uint64_t count) {
  if (count < 10'000) {
    return fmt::format("{}", count);
  }
  const double value = static_cast<double>(count);
  if (count < 1'000'000) {
    return fmt::format("{:.1f} k", value / 1e3);
  }
  return count < 1'000'000'000 ? fmt::format("{:.1f} M", value / 1e6) : fmt::format("{:.1f} G", value / 1e9);
}

/// What of the transport is worth a look while it goes on; "" before anything was heard of it.
std::string transport_text(const dpapi::MigrationStats& stats) {
  if (stats.rtt_us() == 0) {
    return "";
  }
  return fmt::format("  round trip {}  {} pages resent", span_text(static_cast<std::int64_t>(stats.rtt_us())),
                     count_text(stats.retransmitted_pages()));
}

std::string us_text(std::uint64_t us) { return span_text(static_cast<std::int64_t>(us)); }

/// Of faults since the guest resumed; "" before the first.
std::string faults_text(const dpapi::PagingStats& paging) {
  if (paging.faults() == 0) {
    return "";
  }
  return fmt::format("{} faults/s  p50 {}  p99 {}", count_text(paging.faults_per_s()), us_text(paging.fault_p50_us()),
                     us_text(paging.fault_p99_us()));
}

/// All of it, what matters most first: a narrow terminal cuts the line.
std::string every_fault_text(const dpapi::PagingStats& paging) {
  if (paging.faults() == 0) {
    return "";
  }
  return fmt::format("  {}  p90 {}  p99.9 {}  longest {}  vCPUs waited {}", faults_text(paging),
                     us_text(paging.fault_p90_us()), us_text(paging.fault_p999_us()), us_text(paging.fault_max_us()),
                     us_text(paging.blocked_us()));
}

/// The sub hosts of a split VM: "host-b, host-c: 1234 pages (4.8 MiB)".
std::string subs_text(const api::Split& split) {
  std::string hosts;
  std::uint64_t pages = 0;
  for (const auto& sub : split.subs()) {
    hosts += (hosts.empty() ? "" : ", ") + printable(sub.host());
    pages += sub.pages();
  }
  return fmt::format("{}: {}{}", hosts, config::format_pages(pages),
                     split.warnings().empty() ? "" : ", with warnings (godwitctl vm show)");
}

/// "host-a: 1234 pages (4.8 MiB)", and how it goes on; of the sub hosts of a split VM, of where it came from, or of
/// both.
std::string dependence_text(const api::Vm& vm) {
  const std::string subs = vm.has_split() ? subs_text(vm.split()) : "";
  if (vm.depends_on().empty()) {
    return subs.empty() ? "-" : subs;
  }
  const dpapi::PagingStats& paging = vm.paging().stats();
  return subs + (subs.empty() ? "" : "; ") + printable(vm.depends_on()) + ": " +
         config::format_pages(paging.pages_missing()) + (vm.paging().connected() ? "" : ", no pages flow") +
         (paging.faults() == 0 ? "" : ", ") + faults_text(paging);
}

}  // namespace

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], width_of(row[i]));
    }
  }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      text += row[i];
      if (i + 1 < row.size()) {
        text.append(widths[i] - width_of(row[i]) + 2, ' ');
      }
    }
    text += '\n';
  }
  return text;
}

std::string id_text(const std::string& bytes) {
  const auto id = Id128::from_bytes(bytes);
  return id ? id->text() : "";
}

std::string span_text(std::int64_t us) {
  if (us < 0) {
    return "-";
  }
  const double value = static_cast<double>(us);
  if (us < 1000) {
    return fmt::format("{} us", us);
  }
  if (us < 1'000'000) {
    return fmt::format("{:.1f} ms", value / 1e3);
  }
  if (us < 60'000'000) {
    return fmt::format("{:.1f} s", value / 1e6);
  }
  const std::int64_t seconds = us / 1'000'000;
  if (seconds < 3600) {
    return fmt::format("{} min {} s", seconds / 60, seconds % 60);
  }
  return seconds < 86'400 ? fmt::format("{} h {} min", seconds / 3600, seconds % 3600 / 60)
                          : fmt::format("{} d {} h", seconds / 86'400, seconds % 86'400 / 3600);
}

std::string age_text(std::int64_t then_unix_us, std::int64_t now_unix_us) {
  if (then_unix_us <= 0) {
    return "never";
  }
  const std::int64_t age_us = std::max<std::int64_t>(0, now_unix_us - then_unix_us);
  return age_us < 2'000'000 ? "now" : span_text(age_us / 1'000'000 * 1'000'000) + " ago";
}

std::string time_text(std::int64_t unix_us) {
  return unix_us <= 0 ? "-" : fmt::format("{:%F %T} UTC", fmt::gmtime(static_cast<std::time_t>(unix_us / 1'000'000)));
}

std::string state_text(api::PageStoreState state) {
  return api::PageStoreState_Name(state).substr(std::string_view("PAGE_STORE_").size());
}

std::string state_text(api::MigrationState state) {
  return state == api::STATE_UNSPECIFIED ? "UNKNOWN" : api::MigrationState_Name(state);
}

std::string hosts_table(const api::ListHostsResponse& response, std::int64_t now_unix_us) {
  std::vector<std::vector<std::string>> rows{
      {"HOST", "STATE", "DATA PLANE", "FREE", "OF", "VMS", "IMAGES", "TRACKERS", "KERNEL", "SEEN"}};
  for (const api::Host& host : response.hosts()) {
    const api::HostInfo& info = host.info();
    std::string trackers;
    for (const int tracker : info.trackers()) {
      trackers += (trackers.empty() ? "" : ",") + std::string(config::tracker_name(tracker));
    }
    rows.push_back({or_dash(info.name()), host.connected() ? "connected" : "lost",
                    !host.connected()     ? "-"
                    : info.dataplane_up() ? or_dash(info.dataplane_address())
                                          : "down",
                    config::format_bytes(info.memory_free_bytes()), config::format_bytes(info.memory_total_bytes()),
                    fmt::format("{}", host.vms()), fmt::format("{}", host.images()), or_dash(trackers),
                    or_dash(info.kernel()), age_text(host.last_seen_unix_us(), now_unix_us)});
  }
  return rows.size() == 1 ? "no hosts\n" : table(rows);
}

std::vector<std::string> certificate_warnings(const api::ListHostsResponse& response, std::int64_t now_unix_us) {
  constexpr std::int64_t kSecond_us = 1'000'000;
  std::vector<std::string> warnings;
  const auto look = [&](const std::string& whose, const std::string& name, std::int64_t end_unix_us) {
    const pki::Validity validity{.not_before_unix_s = 0, .not_after_unix_s = end_unix_us / kSecond_us};
    const std::int64_t now_unix_s = now_unix_us / kSecond_us;
    if (end_unix_us != 0 && pki::expiry_at(validity, now_unix_s) != pki::Expiry::kValid) {
      warnings.push_back(fmt::format("the certificate of {} {}: {}", whose, pki::expiry_text(validity, now_unix_s),
                                     pki::renewal_text(name)));
    }
  };
  look("the control plane", pki::kControlplaneName, response.certificate_end_unix_us());
  for (const api::Host& host : response.hosts()) {
    const std::string name = printable(host.info().name());
    look("host " + name, name, host.info().certificate_end_unix_us());
  }
  return warnings;
}

std::string vms_table(const api::ListVmsResponse& response) {
  std::vector<std::vector<std::string>> rows{
      {"VM", "HOST", "STATE", "MEMORY", "TRACKER", "OWNERSHIP", "DEPENDS ON", "UUID"}};
  for (const api::Vm& vm : response.vms()) {
    const char* moving = vm.migration_id().empty() ? "" : vm.depends_on().empty() ? ", migrating" : ", pulling";
    rows.push_back({or_dash(vm.name()), or_dash(vm.host()), or_dash(vm.run_state()) + moving,
                    config::format_bytes(vm.bytes_total()), std::string(config::tracker_name(vm.tracker())),
                    fmt::format("{}", vm.ownership()), dependence_text(vm), id_text(vm.uuid())});
  }
  return rows.size() == 1 ? "no VMs\n" : table(rows);
}

std::string vm_text(const api::Vm& vm) {
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](std::string key, std::string value) {
    rows.push_back({"  " + std::move(key), std::move(value)});
  };
  add("uuid", id_text(vm.uuid()));
  add("memory", config::format_bytes(vm.bytes_total()));
  add("tracker", std::string(config::tracker_name(vm.tracker())));
  add("migration", or_dash(id_text(vm.migration_id())));
  if (!vm.has_split()) {
    add("depends on", dependence_text(vm));
    if (!vm.to_be_split().empty()) {
      add("to be split", printable(vm.to_be_split()));
    }
    return fmt::format("VM {}  {} on {}\n{}", or_dash(vm.name()), or_dash(vm.run_state()), or_dash(vm.host()),
                       table(rows));
  }
  const api::Split& split = vm.split();
  const dpapi::SplitStatus& status = split.status();
  const auto known = [&](std::string text) { return split.has_status() ? text : std::string("not known now"); };
  add(or_dash(vm.host()), known(fmt::format("{} resident, budget {}", config::format_bytes(status.resident_bytes()),
                                            config::format_bytes(split.budget_bytes()))));
  if (!vm.depends_on().empty()) {
    add(printable(vm.depends_on()),
        config::format_pages(vm.paging().stats().pages_missing()) + ", from where it comes");
  }
  for (const auto& sub : split.subs()) {
    add(printable(sub.host()),
        fmt::format("{}, {} of {} lent", state_text(sub.state()), known(config::format_pages(sub.pages())),
                    config::format_bytes(sub.bytes_lent())));
  }
  add("refaults", known(faults_text(status.paging()).empty() ? "none yet" : faults_text(status.paging())));
  add("pages", known(fmt::format("{} evicted, {} refetched, {} on their way out", count_text(status.evicted_pages()),
                                 count_text(status.refetched_pages()), count_text(status.pages_leaving()))));
  std::string text = fmt::format("VM {}  {} on {}, {}\n{}", or_dash(vm.name()), or_dash(vm.run_state()),
                                 or_dash(vm.host()), api::SplitState_Name(split.state()), table(rows));
  for (const std::string& warning : split.warnings()) {
    text += fmt::format("  warning: {}\n", printable(warning));
  }
  return text;
}

std::string drain_text(const api::DrainHostResponse& response) {
  std::string text = response.parts_size() == 0 ? "it holds nothing of any VM\n" : "";
  for (const auto& part : response.parts()) {
    text += fmt::format("VM {}: {}\n", or_dash(part.vm_name()),
                        !part.refusal().empty()        ? "stays: " + printable(part.refusal())
                        : !part.migration_id().empty() ? "moves: godwitctl watch " + id_text(part.migration_id())
                                                       : "its pages go to other sub hosts (godwitctl vm show)");
  }
  return text;
}

std::string images_table(const api::ListImagesResponse& response) {
  std::vector<std::vector<std::string>> rows{{"HOST", "VM", "EPOCH", "RESIDENT", "OF", "REUSABLE", "LAST USED"}};
  for (const api::HostImage& image : response.images()) {
    const std::string vm = image.vm_name().empty() ? id_text(image.image().id().vm_uuid()) : printable(image.vm_name());
    const char* reusable = image.image().in_use() ? "in use" : image.current() ? "yes" : "no: an earlier boot";
    rows.push_back({or_dash(image.host()), vm, fmt::format("{}", image.image().epoch()),
                    config::format_bytes(image.image().bytes_resident()),
                    config::format_bytes(image.image().bytes_total()), reusable,
                    time_text(image.image().last_used_unix_s() * 1'000'000)});
  }
  return rows.size() == 1 ? "no images\n" : table(rows);
}

std::string migrations_table(const api::ListMigrationsResponse& response) {
  std::vector<std::vector<std::string>> rows{
      {"ID", "VM", "FROM", "TO", "STATE", "BEGUN", "TOOK", "DOWNTIME", "WIRE", "REUSED", "REASON"}};
  for (const api::Migration& migration : response.migrations()) {
    const bool decided = migration.ended_unix_us() > 0;
    rows.push_back({id_text(migration.id()), or_dash(migration.vm_name()), or_dash(migration.source()),
                    or_dash(migration.plan().destination()), state_text(migration.state()),
                    time_text(migration.created_unix_us()),
                    decided ? span_text(migration.ended_unix_us() - migration.created_unix_us()) : "-",
                    span_text(downtime_us(migration)), config::format_bytes(migration.stats().wire_bytes()),
                    migration.reused() ? count_text(migration.stats().pages_reused()) : "-",
                    or_dash(decided ? migration.reason() : migration.note())});
  }
  return rows.size() == 1 ? "no migrations\n" : table(rows);
}

std::int64_t downtime_us(const api::Migration& migration) {
  const bool resumed =
      migration.state() == api::COMMITTED || migration.state() == api::PULLING || migration.state() == api::INCOMPLETE;
  if (!resumed || migration.stop_unix_us() <= 0 || migration.resume_unix_us() <= 0) {
    return -1;
  }
  return std::max<std::int64_t>(0, migration.resume_unix_us() - migration.stop_unix_us());
}

namespace {

std::string bar(double share) {
  const auto cells = static_cast<std::size_t>(share * static_cast<double>(kBarCells));
  return fmt::format("[{}{}] {:3.0f} %", std::string(cells, '#'), std::string(kBarCells - cells, '.'), share * 100.0);
}

std::string pull_line(const api::Migration& migration) {
  const dpapi::PagingStats& paging = migration.destination_stats().paging();
  if (!migration.connected()) {
    return fmt::format("PULLING  {}", printable(migration.note()));
  }
  const auto first = static_cast<double>(std::max<std::uint64_t>(paging.pages_missing_first(), 1));
  const double missing = static_cast<double>(std::min(paging.pages_missing(), paging.pages_missing_first()));
  return fmt::format("{}  PULLING  {} on {}  {} on demand, {} unasked, {} zero, {} reused{}",
                     bar(1.0 - missing / first), config::format_pages(paging.pages_missing()),
                     printable(migration.source()), count_text(paging.pages_demand()),
                     count_text(paging.pages_background()), count_text(paging.pages_zero()),
                     count_text(migration.stats().pages_reused()), every_fault_text(paging));
}

}  // namespace

std::string progress_line(const api::Migration& migration, std::size_t columns) {
  const dpapi::MigrationStats& stats = migration.stats();
  std::string line;
  if (migration.state() == api::PULLING) {
    line = pull_line(migration);
  } else if (stats.pages_total() == 0) {
    line = fmt::format("{}  {}", state_text(migration.state()), printable(migration.note()));
  } else {
    const double left = static_cast<double>(std::min(stats.pages_left(), stats.pages_total()));
    const double share = 1.0 - left / static_cast<double>(stats.pages_total());
    line = fmt::format("{}  {}  round {}  {} pages left  {}{}", bar(share), config::format_rate_bps(stats.rate_bps()),
                       stats.round(), count_text(stats.pages_left()),
                       migration.state() == api::TRANSFERRING
                           ? "about " + span_text(static_cast<std::int64_t>(stats.estimated_left_us())) + " left"
                           : state_text(migration.state()),
                       transport_text(stats));
    if (migration.state() == api::TRANSFERRING && !migration.note().empty() && migration.note() != "transferring") {
      line += fmt::format("  {}", printable(migration.note()));
    }
  }
  if (line.size() > columns) {
    line.resize(columns);
  }
  return line;
}

std::string summary(const api::Migration& migration) {
  const dpapi::MigrationStats& stats = migration.stats();
  std::string text =
      fmt::format("{}  VM {} from {} to {}\n", state_text(migration.state()), or_dash(migration.vm_name()),
                  or_dash(migration.source()), or_dash(migration.plan().destination()));
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const char* key, std::string value) {
    rows.push_back({fmt::format("  {}", key), std::move(value)});
  };
  add("time", span_text(migration.ended_unix_us() - migration.created_unix_us()));
  add("downtime", span_text(downtime_us(migration)));
  add("on the wire", fmt::format("{} ({} bytes)", config::format_bytes(stats.wire_bytes()), stats.wire_bytes()));
  add("pages", fmt::format("{} sent, {} zero, {} reused of {} ({}) in {} rounds", stats.pages_sent(),
                           stats.pages_zero(), stats.pages_reused(), stats.pages_total(),
                           config::format_bytes(stats.pages_total() * kPageBytes), stats.round()));
  if (stats.packets_sent() > 0) {
    add("transport", fmt::format("{} pages resent, {} of {} packets lost, {} timeouts, round trip {}",
                                 stats.retransmitted_pages(), stats.packets_lost(), stats.packets_sent(),
                                 stats.probe_timeouts(), span_text(static_cast<std::int64_t>(stats.rtt_us()))));
  }
  if (const dpapi::PagingStats& paging = migration.destination_stats().paging(); paging.pages_missing_first() > 0) {
    add("pulled", fmt::format("{} on demand, {} unasked, {} given back of {} missing at the resume; {} zero made there",
                              paging.pages_demand(), paging.pages_background(), paging.pages_given_back(),
                              paging.pages_missing_first(), paging.pages_zero()));
    add("faults",
        fmt::format("{}, p50 {}, p90 {}, p99 {}, p99.9 {}, longest {}; vCPUs waited {} in all", paging.faults(),
                    us_text(paging.fault_p50_us()), us_text(paging.fault_p90_us()), us_text(paging.fault_p99_us()),
                    us_text(paging.fault_p999_us()), us_text(paging.fault_max_us()), us_text(paging.blocked_us())));
  }
  if (migration.plan().keeps_stores() && migration.state() != api::ABORTED) {
    add("split", "its main part moved, in mode " + dpapi::Mode_Name(migration.plan().mode()));
  }
  add("reuse", (migration.reused() ? "" : "no; ") + or_dash(migration.reuse_reason()));
  add("tracked by", fmt::format("{}{}{}", config::tracker_name(migration.tracker()),
                                migration.tracker_reason().empty() ? "" : ": ", printable(migration.tracker_reason())));
  if (!migration.note().empty() && migration.note() != "committed" && migration.note() != "aborted") {
    add("note", printable(migration.note()));
  }
  text += table(rows);
  if (migration.state() == api::ABORTED) {
    text += fmt::format("not moved: {}; VM {} belongs to {} as before, and may be migrated again\n",
                        printable(migration.reason()), or_dash(migration.vm_name()), or_dash(migration.source()));
  } else if (migration.state() == api::INCOMPLETE) {
    text += fmt::format("moved, but not whole: {}\n", printable(migration.reason()));
  } else if (!migration.reason().empty()) {
    text += fmt::format("moved, but {}; QEMU's log on {} may tell more\n", printable(migration.reason()),
                        or_dash(migration.plan().destination()));
  }
  return text;
}

}  // namespace godwit::ctl
