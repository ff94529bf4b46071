#include "qemu-bridge/qmp/json.h"

namespace godwit::bridge {

const Json* json_member(const Json& value, std::string_view name) {
  if (!value.is_object()) {
    return nullptr;
  }
  const auto found = value.find(std::string(name));
  return found == value.end() ? nullptr : &*found;
}

std::optional<std::string> json_string(const Json& value, std::string_view name) {
  const Json* member = json_member(value, name);
  if (member == nullptr || !member->is_string()) {
    return std::nullopt;
  }
  return *member->get_ptr<const Json::string_t*>();
}

std::optional<std::int64_t> json_int(const Json& value, std::string_view name) {
  const Json* member = json_member(value, name);
  if (member == nullptr || !member->is_number_integer()) {
    return std::nullopt;
  }
  if (member->is_number_unsigned() && *member->get_ptr<const Json::number_unsigned_t*>() > INT64_MAX) {
    return std::nullopt;
  }
  return member->get<std::int64_t>();
}

std::optional<std::uint64_t> json_uint(const Json& value, std::string_view name) {
  const Json* member = json_member(value, name);
  if (member == nullptr || !member->is_number_integer()) {
    return std::nullopt;
  }
  if (!member->is_number_unsigned() && *member->get_ptr<const Json::number_integer_t*>() < 0) {
    return std::nullopt;
  }
  return member->get<std::uint64_t>();
}

std::optional<bool> json_bool(const Json& value, std::string_view name) {
  const Json* member = json_member(value, name);
  if (member == nullptr || !member->is_boolean()) {
    return std::nullopt;
  }
  return *member->get_ptr<const Json::boolean_t*>();
}

std::optional<Json> parse_json(std::string_view text) {
  bool too_deep = false;
  const auto check_depth = [&too_deep](int depth, Json::parse_event_t, const Json&) {
    too_deep = too_deep || depth > kJsonDepthMax;
    return !too_deep;
  };
  Json parsed = Json::parse(text, check_depth, false);
  if (parsed.is_discarded() || too_deep) {
    return std::nullopt;
  }
  return parsed;
}

std::string dump_json(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace godwit::bridge
