// The benchmarks of whole systems (real QEMU, daemons, network namespaces) are Python programs in perf/system; these
// entries become them. The program gets our arguments, writes the JSON itself, and its exit status is ours.

#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "perf/benchmark.h"

namespace godwit::perf {
namespace {

std::expected<void, std::string> become(const std::string& module, const Options& options) {
  if (::geteuid() != 0) return std::unexpected("needs root: it makes network namespaces and attaches to QEMU");
  if (options.quick) return std::unexpected("has no --quick; its own options make it short (perf/README.md)");
  std::error_code error;
  if (!std::filesystem::exists(fmt::format("{}/perf/system/{}.py", GODWIT_SOURCE_ROOT, module), error)) {
    return std::unexpected(fmt::format("no source tree at {}, from which it runs", GODWIT_SOURCE_ROOT));
  }
  std::vector<std::string> arguments{"python3", "-B", "-m", "perf.system." + module};
  if (!options.json_path.empty()) {
    arguments.insert(arguments.end(), {"--json", std::filesystem::absolute(options.json_path).string()});
  }
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  ::setenv("GODWIT_BUILD", GODWIT_BUILD_ROOT, 0);
  if (::chdir(GODWIT_SOURCE_ROOT) != 0) {
    return std::unexpected(fmt::format("chdir {}: {}", GODWIT_SOURCE_ROOT, std::strerror(errno)));
  }
  ::execvp(pointers[0], pointers.data());
  return std::unexpected(fmt::format("python3: {}", std::strerror(errno)));
}

const Registration kReturnTrip{
    "return-trip", "a guest goes away, writes, and comes home: bytes, time, blackout, beside stock QEMU (root)",
    [](const Options& options, Result&) { return become("return_trip", options); }, TakesArguments::kYes};
const Registration kFirstMove{"first-move", "a guest moves with nothing to reuse, beside stock QEMU's pre-copy (root)",
                              [](const Options& options, Result&) { return become("first_move", options); },
                              TakesArguments::kYes};
const Registration kPostcopy{
    "postcopy", "a guest moves by post-copy: blackout, blocked time, total, faults, beside stock QEMU's (root)",
    [](const Options& options, Result&) { return become("postcopy", options); }, TakesArguments::kYes};
const Registration kPostcopyReturn{
    "postcopy-return", "a guest comes home by post-copy: pages, time, beside stock QEMU (root)",
    [](const Options& options, Result&) { return become("postcopy_return", options); }, TakesArguments::kYes};
const Registration kTracking{"tracking", "a guest's memory write speed with and without tracking (root)",
                             [](const Options& options, Result&) { return become("tracking", options); },
                             TakesArguments::kYes};
const Registration kSplit{
    "split",
    "a guest goes to a host with room for half of it, beside one with room for all, and QEMU's into swap (root)",
    [](const Options& options, Result&) { return become("split", options); }, TakesArguments::kYes};
const Registration kHotFits{
    "hot-fits", "speed of a split guest whose working set fits the budget, beside a whole one (root)",
    [](const Options& options, Result&) { return become("hot_fits", options); }, TakesArguments::kYes};

}  // namespace
}  // namespace godwit::perf
