#pragma once
// A migration plan, as in config/samples/plan.toml: what `godwitctl migrate -f` takes. Mirrors Plan of
// controlplane.proto. Rates in bit/s. Loading blocks on the file; any thread. On failure every mistake of file and
// flags comes back.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/time.h"
#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

enum class Mode : std::uint8_t { kPrecopy, kPostcopy, kHybrid };
enum class Reuse : std::uint8_t { kAuto, kNever, kRequire };
enum class Verify : std::uint8_t { kSent, kOff, kFull };
enum class OnNoConvergence : std::uint8_t { kAbort, kPostcopy, kStopAnyway };
enum class BackgroundOrder : std::uint8_t { kAroundFaults, kSequential, kHottestFirst };
enum class Encryption : std::uint8_t { kAes128Gcm, kAes256Gcm, kNone };

struct MigrationPlan {
  std::string vm;           // name or uuid
  std::string destination;  // host name
  Mode mode = Mode::kPrecopy;
  Duration downtime_limit = milliseconds(300);
  std::uint64_t bandwidth_limit_bps = 0;  // 0 = none
  Reuse reuse = Reuse::kAuto;
  Verify verify = Verify::kSent;
  OnNoConvergence on_no_convergence = OnNoConvergence::kAbort;
  std::uint32_t rounds_max = 30;
  Duration time_limit{};  // 0 = none
  // hybrid: when to switch, whichever comes first; both 0: on request only
  std::uint32_t postcopy_after_rounds = 0;  // 1 in hybrid, if the plan says neither
  Duration postcopy_after{};
  BackgroundOrder background_order = BackgroundOrder::kAroundFaults;
  Encryption encryption = Encryption::kAes128Gcm;
  // The main part of a VM that is split moves; one that is not and gets a budget is split first.
  bool whole = false;                       // it is gathered where it arrives
  std::uint64_t resident_budget_bytes = 0;  // there; 0: as it was
  std::vector<std::string> sub_hosts;       // of one that is split for it; none: chosen
};

/// What the command line says, by the key of plan.toml that it goes before; a value as there, without quotes. A list:
/// with commas, without brackets.
using PlanFlags = std::map<std::string, std::string>;

/// An empty `file`: the flags alone. Mistakes in a flag are those of a file that is called "command line".
[[nodiscard]] Loaded<MigrationPlan> load_migration_plan(const std::filesystem::path& file, const PlanFlags& flags);
void read(Reader& reader, MigrationPlan& plan);

}  // namespace godwit::config
