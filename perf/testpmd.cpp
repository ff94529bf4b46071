#include "perf/testpmd.h"
namespace godwit::perf {
std::expected<double, std::string> testpmd_memif_gbps(const std::string&, std::uint32_t,
                                                      const std::array<std::string, 2>&) {
  return std::unexpected("later");
}
}  // namespace godwit::perf
