#pragma once
// How godwitctl shows things to people: tables and lines (json.h: to programs). Pure: protobuf messages in, text out;
// any thread; nothing fails. Text that came from outside never carries control characters to the terminal.

#include <cstdint>
#include <string>
#include <vector>

#include "controlplane.pb.h"

namespace godwit::ctl {

namespace api = godwit::controlplane::v1;
namespace dpapi = godwit::dataplane::v1;

/// Columns as wide as their widest cell, two spaces between; the first row is the head.
[[nodiscard]] std::string table(const std::vector<std::vector<std::string>>& rows);

[[nodiscard]] std::string id_text(const std::string& bytes);                              // "" for what is no id
[[nodiscard]] std::string age_text(std::int64_t then_unix_us, std::int64_t now_unix_us);  // "3 s ago", "never"
[[nodiscard]] std::string time_text(std::int64_t unix_us);                                // "2026-01-31 23:59:59 UTC"
[[nodiscard]] std::string span_text(std::int64_t us);  // "12.3 ms", "4.5 s", "3 min 2 s"
[[nodiscard]] std::string state_text(api::MigrationState state);
[[nodiscard]] std::string state_text(api::PageStoreState state);  // "CONNECTED"

[[nodiscard]] std::string hosts_table(const api::ListHostsResponse& response, std::int64_t now_unix_us);
/// One line for each certificate that is near its end or past it: the control plane's and the hosts'.
[[nodiscard]] std::vector<std::string> certificate_warnings(const api::ListHostsResponse& response,
                                                            std::int64_t now_unix_us);
[[nodiscard]] std::string vms_table(const api::ListVmsResponse& response);
/// All of one VM: above all which host has how much of its memory, how that goes, and what is wrong with it.
[[nodiscard]] std::string vm_text(const api::Vm& vm);
[[nodiscard]] std::string images_table(const api::ListImagesResponse& response);
[[nodiscard]] std::string migrations_table(const api::ListMigrationsResponse& response);

/// A line for each part: where it is to be followed, or why it stays.
[[nodiscard]] std::string drain_text(const api::DrainHostResponse& response);

/// STOP to RESUME; nothing to say (-1) before both are known.
[[nodiscard]] std::int64_t downtime_us(const api::Migration& migration);
/// One line, no longer than `columns`: bar, share, rate, round, pages left, estimated end.
[[nodiscard]] std::string progress_line(const api::Migration& migration, std::size_t columns);
/// What is said of a migration that has ended.
[[nodiscard]] std::string summary(const api::Migration& migration);

}  // namespace godwit::ctl
