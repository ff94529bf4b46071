// godwit-perf: runs one benchmark, prints its table, writes its figures as JSON.

#include <fmt/core.h>
#include <sys/utsname.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "perf/benchmark.h"

namespace {

using godwit::perf::Result;

std::string cpu_model() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

void add_environment(Result& result) {
  utsname system{};
  ::uname(&system);
  std::string load;
  std::ifstream loadavg("/proc/loadavg");
  std::getline(loadavg, load);
  result.environment("cpu", cpu_model());
  result.environment("cpus", std::to_string(std::thread::hardware_concurrency()));
  result.environment("kernel", system.release);
  result.environment("compiler", "g++ " __VERSION__);
  result.environment("loadavg_before", load);
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      i == 0 ? fmt::print("{:<{}}", row[i], widths[i]) : fmt::print("  {:>{}}", row[i], widths[i]);
    }
    fmt::print("\n");
  }
}

/// "a.b" becomes {"a": {"b": ...}}.
template <class Map>
nlohmann::json nested(const Map& values) {
  nlohmann::json root = nlohmann::json::object();
  for (const auto& [key, value] : values) {
    std::string pointer = "/" + key;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    root[nlohmann::json::json_pointer(pointer)] = value;
  }
  return root;
}

bool write_json(const std::string& path, const std::string& name, const Result& result) {
  const nlohmann::json document = {{"benchmark", name},
                                   {"metrics", nested(result.metrics())},
                                   {"ratios", nested(result.ratios())},
                                   {"environment", result.environment()}};
  std::ofstream file(path);
  file << document.dump(2) << '\n';
  return file.flush().good();
}

int list() {
  for (const auto& [name, benchmark] : godwit::perf::registry()) fmt::print("{:<16}{}\n", name, benchmark.summary);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string name;
  godwit::perf::Options options;
  CLI::App app("Measures godwit beside its rivals. `godwit-perf list` names the benchmarks.");
  app.add_option("name", name, "benchmark, or `list`")->required();
  app.add_option("--json", options.json_path, "write the figures to this file");
  app.add_flag("--quick", options.quick, "small inputs: checks that the benchmark works, measures little");
  app.allow_extras();
  CLI11_PARSE(app, argc, argv);
  options.arguments = app.remaining();

  if (name == "list") return list();
  const auto found = godwit::perf::registry().find(name);
  if (found == godwit::perf::registry().end()) {
    fmt::print(stderr, "godwit-perf: no benchmark `{}`; `godwit-perf list` names them\n", name);
    return 2;
  }
  if (!options.arguments.empty() && found->second.takes_arguments == godwit::perf::TakesArguments::kNo) {
    fmt::print(stderr, "godwit-perf {}: takes no `{}`\n", name, options.arguments.front());
    return 2;
  }
  Result result;
  add_environment(result);
  if (const auto done = found->second.run(options, result); !done) {
    fmt::print(stderr, "godwit-perf {}: {}\n", name, done.error());
    return 1;
  }
  print_table(result.rows());
  for (const auto& [key, value] : result.ratios()) fmt::print("ratios.{} = {:.3f}\n", key, value);
  if (!options.json_path.empty() && !write_json(options.json_path, name, result)) {
    fmt::print(stderr, "godwit-perf: cannot write {}\n", options.json_path);
    return 1;
  }
  return 0;
}
