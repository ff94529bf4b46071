#include "dataplane/wire/messages.h"

#include <algorithm>
#include <string_view>
#include <type_traits>

namespace godwit::wire {
namespace {

// The type byte is the alternative's index plus one, so that a buffer of zeros is no message.
constexpr std::array kNames = {
    "Hello",        "HelloReply",    "TablePiece",   "RoundBegin", "RoundAck",  "DeviceState",  "DeviceStateEnd",
    "AllPlaced",    "Verified",      "ChunkDigests", "Abort",      "Keepalive", "PageSetPiece", "PageSetAck",
    "AllAnnounced", "DemandRequest", "AllSent",      "Complete",   "Completed", "Resume",       "StoredPages"};
static_assert(kNames.size() == std::variant_size_v<Message>);

class Writer {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_unsigned_v<T>);
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<std::byte>(value >> (8 * i) & 0xff));
    }
  }
  void raw(std::span<const std::byte> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void text(std::string_view text) { raw(std::as_bytes(std::span(text))); }
  void digest(const pages::PageDigest& digest) {
    number(digest.low);
    number(digest.high);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads past the end give zero and are remembered.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  template <class T>
  T number() {
    const auto bytes = raw(sizeof(T));
    T value = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      value = static_cast<T>(value | static_cast<T>(static_cast<T>(bytes[i]) << (8 * i)));
    }
    return value;
  }
  std::span<const std::byte> raw(std::size_t count) {
    if (count > rest_.size()) {
      short_ = true;
      rest_ = {};
      return {};
    }
    const auto result = rest_.first(count);
    rest_ = rest_.subspan(count);
    return result;
  }
  std::span<const std::byte> rest() { return raw(rest_.size()); }
  std::string text(std::size_t count) {
    const auto bytes = raw(count);
    std::string result(bytes.size(), '\0');
    std::transform(bytes.begin(), bytes.end(), result.begin(), [](std::byte b) { return static_cast<char>(b); });
    return result;
  }
  pages::PageDigest digest() {
    const auto low = number<std::uint64_t>();
    return {low, number<std::uint64_t>()};
  }
  [[nodiscard]] bool exact() const { return !short_ && rest_.empty(); }
  [[nodiscard]] bool cut() const { return short_; }

 private:
  std::span<const std::byte> rest_;
  bool short_ = false;
};

std::string printable(std::string_view text, std::size_t bytes_max) {
  std::string result(text.substr(0, bytes_max));
  std::replace_if(
      result.begin(), result.end(), [](char c) { return c < 0x20 || c == 0x7f; }, '?');
  return result;
}

using Bad = std::unexpected<std::string>;
using Result = std::expected<Message, std::string>;

void write(Writer& out, const Hello& m) {
  GW_ASSERT(!m.regions.empty() && m.regions.size() <= kRegionsMax);
  out.number(m.version);
  out.number(static_cast<std::uint8_t>(m.verify));
  out.number(static_cast<std::uint8_t>(m.mode));
  out.number(static_cast<std::uint8_t>(m.keeps_stores));
  out.raw(m.id);
  out.number(m.epoch_base);
  out.number(m.epoch_count);
  out.number(static_cast<std::uint8_t>(m.regions.size()));
  for (const RegionShape& region : m.regions) {
    GW_ASSERT(region.name.size() <= kRegionNameBytesMax);
    out.number(region.pages);
    out.number(static_cast<std::uint8_t>(region.name.size()));
    out.text(region.name);
  }
}
Result read(Reader& in, Hello m) {
  m.version = in.number<std::uint16_t>();
  if (m.version != kTransferVersion) {
    // Nothing behind the version of another protocol can be read: the receiver compares it and says so.
    in.rest();
    return m;
  }
  const auto verify = in.number<std::uint8_t>();
  if (verify > static_cast<std::uint8_t>(VerifyLevel::kFull)) {
    return Bad("verify level out of range");
  }
  m.verify = static_cast<VerifyLevel>(verify);
  const auto mode = in.number<std::uint8_t>();
  if (mode > static_cast<std::uint8_t>(TransferMode::kHybrid)) {
    return Bad("mode out of range");
  }
  m.mode = static_cast<TransferMode>(mode);
  const auto keeps_stores = in.number<std::uint8_t>();
  if (keeps_stores > 1 || (keeps_stores == 1 && m.mode == TransferMode::kPrecopy)) {
    return Bad("keeps_stores is neither 0 nor 1, or 1 in pre-copy");
  }
  m.keeps_stores = keeps_stores == 1;
  const auto id = in.raw(m.id.size());
  std::copy(id.begin(), id.end(), m.id.begin());
  m.epoch_base = in.number<std::uint32_t>();
  m.epoch_count = in.number<std::uint32_t>();
  const std::size_t count = in.number<std::uint8_t>();
  if (!in.cut() && (count == 0 || count > kRegionsMax)) {
    return Bad("number of regions out of range");
  }
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count && !in.cut(); ++i) {
    RegionShape region;
    region.pages = in.number<std::uint64_t>();
    region.name = in.text(in.number<std::uint8_t>());
    if (!in.cut() && (region.pages == 0 || region.pages > kPagesMax - total)) {
      return Bad("pages of a region out of range");
    }
    total += region.pages;
    m.regions.push_back(std::move(region));
  }
  return m;
}

void write(Writer& out, const HelloReply& m) {
  out.number(static_cast<std::uint8_t>(m.has_retained));
  out.number(static_cast<std::uint8_t>(m.can_page));
  out.number(m.budget_pages);
}
Result read(Reader& in, HelloReply m) {
  const auto retained = in.number<std::uint8_t>();
  const auto page = in.number<std::uint8_t>();
  m.has_retained = retained == 1;
  m.can_page = page == 1;
  m.budget_pages = in.number<std::uint64_t>();
  return retained <= 1 && page <= 1 && m.budget_pages <= kPagesMax ? Result(m) : Bad("flag or budget out of range");
}

void write(Writer& out, const TablePiece& m) {
  GW_ASSERT(!m.bytes.empty() && m.bytes.size() <= kPayloadBytesMax);
  out.number(static_cast<std::uint8_t>(m.last));
  out.raw(m.bytes);
}
Result read(Reader& in, TablePiece m) {
  const auto flag = in.number<std::uint8_t>();
  m.last = flag == 1;
  m.bytes = in.rest();
  return flag <= 1 && !m.bytes.empty() ? Result(m) : Bad("bad flag or no bytes");
}

void write(Writer& out, const RoundBegin& m) {
  out.number(m.round);
  out.number(m.pages_before);
}
Result read(Reader& in, RoundBegin m) {
  m.round = in.number<std::uint32_t>();
  m.pages_before = in.number<std::uint64_t>();
  return m.round != 0 ? Result(m) : Bad("round is 0");
}

void write(Writer& out, const RoundAck& m) { out.number(m.round); }
Result read(Reader& in, RoundAck m) {
  m.round = in.number<std::uint32_t>();
  return m;
}

void write(Writer& out, const DeviceState& m) {
  GW_ASSERT(!m.bytes.empty() && m.bytes.size() <= kPayloadBytesMax);
  out.raw(m.bytes);
}
Result read(Reader& in, DeviceState m) {
  m.bytes = in.rest();
  return !m.bytes.empty() ? Result(m) : Bad("no bytes");
}

void write(Writer& out, const AllPlaced& m) {
  out.number(m.round);
  out.number(m.pages);
  out.number(m.pages_checked);
  out.digest(m.digest);
}
Result read(Reader& in, AllPlaced m) {
  m.round = in.number<std::uint32_t>();
  m.pages = in.number<std::uint64_t>();
  m.pages_checked = in.number<std::uint64_t>();
  m.digest = in.digest();
  return m;
}

void write(Writer& out, const ChunkDigests& m) {
  GW_ASSERT(!m.digests.empty() && m.digests.size() <= kChunkDigestsMax);
  out.number(static_cast<std::uint8_t>(m.last));
  out.number(m.first_chunk);
  out.number(static_cast<std::uint16_t>(m.digests.size()));
  for (const pages::PageDigest& digest : m.digests) {
    out.digest(digest);
  }
}
Result read(Reader& in, ChunkDigests m) {
  const auto flag = in.number<std::uint8_t>();
  m.last = flag == 1;
  m.first_chunk = in.number<std::uint64_t>();
  const std::size_t count = in.number<std::uint16_t>();
  if (!in.cut() && (flag > 1 || count == 0 || count > kChunkDigestsMax)) {
    return Bad("bad flag or number of digests");
  }
  for (std::size_t i = 0; i < count && !in.cut(); ++i) {
    m.digests.push_back(in.digest());
  }
  return m;
}

void write(Writer& out, const Abort& m) { out.text(printable(m.text, kAbortTextBytesMax)); }
Result read(Reader& in, Abort m) {
  const auto bytes = in.rest();
  if (bytes.size() > kAbortTextBytesMax) {
    return Bad("text too long");
  }
  m.text = printable({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, kAbortTextBytesMax);
  return m;
}

bool of_a_round(PageSet kind) { return kind == PageSet::kMissing || kind == PageSet::kZero; }

void write(Writer& out, const PageSetPiece& m) {
  GW_ASSERT(!m.bytes.empty() && m.bytes.size() <= kPayloadBytesMax && (m.round != 0) == of_a_round(m.kind));
  out.number(m.round);
  out.number(static_cast<std::uint8_t>(m.kind));
  out.number(static_cast<std::uint8_t>(m.last));
  out.raw(m.bytes);
}
Result read(Reader& in, PageSetPiece m) {
  m.round = in.number<std::uint32_t>();
  const auto kind = in.number<std::uint8_t>();
  const auto flag = in.number<std::uint8_t>();
  m.kind = static_cast<PageSet>(kind);
  m.last = flag == 1;
  m.bytes = in.rest();
  if (kind > static_cast<std::uint8_t>(PageSet::kApart) || (m.round != 0) != of_a_round(m.kind)) {
    return Bad("kind out of range, or of the wrong round");
  }
  return flag <= 1 && !m.bytes.empty() ? Result(m) : Bad("bad flag or no bytes");
}

void write(Writer& out, const PageSetAck& m) { out.number(m.round); }
Result read(Reader& in, PageSetAck m) {
  m.round = in.number<std::uint32_t>();
  return m.round != 0 ? Result(m) : Bad("round is 0");
}

void write(Writer& out, const AllAnnounced& m) {
  out.number(m.round);
  out.number(m.pages);
  out.number(m.last_round);
  out.number(m.pages_checked);
  out.digest(m.digest);
}
Result read(Reader& in, AllAnnounced m) {
  m.round = in.number<std::uint32_t>();
  m.pages = in.number<std::uint64_t>();
  m.last_round = in.number<std::uint32_t>();
  m.pages_checked = in.number<std::uint64_t>();
  m.digest = in.digest();
  return m.round != 0 && m.last_round >= m.round && m.last_round - m.round <= 1 ? Result(m) : Bad("round out of range");
}

void write(Writer& out, const DemandRequest& m) {
  GW_ASSERT(!m.pages.empty() && m.pages.size() <= kDemandPagesMax);
  out.number(static_cast<std::uint8_t>(m.again));
  out.number(static_cast<std::uint16_t>(m.pages.size()));
  for (const std::uint64_t page : m.pages) {
    out.number(page);
  }
}
Result read(Reader& in, DemandRequest m) {
  const auto flag = in.number<std::uint8_t>();
  m.again = flag == 1;
  const std::size_t count = in.number<std::uint16_t>();
  if (!in.cut() && (flag > 1 || count == 0 || count > kDemandPagesMax)) {
    return Bad("bad flag or number of pages");
  }
  for (std::size_t i = 0; i < count && !in.cut(); ++i) {
    m.pages.push_back(in.number<std::uint64_t>());
    if (m.pages.back() >= kPagesMax) {
      return Bad("page out of range");
    }
  }
  return m;
}

void write(Writer& out, const Complete& m) {
  out.number(m.pages);
  out.digest(m.digest);
}
Result read(Reader& in, Complete m) {
  m.pages = in.number<std::uint64_t>();
  m.digest = in.digest();
  return m.pages <= kPagesMax ? Result(m) : Bad("number of pages out of range");
}

void write(Writer& out, const Completed& m) { out.number(static_cast<std::uint8_t>(m.equal)); }
Result read(Reader& in, Completed m) {
  const auto flag = in.number<std::uint8_t>();
  m.equal = flag == 1;
  return flag <= 1 ? Result(m) : Bad("flag is neither 0 nor 1");
}

void write(Writer& out, const Resume& m) {
  out.number(m.version);
  out.raw(m.id);
}
Result read(Reader& in, Resume m) {
  m.version = in.number<std::uint16_t>();
  if (m.version != kTransferVersion) {
    in.rest();  // as with Hello
    return m;
  }
  const auto id = in.raw(m.id.size());
  std::copy(id.begin(), id.end(), m.id.begin());
  return m;
}

void write(Writer& out, const StoredPages& m) {
  GW_ASSERT(m.pages.size() <= kStoredPagesMax && (m.last || !m.pages.empty()));
  out.number(static_cast<std::uint8_t>(m.last));
  out.number(m.version_next);
  out.number(static_cast<std::uint16_t>(m.pages.size()));
  for (const StoredPage& stored : m.pages) {
    out.number(stored.page);
    out.number(stored.version);
    out.number(stored.sub);
    out.number(stored.hash);
    out.number(static_cast<std::uint8_t>(stored.written));
  }
}
Result read(Reader& in, StoredPages m) {
  const auto flag = in.number<std::uint8_t>();
  m.last = flag == 1;
  m.version_next = in.number<std::uint64_t>();
  const std::size_t count = in.number<std::uint16_t>();
  if (!in.cut() && (flag > 1 || count > kStoredPagesMax || (count == 0 && !m.last) || m.version_next == 0 ||
                    m.version_next > kStoreVersionMax)) {
    return Bad("bad flag, number of pages or version");
  }
  for (std::size_t i = 0; i < count && !in.cut(); ++i) {
    StoredPage stored;
    stored.page = in.number<std::uint64_t>();
    stored.version = in.number<std::uint64_t>();
    stored.sub = in.number<std::uint16_t>();
    stored.hash = in.number<std::uint64_t>();
    const auto written = in.number<std::uint8_t>();
    stored.written = written == 1;
    const bool ascending = m.pages.empty() || stored.page > m.pages.back().page;
    if (!in.cut() && (!ascending || stored.page >= kPagesMax || stored.version == 0 ||
                      stored.version >= m.version_next || written > 1)) {
      return Bad("a page out of order or range, or its version or flag");
    }
    m.pages.push_back(stored);
  }
  return m;
}

void write(Writer&, const DeviceStateEnd&) {}
void write(Writer&, const Verified&) {}
void write(Writer&, const Keepalive&) {}
void write(Writer&, const AllSent&) {}
Result read(Reader&, AllSent m) { return m; }
Result read(Reader&, DeviceStateEnd m) { return m; }
Result read(Reader&, Verified m) { return m; }
Result read(Reader&, Keepalive m) { return m; }

template <std::size_t I>
Result read_alternative(Reader& in) {
  return read(in, std::variant_alternative_t<I, Message>{});
}

template <std::size_t... I>
Result read_type(Reader& in, std::size_t type, std::index_sequence<I...>) {
  using Function = Result (*)(Reader&);
  static constexpr std::array<Function, sizeof...(I)> kFunctions = {read_alternative<I>...};
  return kFunctions[type](in);
}

}  // namespace

const char* message_name(const Message& message) { return kNames[message.index()]; }

std::vector<std::byte> encode_message(const Message& message) {
  Writer out;
  out.number(static_cast<std::uint8_t>(message.index() + 1));
  std::visit([&](const auto& m) { write(out, m); }, message);
  std::vector<std::byte> bytes = out.take();
  GW_ASSERT(bytes.size() <= kMessageBytesMax);
  return bytes;
}

std::expected<Message, std::string> decode_message(std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() > kMessageBytesMax) {
    return Bad("a message of " + std::to_string(bytes.size()) + " bytes");
  }
  const auto type = static_cast<std::size_t>(bytes[0]);
  if (type == 0 || type > kNames.size()) {
    return Bad("a message of unknown type " + std::to_string(type));
  }
  const std::string name = kNames[type - 1];
  Reader in(bytes.subspan(1));
  Result result = read_type(in, type - 1, std::make_index_sequence<std::variant_size_v<Message>>{});
  if (!result) {
    return Bad(name + ": " + result.error());
  }
  if (!in.exact()) {
    return Bad(name + (in.cut() ? ": cut short" : ": bytes after its end"));
  }
  return result;
}

}  // namespace godwit::wire
