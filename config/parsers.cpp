#include "config/parsers.h"

#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <climits>

#include "config/units.h"

namespace godwit::config {

namespace {

constexpr std::uint32_t kCpuMax = 1023;
constexpr std::size_t kSocketPathLengthMax = sizeof(sockaddr_un::sun_path) - 1;

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// A quantity is text with a unit, or the integer 0.
std::optional<std::string> quantity_text(const Field& field, std::string_view example) {
  if (const auto* number = field.node.as_integer(); number != nullptr && number->get() == 0) {
    return "0";
  }
  if (const auto* string = field.node.as_string()) {
    return string->get();
  }
  return field.wrong_type(fmt::format("a string with a unit, such as \"{}\"", example));
}

template <class T>
bool in_range_or_report(const Field& field, T value, T min, T max, const std::function<std::string(T)>& format) {
  if (value >= min && value <= max) {
    return true;
  }
  field.fail(fmt::format("is {}, must be {} to {}", format(value), format(min), format(max)));
  return false;
}

std::string path_problem(std::string_view path, std::size_t length_max) {
  if (!path.starts_with('/')) {
    return fmt::format("is \"{}\", must be an absolute path", path);
  }
  if (path.size() > length_max) {
    return fmt::format("is {} characters long, at most {} are possible", path.size(), length_max);
  }
  if (std::ranges::any_of(path, is_control)) {
    return "has control characters";
  }
  return {};
}

Parser<std::filesystem::path> path_parser(std::size_t length_max) {
  return [length_max](const Field& field) -> std::optional<std::filesystem::path> {
    const auto* given = field.node.as_string();
    if (given == nullptr) {
      return field.wrong_type("a path");
    }
    if (auto problem = path_problem(given->get(), length_max); !problem.empty()) {
      field.fail(std::move(problem));
      return std::nullopt;
    }
    auto path = std::filesystem::path(given->get()).lexically_normal();
    return path.has_filename() ? path : path.parent_path();
  };
}

template <class T>
Parser<T> text_parser(std::string_view what, std::optional<T> (*parse)(std::string_view)) {
  return [what, parse](const Field& field) -> std::optional<T> {
    const auto* given = field.node.as_string();
    if (given == nullptr) {
      return field.wrong_type(what);
    }
    auto value = parse(given->get());
    if (!value) {
      field.fail(fmt::format("is \"{}\", must be {}", given->get(), what));
    }
    return value;
  };
}

std::optional<std::uint32_t> parse_number(std::string_view text, std::uint32_t max) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value <= max ? std::optional(value) : std::nullopt;
}

/// "2-3,5"
std::optional<std::vector<std::uint32_t>> parse_cpu_text(std::string_view text) {
  std::vector<std::uint32_t> cpus;
  while (true) {
    const auto comma = text.find(',');
    const auto part = text.substr(0, comma);
    const auto dash = part.find('-');
    const auto first = parse_number(part.substr(0, dash), kCpuMax);
    const auto last = dash == std::string_view::npos ? first : parse_number(part.substr(dash + 1), kCpuMax);
    if (!first || !last || *first > *last) {
      return std::nullopt;
    }
    for (auto cpu = *first; cpu <= *last; ++cpu) {
      cpus.push_back(cpu);
    }
    if (comma == std::string_view::npos) {
      break;
    }
    text.remove_prefix(comma + 1);
  }
  std::ranges::sort(cpus);
  const bool distinct = std::ranges::adjacent_find(cpus) == cpus.end();
  return distinct ? std::optional(cpus) : std::nullopt;
}

bool is_host_of_target(std::string_view host) {
  if (host.starts_with('[') && host.ends_with(']')) {
    const auto address = IpAddress::parse(host.substr(1, host.size() - 2));
    return address && address->is_ipv6();
  }
  return !host.empty() && host.size() <= 253 && !host.starts_with('-') &&
         std::ranges::all_of(host, [](char c) { return is_letter(c) || is_digit(c) || c == '.' || c == '-'; });
}

}  // namespace

Parser<bool> boolean() {
  return [](const Field& field) -> std::optional<bool> {
    const auto* value = field.node.as_boolean();
    if (value == nullptr) {
      return field.wrong_type("true or false");
    }
    return value->get();
  };
}

Parser<std::string> text(Rule rule) {
  return [rule = std::move(rule)](const Field& field) -> std::optional<std::string> {
    const auto* given = field.node.as_string();
    if (given == nullptr) {
      return field.wrong_type("a string");
    }
    std::string problem = std::ranges::any_of(given->get(), is_control) ? "has control characters" : "";
    if (problem.empty() && rule) {
      problem = rule(given->get());
    }
    if (!problem.empty()) {
      field.fail(std::move(problem));
      return std::nullopt;
    }
    return given->get();
  };
}

Parser<std::uint64_t> bytes(std::uint64_t min, std::uint64_t max) {
  return [min, max](const Field& field) -> std::optional<std::uint64_t> {
    const auto given = quantity_text(field, "4GiB");
    if (!given) {
      return std::nullopt;
    }
    const auto value = parse_bytes(*given);
    if (!value) {
      field.fail(fmt::format("\"{}\" {}", *given, value.error()));
      return std::nullopt;
    }
    const bool good = in_range_or_report<std::uint64_t>(field, *value, min, max, format_bytes);
    return good ? std::optional(*value) : std::nullopt;
  };
}

Parser<Duration> duration(Duration min, Duration max) {
  return [min, max](const Field& field) -> std::optional<Duration> {
    const auto given = quantity_text(field, "300ms");
    if (!given) {
      return std::nullopt;
    }
    const auto value = parse_duration(*given);
    if (!value) {
      field.fail(fmt::format("\"{}\" {}", *given, value.error()));
      return std::nullopt;
    }
    return in_range_or_report<Duration>(field, *value, min, max, format_duration) ? std::optional(*value)
                                                                                  : std::nullopt;
  };
}

Parser<Duration> duration_or_none(Duration min, Duration max) {
  return [min, max](const Field& field) -> std::optional<Duration> {
    const auto* string = field.node.as_string();
    const auto* number = field.node.as_integer();
    const bool none = (string != nullptr && string->get() == "0") || (number != nullptr && number->get() == 0);
    return none ? std::optional(Duration{}) : duration(min, max)(field);
  };
}

Parser<std::uint64_t> rate_bps_or_none(std::uint64_t min_bps, std::uint64_t max_bps) {
  return [min_bps, max_bps](const Field& field) -> std::optional<std::uint64_t> {
    const auto given = quantity_text(field, "1Gbit/s");
    if (!given) {
      return std::nullopt;
    }
    const auto value = parse_rate_bps(*given);
    if (!value) {
      field.fail(fmt::format("\"{}\" {}", *given, value.error()));
      return std::nullopt;
    }
    const bool good =
        *value == 0 || in_range_or_report<std::uint64_t>(field, *value, min_bps, max_bps, format_rate_bps);
    return good ? std::optional(*value) : std::nullopt;
  };
}

Parser<std::filesystem::path> absolute_path() { return path_parser(PATH_MAX - 1); }

Parser<std::filesystem::path> socket_path() { return path_parser(kSocketPathLengthMax); }

Parser<Id128> uuid() {
  return [](const Field& field) -> std::optional<Id128> {
    const auto id = text_parser<Id128>("a UUID such as \"3f2a9c1e-5b7d-4e80-9a61-c0d4e5f60718\"", Id128::parse)(field);
    if (id && id->is_nil()) {
      field.fail("is all zero, which names nothing: draw one with uuidgen");
      return std::nullopt;
    }
    return id;
  };
}

Parser<IpAddress> ip_address() {
  return text_parser<IpAddress>("an IPv4 or IPv6 address such as \"10.0.0.254\"", IpAddress::parse);
}

Parser<IpPrefix> host_address() {
  return [](const Field& field) -> std::optional<IpPrefix> {
    const auto prefix =
        text_parser<IpPrefix>("an address with its prefix length such as \"10.0.0.1/24\"", IpPrefix::parse)(field);
    if (prefix && (prefix->address.is_unspecified() || prefix->address.is_multicast() || prefix->length == 0)) {
      field.fail(fmt::format("is {}, which no single host can have", prefix->text()));
      return std::nullopt;
    }
    return prefix;
  };
}

Parser<std::vector<std::uint32_t>> cpu_list() {
  return [](const Field& field) -> std::optional<std::vector<std::uint32_t>> {
    std::string given;
    if (const auto* string = field.node.as_string()) {
      given = string->get();
    } else if (const auto* number = field.node.as_integer()) {
      given = std::to_string(number->get());
    } else {
      return field.wrong_type("CPU numbers such as \"2-3,5\"");
    }
    auto cpus = parse_cpu_text(given);
    if (!cpus) {
      field.fail(fmt::format("is \"{}\", must be distinct CPU numbers of 0 to {} such as \"2-3,5\"", given, kCpuMax));
    }
    return cpus;
  };
}

Parser<LogLevel> log_level() {
  Choices<LogLevel> choices;
  for (const auto name : kLogLevelNames) {
    choices.emplace_back(name, *parse_log_level(name));
  }
  return one_of(std::move(choices));
}

Parser<Tracker> tracker() {
  Choices<Tracker> choices;
  for (std::size_t i = 0; i < kTrackerNames.size(); ++i) {
    choices.emplace_back(kTrackerNames[i], static_cast<Tracker>(i));
  }
  return one_of(std::move(choices));
}

std::string name_rule(std::string_view text) {
  const auto allowed = [](char c) { return is_letter(c) || is_digit(c) || c == '.' || c == '_' || c == '-'; };
  if (text.empty() || text.size() > 63 || !std::ranges::all_of(text, allowed) ||
      !(is_letter(text[0]) || is_digit(text[0]))) {
    return fmt::format("is \"{}\", must be 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit",
                       text);
  }
  return {};
}

std::string grpc_target_rule(std::string_view text) {
  if (is_unix_target(text)) {
    return path_problem(text.substr(5), kSocketPathLengthMax);
  }
  const auto colon = text.rfind(':');
  const auto port = colon == std::string_view::npos ? std::nullopt : parse_number(text.substr(colon + 1), 65535);
  if (!port || *port == 0 || !is_host_of_target(text.substr(0, colon))) {
    return fmt::format("is \"{}\", must be \"host:port\", \"[IPv6 address]:port\" or \"unix:/path\"", text);
  }
  return {};
}

std::string socket_address_rule(std::string_view text) {
  const auto colon = text.rfind(':');
  const auto port = colon == std::string_view::npos ? std::nullopt : parse_number(text.substr(colon + 1), 65535);
  std::string_view host = text.substr(0, colon);
  const bool brackets = host.starts_with('[') && host.ends_with(']') && host.size() > 2;
  const auto address = IpAddress::parse(brackets ? host.substr(1, host.size() - 2) : host);
  if (!port || *port == 0 || !address || address->is_ipv6() != brackets || address->is_multicast()) {
    return fmt::format("is \"{}\", must be an address and a port such as \"127.0.0.1:9464\" or \"[::1]:9464\"", text);
  }
  return {};
}

void read_log(Reader& reader, LogConfig& config) {
  reader.table("log", [&](Reader& log) { log.optional("level", config.level, log_level()); });
}

void read_tracking(Reader& reader, TrackingConfig& config) {
  reader.table("tracking", [&](Reader& tracking) { tracking.optional("tracker", config.tracker, tracker()); });
}

void read_metrics(Reader& reader, MetricsConfig& config) {
  reader.table("metrics",
               [&](Reader& metrics) { metrics.optional("listen", config.listen, text(socket_address_rule)); });
}

std::string unprotected_text(const pki::Identity& own) {
  const std::string command =
      own.role == pki::Role::kHost && !own.host.empty() ? "pki init " + own.host : "pki init HOST...";
  return fmt::format(
      "has no [tls], and gRPC must not cross a network in clear: `godwitctl {}` makes certificates; or "
      "say insecure = true where every machine on the network is trusted",
      command);
}

void read_security(Reader& reader, SecurityConfig& config, bool needed, const pki::Identity& own) {
  const bool insecure_known = reader.optional("insecure", config.insecure, boolean()) || !reader.given("insecure");
  const bool given = reader.given("tls");
  if (given && config.insecure) {
    reader.fail("insecure", "is true although there is a [tls]: remove one of them");
  }
  if (needed && !given && insecure_known && !config.insecure) {
    reader.fail("tls", unprotected_text(own));
  }
  pki::TlsFiles files;
  bool complete = given;
  reader.table("tls", [&](Reader& tls) {
    const auto read_path = [&](std::string_view key, std::filesystem::path& path) {
      const bool good = given ? tls.required(key, path, absolute_path()) : tls.optional(key, path, absolute_path());
      complete = complete && good;
    };
    read_path("ca", files.ca);
    read_path("certificate", files.certificate);
    read_path("key", files.key);
    if (!complete || !tls.files_too() || (own.role == pki::Role::kHost && own.host.empty())) {
      return;
    }
    for (auto& mistake : pki::tls_mistakes(files, own)) {
      using File = pki::TlsMistake::File;
      tls.fail(mistake.file == File::kCa    ? "ca"
               : mistake.file == File::kKey ? "key"
                                            : "certificate",
               std::move(mistake.text));
    }
  });
  if (complete) {
    config.tls = std::move(files);
  }
}

}  // namespace godwit::config
