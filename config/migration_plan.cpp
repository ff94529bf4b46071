#include "config/migration_plan.h"

#include <algorithm>
#include <charconv>
#include <ranges>
#include <set>

#include "config/parsers.h"
#include "config/vm_definition.h"

namespace godwit::config {

namespace {

constexpr std::uint64_t kMegabitPerSecond = 1'000'000;
constexpr const char* kCommandLine = "command line";

/// Each as TOML writes it: whole numbers, truth, lists, and all else its strings.
toml::table table_of(const PlanFlags& flags) {
  toml::table table;
  for (const auto& [key, value] : flags) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if ((key == "rounds_max" || key == "postcopy_after_rounds") && error == std::errc{} &&
        end == value.data() + value.size()) {
      table.insert(key, number);
    } else if (key == "whole" && (value == "true" || value == "false")) {
      table.insert(key, value == "true");
    } else if (key == "sub_hosts") {
      toml::array hosts;
      for (const auto part : std::views::split(value, ',')) {
        hosts.push_back(std::string(part.begin(), part.end()));
      }
      table.insert(key, std::move(hosts));
    } else {
      table.insert(key, value);
    }
  }
  return table;
}

/// When a hybrid migration switches; nothing else can say so.
void read_postcopy(Reader& reader, MigrationPlan& plan) {
  reader.optional("postcopy_after_rounds", plan.postcopy_after_rounds, integer<std::uint32_t>(0, 1000));
  reader.optional("postcopy_after", plan.postcopy_after,
                  duration_or_none(milliseconds(100), milliseconds(7LL * 24 * 3'600'000)));
  reader.optional("background_order", plan.background_order,
                  one_of<BackgroundOrder>({{"around-faults", BackgroundOrder::kAroundFaults},
                                           {"sequential", BackgroundOrder::kSequential},
                                           {"hottest-first", BackgroundOrder::kHottestFirst}}));
  bool given = false;
  for (const char* key : {"postcopy_after_rounds", "postcopy_after"}) {
    given = given || reader.given(key);
    if (reader.given(key) && plan.mode != Mode::kHybrid) {
      reader.fail(key, "is for mode \"hybrid\" only: set mode, or leave it out");
    }
  }
  if (plan.mode == Mode::kHybrid && !given) {
    plan.postcopy_after_rounds = 1;
  }
}

/// How a VM is to be split where it arrives.
void read_arrival(Reader& reader, MigrationPlan& plan) {
  reader.optional("whole", plan.whole, boolean());
  static_cast<void>(read_split(reader, plan.resident_budget_bytes, plan.sub_hosts));
  for (const char* key : {"resident_budget", "sub_hosts"}) {
    if (plan.whole && reader.given(key)) {
      reader.fail(key, "is of no use with whole");
    }
  }
}

}  // namespace

void read(Reader& reader, MigrationPlan& plan) {
  reader.required("vm", plan.vm, text(name_rule));
  reader.required("destination", plan.destination, text(name_rule));
  reader.optional(
      "mode", plan.mode,
      one_of<Mode>({{"precopy", Mode::kPrecopy}, {"postcopy", Mode::kPostcopy}, {"hybrid", Mode::kHybrid}}));
  reader.optional("downtime_limit", plan.downtime_limit, duration(milliseconds(1), milliseconds(3'600'000)));
  reader.optional("bandwidth_limit", plan.bandwidth_limit_bps,
                  rate_bps_or_none(kMegabitPerSecond, 10'000'000 * kMegabitPerSecond));
  reader.optional("reuse", plan.reuse,
                  one_of<Reuse>({{"auto", Reuse::kAuto}, {"never", Reuse::kNever}, {"require", Reuse::kRequire}}));
  reader.optional("verify", plan.verify,
                  one_of<Verify>({{"sent", Verify::kSent}, {"off", Verify::kOff}, {"full", Verify::kFull}}));
  reader.optional("on_no_convergence", plan.on_no_convergence,
                  one_of<OnNoConvergence>({{"abort", OnNoConvergence::kAbort},
                                           {"postcopy", OnNoConvergence::kPostcopy},
                                           {"stop-anyway", OnNoConvergence::kStopAnyway}}));
  reader.optional("rounds_max", plan.rounds_max, integer<std::uint32_t>(1, 1000));
  reader.optional("time_limit", plan.time_limit,
                  duration_or_none(milliseconds(1000), milliseconds(7LL * 24 * 3'600'000)));
  read_postcopy(reader, plan);
  read_arrival(reader, plan);
  reader.optional("encryption", plan.encryption,
                  one_of<Encryption>({{"aes-128-gcm", Encryption::kAes128Gcm},
                                      {"aes-256-gcm", Encryption::kAes256Gcm},
                                      {"none", Encryption::kNone}}));
}

Loaded<MigrationPlan> load_migration_plan(const std::filesystem::path& file, const PlanFlags& flags) {
  const auto content = file.empty() ? std::expected<std::string, Diagnostics>("") : internal::file_text(file);
  if (!content) {
    return std::unexpected(content.error());
  }
  MigrationPlan plan;
  Document document{.file = file.empty() ? kCommandLine : file.string()};
  auto diagnostics = internal::parse_document(
      *content, document, [&](Reader& reader) { read(reader, plan); }, table_of(flags));
  for (Diagnostic& diagnostic : diagnostics) {
    if (file.empty() || flags.contains(diagnostic.key)) {
      diagnostic.file = kCommandLine;
      diagnostic.line = 0;
    }
  }
  if (!diagnostics.empty()) {
    return std::unexpected(std::move(diagnostics));
  }
  return plan;
}

}  // namespace godwit::config
