#pragma once
// Reads one TOML table into a struct: each key is one line (name, where to, how to parse). The reader notes what is
// wrong with its place and goes on, so that all mistakes of a file come back at once; keys that nobody asked for are
// mistakes too. Only the .cpp files of config/ include this. One thread a document. Failure never leaves parse_text():
// see Loaded.

#include <toml++/toml.h>

#include <concepts>
#include <cstddef>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/diagnostic.h"

namespace godwit::config {

/// All that one file collects while it is read.
struct Document {
  std::string file;
  Diagnostics diagnostics;
  std::set<std::string> asked;  // every key that can be given, without indices: "port.mtu"
  bool files_too = false;       // files that it names are to be looked at

  void report(const toml::source_region& where, std::string key, std::string message);
};

/// A value that was given, and where.
struct Field {
  const toml::node& node;
  std::string key;
  Document& document;

  void fail(std::string message) const { document.report(node.source(), key, std::move(message)); }
  /// "expected <what>, found a string": always nothing, so that a parser can return it.
  std::nullopt_t wrong_type(std::string_view expected) const;
};

/// A parser turns a field into a value, or reports and returns nothing.
template <class P, class T>
concept ParserOf = requires(const P& parse, const Field& field) {
  { parse(field) } -> std::convertible_to<std::optional<T>>;
};

class Reader {
 public:
  Reader(Document& document, const toml::table& table, std::string path);
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// Leaves `out` as it is when the key is not given or wrong. True: given and right.
  template <class T, ParserOf<T> P>
  bool optional(std::string_view key, T& out, const P& parse) {
    const toml::node* node = find(key);
    return node != nullptr && store(Field{*node, path_of(key), document_}, out, parse);
  }
  template <class T, ParserOf<T> P>
  bool required(std::string_view key, T& out, const P& parse) {
    const bool ok = optional(key, out, parse);
    if (!given(key)) {
      report_missing(key);
    }
    return ok;
  }

  /// A sub-table "[key]"; not given, it reads as an empty one, so that its own required keys are missed by name.
  template <class F>
  void table(std::string_view key, const F& read_table) {
    Reader reader(document_, *sub_table(key), path_of(key));
    read_table(reader);
    reader.finish();
  }
  /// Tables "[[key]]" or [{...}, ...]: read_table(reader) for each.
  template <class F>
  void tables(std::string_view key, std::size_t count_min, std::size_t count_max, const F& read_table) {
    std::size_t index = 0;
    for (const toml::table* table : sub_tables(key, count_min, count_max)) {
      Reader reader(document_, *table, path_of(key) + "[" + std::to_string(index++) + "]");
      read_table(reader);
      reader.finish();
    }
  }

  [[nodiscard]] bool given(std::string_view key) const { return table_.contains(key); }
  /// Are mistakes in the files that are named to be reported too?
  [[nodiscard]] bool files_too() const { return document_.files_too; }
  /// A mistake that only shows when several keys are seen together; at the key if given, else at the table.
  void fail(std::string_view key, std::string message);
  /// Reports every key that was not asked for.
  void finish();

 private:
  template <class T, class P>
  static bool store(const Field& field, T& out, const P& parse) {
    std::optional<T> value = parse(field);
    if (!value) {
      return false;
    }
    out = std::move(*value);
    return true;
  }
  const toml::node* find(std::string_view key);
  const toml::table* sub_table(std::string_view key);
  std::vector<const toml::table*> sub_tables(std::string_view key, std::size_t count_min, std::size_t count_max);
  void report_missing(std::string_view key);
  [[nodiscard]] std::string path_of(std::string_view key) const;

  Document& document_;
  const toml::table& table_;
  std::string path_;
  std::set<std::string, std::less<>> asked_;
};

/// The one of `known` that a person most likely meant, or "".
[[nodiscard]] std::string closest(std::string_view given, const std::set<std::string, std::less<>>& known);

namespace internal {

/// Parses and calls `read_root`; returns all mistakes, in order of their place. `document` comes back with what was
/// asked. `overriding` goes before the text's keys.
[[nodiscard]] Diagnostics parse_document(std::string_view text, Document& document,
                                         const std::function<void(Reader&)>& read_root,
                                         const toml::table& overriding = {});

template <class T>
[[nodiscard]] Loaded<T> parse_document_as(std::string_view text, Document& document) {
  T out;
  auto diagnostics = parse_document(text, document, [&out](Reader& reader) { read(reader, out); });
  if (!diagnostics.empty()) {
    return std::unexpected(std::move(diagnostics));
  }
  return out;
}
[[nodiscard]] std::expected<std::string, Diagnostics> file_text(const std::filesystem::path& file);

}  // namespace internal

/// `asked`, if given, receives every key that a file of this kind may hold. Files that the text names are not looked
/// at.
template <class T>
[[nodiscard]] Loaded<T> parse_text(std::string_view text, const std::string& file,
                                   std::set<std::string>* asked = nullptr) {
  Document document{.file = file};
  auto loaded = internal::parse_document_as<T>(text, document);
  if (asked != nullptr) {
    *asked = std::move(document.asked);
  }
  return loaded;
}

template <class T>
[[nodiscard]] Loaded<T> load_file(const std::filesystem::path& file) {
  const auto content = internal::file_text(file);
  if (!content) {
    return std::unexpected(content.error());
  }
  Document document{.file = file.string(), .files_too = true};
  return internal::parse_document_as<T>(*content, document);
}

}  // namespace godwit::config
