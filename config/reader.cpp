#include "config/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/atomic_file.h"
#include "base/log.h"

namespace godwit::config {

namespace {

constexpr std::size_t kFileBytesMax = 1U << 20;

std::string_view type_name(toml::node_type type) {
  switch (type) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a decimal number";
    case toml::node_type::boolean:
      return "true or false";
    default:
      return "a date or time";
  }
}

/// Edits (insert, remove, replace, swap of neighbours) from a to b.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) {
    last[j] = j;
  }
  for (std::size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        now[j] = std::min(now[j], before[j - 2] + 1);
      }
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

/// "port[0].mtu" -> "port.mtu"
std::string without_indices(std::string_view key) {
  std::string out;
  bool in_index = false;
  for (const char c : key) {
    in_index = in_index || c == '[';
    if (!in_index) {
      out += c;
    }
    in_index = in_index && c != ']';
  }
  return out;
}

}  // namespace

void Document::report(const toml::source_region& where, std::string key, std::string message) {
  diagnostics.push_back(Diagnostic{.file = file,
                                   .line = static_cast<std::uint32_t>(where.begin.line),
                                   .column = static_cast<std::uint32_t>(where.begin.column),
                                   .key = printable(key),
                                   .message = printable(message)});
}

std::nullopt_t Field::wrong_type(std::string_view expected) const {
  fail(fmt::format("expected {}, found {}", expected, type_name(node.type())));
  return std::nullopt;
}

std::string closest(std::string_view given, const std::set<std::string, std::less<>>& known) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, given.size() / 3) + 1;
  // Longer text is no typing mistake, and its comparison would cost.
  if (given.size() > 64) {
    return best;
  }
  for (const auto& candidate : known) {
    if (const auto distance = edit_distance(given, candidate); distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

Reader::Reader(Document& document, const toml::table& table, std::string path)
    : document_(document), table_(table), path_(std::move(path)) {}

std::string Reader::path_of(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

const toml::node* Reader::find(std::string_view key) {
  asked_.emplace(key);
  document_.asked.insert(without_indices(path_of(key)));
  return table_.get(key);
}

void Reader::report_missing(std::string_view key) {
  document_.report(table_.source(), path_of(key), "is missing, and has no default");
}

void Reader::fail(std::string_view key, std::string message) {
  const toml::node* node = table_.get(key);
  document_.report(node != nullptr ? node->source() : table_.source(), path_of(key), std::move(message));
}

const toml::table* Reader::sub_table(std::string_view key) {
  static const toml::table kEmpty;
  asked_.emplace(key);
  const toml::node* node = table_.get(key);
  if (node == nullptr) {
    return &kEmpty;
  }
  if (!node->is_table()) {
    std::ignore = Field{*node, path_of(key), document_}.wrong_type(fmt::format("a table: write [{}]", path_of(key)));
    return &kEmpty;
  }
  return node->as_table();
}

std::vector<const toml::table*> Reader::sub_tables(std::string_view key, std::size_t count_min, std::size_t count_max) {
  asked_.emplace(key);
  const toml::node* node = table_.get(key);
  if (node == nullptr) {
    if (count_min > 0) {
      document_.report(table_.source(), path_of(key), fmt::format("is missing: write [[{}]]", path_of(key)));
    }
    return {};
  }
  const Field field{*node, path_of(key), document_};
  const toml::array* array = node->as_array();
  if (array == nullptr) {
    std::ignore = field.wrong_type(fmt::format("an array of tables: write [[{}]]", path_of(key)));
    return {};
  }
  if (array->size() < count_min || array->size() > count_max) {
    field.fail(count_min == count_max
                   ? fmt::format("is there {} times, must be {}", array->size(), count_min)
                   : fmt::format("is there {} times, must be {} to {}", array->size(), count_min, count_max));
  }
  std::vector<const toml::table*> out;
  for (std::size_t i = 0; i < std::min(array->size(), count_max); ++i) {
    const toml::node& element = *array->get(i);
    if (element.is_table()) {
      out.push_back(element.as_table());
    } else {
      std::ignore = Field{element, fmt::format("{}[{}]", path_of(key), i), document_}.wrong_type("a table");
    }
  }
  return out;
}

void Reader::finish() {
  for (const auto& [key, node] : table_) {
    if (asked_.contains(key.str())) {
      continue;
    }
    const auto meant = closest(key.str(), asked_);
    document_.report(
        key.source(), path_of(key.str()),
        meant.empty() ? std::string("is no known key") : fmt::format("is no known key; did you mean {}?", meant));
  }
}

namespace internal {

Diagnostics parse_document(std::string_view text, Document& document, const std::function<void(Reader&)>& read_root,
                           const toml::table& overriding) {
  try {
    toml::table root = toml::parse(text, document.file);
    for (const auto& [key, value] : overriding) {
      root.insert_or_assign(key, value);
    }
    Reader reader(document, root, "");
    read_root(reader);
    reader.finish();
  } catch (const toml::parse_error& error) {
    document.report(error.source(), "", std::string(error.description()));
  }
  std::ranges::stable_sort(document.diagnostics, {}, [](const Diagnostic& d) { return std::tuple(d.line, d.column); });
  return std::move(document.diagnostics);
}

std::expected<std::string, Diagnostics> file_text(const std::filesystem::path& file) {
  auto content = read_file(file, kFileBytesMax);
  if (!content) {
    return std::unexpected(Diagnostics{
        Diagnostic{.kind = Diagnostic::Kind::kUnreadable, .file = file.string(), .message = content.error().text()}});
  }
  return std::move(*content);
}

}  // namespace internal

}  // namespace godwit::config
