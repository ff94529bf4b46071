#include "dataplane/port/telemetry.h"

#include <rte_telemetry.h>

#include <map>
#include <mutex>

namespace godwit::port {
namespace {

// DPDK hands its callback nothing but the path.
struct Readers {
  std::mutex mutex;
  std::map<std::string, std::function<Figures()>> by_path;
};

Readers& readers() {
  static Readers instance;
  return instance;
}

int answer(const char* path, const char* /*parameters*/, rte_tel_data* data) {
  std::function<Figures()> read;
  {
    const std::lock_guard lock(readers().mutex);
    const auto found = readers().by_path.find(path);
    if (found == readers().by_path.end()) {
      return -1;
    }
    read = found->second;
  }
  rte_tel_data_start_dict(data);
  for (const auto& [name, value] : read()) {
    rte_tel_data_add_dict_u64(data, name.c_str(), value);
  }
  return 0;
}

}  // namespace

bool publish(const std::string& path, const std::string& help, std::function<Figures()> read) {
  {
    const std::lock_guard lock(readers().mutex);
    readers().by_path[path] = std::move(read);
  }
  return rte_telemetry_register_cmd(path.c_str(), answer, help.c_str()) == 0;
}

}  // namespace godwit::port
