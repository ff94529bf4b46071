#pragma once
// Publishes figures through DPDK's telemetry socket. Any thread publishes; `read` runs on the telemetry thread whenever
// somebody asks, until the Publication is gone: its end waits for a read under way. A path that DPDK refuses (taken,
// telemetry off) is not published, and nothing else happens. The socket is as open as DPDK makes it: parameters are
// hostile, and a `read` answers nothing for what it does not know.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace godwit::port {

using Figure = std::variant<std::uint64_t, std::string>;      // text: cut to what DPDK takes, 127 bytes
using Figures = std::vector<std::pair<std::string, Figure>>;  // names: letters, digits, '_'; at most 256
using Names = std::vector<std::string>;                       // at most 512
using Answer = std::variant<Figures, Names>;
/// `parameters`: what follows the comma of "/path,parameters"; nullopt: the asker is told null.
using ReadFigures = std::function<std::optional<Answer>(std::string_view parameters)>;

class Publication {
 public:
  Publication(const std::string& path, const std::string& help, ReadFigures read);
  Publication(Publication&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  Publication& operator=(Publication&&) = delete;
  ~Publication();

 private:
  std::string path_;
};

}  // namespace godwit::port
