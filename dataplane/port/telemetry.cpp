#include "dataplane/port/telemetry.h"

#include <rte_telemetry.h>

#include <algorithm>
#include <map>
#include <mutex>

namespace godwit::port {
namespace {

// DPDK hands its callback nothing but the path, and never lets go of a command.
struct Readers {
  std::mutex mutex;
  std::map<std::string, ReadFigures> by_path;
};

Readers& readers() {
  static Readers instance;
  return instance;
}

std::string fitting(const std::string& text) { return text.substr(0, RTE_TEL_MAX_STRING_LEN - 1); }

void put(const Figures& figures, rte_tel_data* data) {
  rte_tel_data_start_dict(data);
  for (const auto& [name, figure] : figures) {
    if (const auto* number = std::get_if<std::uint64_t>(&figure)) {
      rte_tel_data_add_dict_u64(data, name.c_str(), *number);
    } else {
      rte_tel_data_add_dict_string(data, name.c_str(), fitting(std::get<std::string>(figure)).c_str());
    }
  }
}

void put(const Names& names, rte_tel_data* data) {
  rte_tel_data_start_array(data, RTE_TEL_STRING_VAL);
  const std::size_t count = std::min<std::size_t>(names.size(), RTE_TEL_MAX_ARRAY_ENTRIES);
  for (std::size_t i = 0; i < count; ++i) {
    rte_tel_data_add_array_string(data, fitting(names[i]).c_str());
  }
}

int answer(const char* path, const char* parameters, rte_tel_data* data) {
  const std::lock_guard lock(readers().mutex);
  const auto found = readers().by_path.find(path);
  if (found == readers().by_path.end()) {
    return -1;
  }
  const auto read = found->second(parameters != nullptr ? parameters : "");
  if (!read) {
    return -1;
  }
  std::visit([data](const auto& what) { put(what, data); }, *read);
  return 0;
}

}  // namespace

Publication::Publication(const std::string& path, const std::string& help, ReadFigures read) : path_(path) {
  {
    const std::lock_guard lock(readers().mutex);
    readers().by_path[path] = std::move(read);
  }
  rte_telemetry_register_cmd(path.c_str(), answer, help.c_str());
}

Publication::~Publication() {
  const std::lock_guard lock(readers().mutex);
  readers().by_path.erase(path_);
}

}  // namespace godwit::port
