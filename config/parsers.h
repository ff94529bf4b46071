#pragma once
// How a value of a configuration file becomes a value of ours: one parser a kind, each a function object for
// Reader::optional() and required(). Pure but for what they report to the document. Only the .cpp files of config/
// include this.

#include <fmt/format.h>

#include <array>
#include <concepts>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/ip_address.h"
#include "base/log.h"
#include "base/time.h"
#include "base/uuid.h"
#include "config/common.h"
#include "config/reader.h"

namespace godwit::config {

template <class T>
using Parser = std::function<std::optional<T>(const Field&)>;

/// "" if the text is allowed, else the phrase that tells what is wrong with it.
using Rule = std::function<std::string(std::string_view)>;

Parser<bool> boolean();
/// Any string without control characters for which `rule` returns "".
Parser<std::string> text(Rule rule = {});
Parser<std::uint64_t> bytes(std::uint64_t min, std::uint64_t max);
Parser<Duration> duration(Duration min, Duration max);
/// 0 = none, or at least `min`.
Parser<Duration> duration_or_none(Duration min, Duration max);
Parser<std::uint64_t> rate_bps_or_none(std::uint64_t min_bps, std::uint64_t max_bps);
Parser<std::filesystem::path> absolute_path();
/// A path that fits into a sockaddr_un.
Parser<std::filesystem::path> socket_path();
Parser<Id128> uuid();
Parser<IpAddress> ip_address();
/// A host's own address: unicast, with prefix length.
Parser<IpPrefix> host_address();
/// "2-3,5", 4, or [2, 3]: ascending and distinct.
Parser<std::vector<std::uint32_t>> cpu_list();
Parser<LogLevel> log_level();
Parser<Tracker> tracker();

/// A name that is also used as a file name: 1 to 63 letters, digits, '.', '_', '-', the first a letter or digit.
std::string name_rule(std::string_view text);
/// "host:port", "[fd00::1]:port" or "unix:/path".
std::string grpc_target_rule(std::string_view text);
/// "127.0.0.1:9464" or "[::1]:9464": an IP address of this host, or of all of its, and a port.
std::string socket_address_rule(std::string_view text);

template <std::integral T>
Parser<T> integer(T min, T max) {
  return [min, max](const Field& field) -> std::optional<T> {
    const auto* value = field.node.as_integer();
    if (value == nullptr) {
      return field.wrong_type("an integer");
    }
    if (!std::in_range<T>(value->get()) || static_cast<T>(value->get()) < min || static_cast<T>(value->get()) > max) {
      field.fail(fmt::format("is {}, must be {} to {}", value->get(), min, max));
      return std::nullopt;
    }
    return static_cast<T>(value->get());
  };
}

template <class E>
using Choices = std::vector<std::pair<std::string_view, E>>;

template <class E>
Parser<E> one_of(Choices<E> choices) {
  return [choices = std::move(choices)](const Field& field) -> std::optional<E> {
    std::string names;
    for (const auto& [name, value] : choices) {
      names += (names.empty() ? "\"" : ", \"") + std::string(name) + "\"";
    }
    const auto* given = field.node.as_string();
    if (given == nullptr) {
      return field.wrong_type("one of " + names);
    }
    for (const auto& [name, value] : choices) {
      if (given->get() == name) {
        return value;
      }
    }
    field.fail(fmt::format("is \"{}\", must be one of {}", given->get(), names));
    return std::nullopt;
  };
}

/// An array; each element that is wrong is reported with its index.
template <class T>
Parser<std::vector<T>> list(Parser<T> element, std::size_t count_min, std::size_t count_max) {
  return [element = std::move(element), count_min, count_max](const Field& field) -> std::optional<std::vector<T>> {
    const auto* array = field.node.as_array();
    if (array == nullptr) {
      return field.wrong_type("an array");
    }
    bool good = array->size() >= count_min && array->size() <= count_max;
    if (!good) {
      field.fail(fmt::format("has {} entries, must have {} to {}", array->size(), count_min, count_max));
    }
    std::vector<T> out;
    for (std::size_t i = 0; i < std::min(array->size(), count_max); ++i) {
      auto value = element(Field{*array->get(i), fmt::format("{}[{}]", field.key, i), field.document});
      good = good && value.has_value();
      if (value) {
        out.push_back(std::move(*value));
      }
    }
    return good ? std::optional(std::move(out)) : std::nullopt;
  };
}

/// The tables that several files share.
void read_log(Reader& reader, LogConfig& config);
void read_tracking(Reader& reader, TrackingConfig& config);
void read_metrics(Reader& reader, MetricsConfig& config);
/// `insecure` and the table [tls], one of which must be given when `needed`. `own` is who this program must be by its
/// certificate; the files are looked at when the document is one itself.
void read_security(Reader& reader, SecurityConfig& config, bool needed, const pki::Identity& own);
/// Why a connection cannot be, and the command that makes certificates.
std::string unprotected_text(const pki::Identity& own);

}  // namespace godwit::config
