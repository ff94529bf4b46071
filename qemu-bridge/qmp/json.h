#pragma once
// Typed access to JSON that comes from outside (QMP, the journal): every getter says "not there or of another type"
// with an empty optional, nothing throws. Any thread; no state.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace godwit::bridge {

using Json = nlohmann::json;

/// Member `name` of an object, or null when `value` is no object or has no such member.
const Json* json_member(const Json& value, std::string_view name);

std::optional<std::string> json_string(const Json& value, std::string_view name);
std::optional<std::int64_t> json_int(const Json& value, std::string_view name);
std::optional<std::uint64_t> json_uint(const Json& value, std::string_view name);
std::optional<bool> json_bool(const Json& value, std::string_view name);

/// Copying and writing a document take stack for each level; what we read has fewer than ten.
inline constexpr int kJsonDepthMax = 64;

/// Parses one document; empty on anything that is not JSON, or nested deeper than kJsonDepthMax.
std::optional<Json> parse_json(std::string_view text);

/// One line of text; bytes that are not UTF-8 are replaced instead of throwing.
std::string dump_json(const Json& value);

}  // namespace godwit::bridge
