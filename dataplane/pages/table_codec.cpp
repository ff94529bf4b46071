#include "dataplane/pages/table_codec.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "dataplane/pages/bits_codec.h"
#include "dataplane/pages/deflate.h"
#include "dataplane/pages/piece.h"

namespace godwit::pages {

namespace {

// Segment: head byte (form, kDeflated flag), varint entries, then
//   kConstant: varint generation
//   kRuns:     for each run: varint generation, varint entries - 1
//   kLayers:   varint generations D >= 2, D varints; for each but the last a bit string (bits_codec.h) over the entries
//   not yet named kPacked:   varint generations D >= 2, D varints in rising order as differences; entries in
//   bit_width(D - 1) bits each kRaw:      entries as u32
// With kDeflated, what follows the entries is: varint bytes before, varint bytes after, deflate stream.
enum class TableForm : std::uint8_t { kConstant, kRuns, kLayers, kPacked, kRaw };
constexpr std::uint8_t kDeflated = 0x80;

/// A run of one generation at least this long is a segment of its own.
constexpr std::uint64_t kConstantRun = 16384;
constexpr std::uint64_t kSegmentEntriesMax = std::uint64_t{1} << 20;
/// No more runs a segment: bounds its bytes where nothing helps, and what deciding costs.
constexpr std::size_t kSegmentRunsMax = 4096;
constexpr std::size_t kLayersMax = 16;
constexpr std::size_t kPackedGenerationsMax = 1024;
/// Of kRuns: two varints a run, of at most 5 bytes and (kSegmentEntriesMax) 3.
constexpr std::size_t kTableSegmentBytesMax = kSegmentRunsMax * 8 + 32;
static_assert(kTableSegmentBytesMax + kPieceHeadBytesMax <= kPieceBytesMin);

struct Run {
  Generation generation;
  std::uint64_t count;
};

/// Entries from the first on that equal it.
std::uint64_t run_length(std::span<const Generation> entries) {
  const std::uint64_t pair = std::uint64_t{entries[0]} << 32 | entries[0];
  std::size_t at = 0;
  for (; at + 8 <= entries.size(); at += 8) {
    std::array<std::uint64_t, 4> next;
    std::memcpy(next.data(), entries.data() + at, sizeof next);
    if (((next[0] ^ pair) | (next[1] ^ pair) | (next[2] ^ pair) | (next[3] ^ pair)) != 0) break;
  }
  while (at < entries.size() && entries[at] == entries[0]) ++at;
  return at;
}

/// What one segment holds: its runs, its generations in rising order, and how many entries each has.
struct Contents {
  std::uint64_t count = 0;
  std::vector<Run> runs;
  std::vector<Generation> generations;
  std::vector<std::uint64_t> weights;
};

/// The runs of the next segment; where one generation goes on for long, that alone.
void take_runs(std::span<const Generation> entries, Contents& contents) {
  contents.count = 0;
  contents.runs.clear();
  while (contents.count < entries.size() && contents.runs.size() < kSegmentRunsMax) {
    const std::uint64_t length = run_length(entries.subspan(contents.count));
    const bool long_run = length >= kConstantRun;
    if (!contents.runs.empty() && (long_run || contents.count + length > kSegmentEntriesMax)) return;
    contents.runs.push_back({entries[contents.count], length});
    contents.count += length;
    if (long_run) return;
  }
}

void count_generations(Contents& contents) {
  auto& generations = contents.generations;
  generations.clear();
  for (const Run& run : contents.runs) generations.push_back(run.generation);
  std::ranges::sort(generations);
  generations.erase(std::unique(generations.begin(), generations.end()), generations.end());
  contents.weights.assign(generations.size(), 0);
  for (const Run& run : contents.runs) {
    const auto at = std::ranges::lower_bound(generations, run.generation) - generations.begin();
    contents.weights[static_cast<std::size_t>(at)] += run.count;
  }
}

void encode_runs(const Contents& contents, std::vector<std::byte>& out) {
  for (const Run& run : contents.runs) {
    put_varint(out, run.generation);
    put_varint(out, run.count - 1);
  }
}

/// Each layer says where one generation is, among the entries that no layer before has named. The most frequent comes
/// first, so that little is left for the others; the last has the rest.
void encode_layers(const Contents& contents, std::vector<std::byte>& out) {
  std::vector<std::size_t> order(contents.generations.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_sort(order, [&](auto a, auto b) { return contents.weights[a] > contents.weights[b]; });
  put_varint(out, order.size());
  for (const std::size_t i : order) put_varint(out, contents.generations[i]);
  std::vector<Run> left = contents.runs;
  std::uint64_t left_count = contents.count;
  for (std::size_t layer = 0; layer + 1 < order.size(); ++layer) {
    const Generation generation = contents.generations[order[layer]];
    Bitmap named(left_count);
    std::uint64_t at = 0;
    for (const Run& run : left) {
      if (run.generation == generation) named.set_range(at, run.count);
      at += run.count;
    }
    BitsEncoder encoder(named.words(), left_count, false);
    while (encoder.position() < left_count) encoder.append_segment(out);
    std::erase_if(left, [generation](const Run& run) { return run.generation == generation; });
    left_count -= contents.weights[order[layer]];
  }
}

void encode_packed(std::span<const Generation> entries, const Contents& contents, std::vector<std::byte>& out) {
  const auto& generations = contents.generations;
  put_varint(out, generations.size());
  Generation last = 0;
  for (const Generation generation : generations) {
    put_varint(out, generation - last);
    last = generation;
  }
  const auto width = static_cast<unsigned>(std::bit_width(generations.size() - 1));
  std::uint64_t pending = 0;
  unsigned pending_bits = 0;
  for (const Generation entry : entries) {
    const auto index = static_cast<std::uint64_t>(std::ranges::lower_bound(generations, entry) - generations.begin());
    pending |= index << pending_bits;
    for (pending_bits += width; pending_bits >= 8; pending_bits -= 8, pending >>= 8) put_byte(out, pending & 255);
  }
  if (pending_bits != 0) put_byte(out, pending);
}

/// Appends the smallest form of a segment of more than one run.
void append_mixed(std::span<const Generation> entries, Contents& contents, bool deflated, std::vector<std::byte>& out) {
  count_generations(contents);
  const std::size_t distinct = contents.generations.size();
  const auto keep_smaller = [](TableForm& form, std::vector<std::byte>& best, TableForm other_form,
                               std::vector<std::byte>& other) {
    if (other.size() < best.size()) {
      best.swap(other);
      form = other_form;
    }
    other.clear();
  };
  TableForm form = TableForm::kRuns;
  std::vector<std::byte> best;
  std::vector<std::byte> other;
  encode_runs(contents, best);
  if (distinct <= kLayersMax) {
    encode_layers(contents, other);
    keep_smaller(form, best, TableForm::kLayers, other);
  }
  const std::uint64_t packed_bytes =
      contents.count * static_cast<unsigned>(std::bit_width(distinct - 1)) / 8 + 2 * distinct;
  if (distinct <= kPackedGenerationsMax && packed_bytes < best.size()) {
    encode_packed(entries, contents, other);
    keep_smaller(form, best, TableForm::kPacked, other);
  }
  if (entries.size_bytes() < best.size()) {
    put_bytes(other, entries.data(), entries.size_bytes());
    keep_smaller(form, best, TableForm::kRaw, other);
  }
  const std::size_t before = best.size();
  const bool shrunk = deflated && before > 64 && deflate(best, before - before / 32, other);
  put_byte(out, static_cast<std::uint8_t>(form) | (shrunk ? kDeflated : 0));
  put_varint(out, contents.count);
  if (shrunk) {
    put_varint(out, before);
    put_varint(out, other.size());
    best.swap(other);
  }
  put_bytes(out, best.data(), best.size());
}

using Outcome = std::optional<DecodeError>;

/// A varint that is a generation.
std::expected<Generation, DecodeError> read_generation(ByteReader& reader) {
  const auto value = reader.varint();
  if (!value) return std::unexpected(DecodeError::kTruncated);
  if (*value > kUnknownGeneration) return std::unexpected(DecodeError::kBadHead);
  return static_cast<Generation>(*value);
}

Outcome decode_runs(ByteReader& reader, std::span<Generation> out) {
  while (!out.empty()) {
    const auto generation = read_generation(reader);
    if (!generation) return generation.error();
    const auto more = reader.varint();
    if (!more) return DecodeError::kTruncated;
    if (*more >= out.size()) return DecodeError::kBadCount;
    std::ranges::fill(out.first(*more + 1), *generation);
    out = out.subspan(*more + 1);
  }
  return std::nullopt;
}

struct Stretch {
  std::uint64_t first, count;
};

/// Gives `generation` to the entries that `named` says, of those in `left`; the others stay in `left`.
/// False: they are in more parts than an encoder takes into a segment, which bounds what forged bytes can make us
/// allocate.
bool take_layer(const Bitmap& named, Generation generation, std::vector<Stretch>& left, std::span<Generation> out) {
  std::vector<Stretch> still;
  std::uint64_t base = 0;  // of the stretch, in the layer's numbering
  for (const Stretch& stretch : left) {
    const std::uint64_t end = base + stretch.count;
    for (std::uint64_t at = base; at < end;) {
      const bool set = named.test(at);
      const std::uint64_t stop = std::min(end, set ? named.next_clear(at) : named.next_set(at));
      const Stretch part{stretch.first + (at - base), stop - at};
      if (set) {
        std::ranges::fill(out.subspan(part.first, part.count), generation);
      } else {
        if (still.size() == kSegmentRunsMax) return false;
        still.push_back(part);
      }
      at = stop;
    }
    base = end;
  }
  left = std::move(still);
  return true;
}

Outcome decode_layers(ByteReader& reader, std::span<Generation> out) {
  const auto distinct = reader.varint();
  if (!distinct) return DecodeError::kTruncated;
  if (*distinct < 2 || *distinct > kLayersMax) return DecodeError::kBadHead;
  std::array<Generation, kLayersMax> generations{};
  for (std::size_t i = 0; i < *distinct; ++i) {
    const auto generation = read_generation(reader);
    if (!generation) return generation.error();
    generations[i] = *generation;
  }
  std::vector<Stretch> left{{0, out.size()}};
  std::uint64_t left_count = out.size();
  for (std::size_t i = 0; i + 1 < *distinct; ++i) {
    Bitmap named(left_count);
    if (const auto error = decode_bits(reader, named.words(), left_count)) return error;
    if (!take_layer(named, generations[i], left, out)) return DecodeError::kBadCount;
    left_count -= named.count();
  }
  for (const Stretch& stretch : left) {
    std::ranges::fill(out.subspan(stretch.first, stretch.count), generations[*distinct - 1]);
  }
  return std::nullopt;
}

Outcome decode_packed(ByteReader& reader, std::span<Generation> out) {
  const auto distinct = reader.varint();
  if (!distinct) return DecodeError::kTruncated;
  if (*distinct < 2 || *distinct > kPackedGenerationsMax) return DecodeError::kBadHead;
  std::array<Generation, kPackedGenerationsMax> generations{};
  std::uint64_t last = 0;
  for (std::size_t i = 0; i < *distinct; ++i) {
    const auto difference = read_generation(reader);
    if (!difference) return difference.error();
    last += *difference;
    if (last > kUnknownGeneration) return DecodeError::kBadHead;
    generations[i] = static_cast<Generation>(last);
  }
  const auto width = static_cast<unsigned>(std::bit_width(*distinct - 1));
  const auto packed = reader.bytes((out.size() * width + 7) / 8);
  if (!packed) return DecodeError::kTruncated;
  BitReader indices(*packed);
  for (Generation& entry : out) {
    const std::uint64_t index = indices.peek() & ((std::uint64_t{1} << width) - 1);
    if (index >= *distinct) return DecodeError::kBadHead;
    entry = generations[index];
    indices.skip(width);
  }
  return std::nullopt;
}

Outcome decode_raw(ByteReader& reader, std::span<Generation> out) {
  const auto raw = reader.bytes(out.size_bytes());
  if (!raw) return DecodeError::kTruncated;
  std::memcpy(out.data(), raw->data(), raw->size());
  return std::nullopt;
}

Outcome decode_form(ByteReader& reader, TableForm form, std::span<Generation> out) {
  switch (form) {
    case TableForm::kConstant: {
      const auto generation = read_generation(reader);
      if (!generation) return generation.error();
      std::ranges::fill(out, *generation);
      return std::nullopt;
    }
    case TableForm::kRuns:
      return decode_runs(reader, out);
    case TableForm::kLayers:
      // Bounds what a few forged bytes can make us allocate.
      return out.size() <= kSegmentEntriesMax ? decode_layers(reader, out) : Outcome(DecodeError::kBadCount);
    case TableForm::kPacked:
      return decode_packed(reader, out);
    case TableForm::kRaw:
      return decode_raw(reader, out);
  }
  return DecodeError::kBadHead;
}

Outcome decode_deflated(ByteReader& reader, TableForm form, std::span<Generation> out) {
  const auto before = reader.varint();
  const auto after = reader.varint();
  if (!before || !after) return DecodeError::kTruncated;
  if (*before > kTableSegmentBytesMax) return DecodeError::kBadDeflate;
  const auto stream = reader.bytes(*after);
  if (!stream) return DecodeError::kTruncated;
  std::vector<std::byte> bytes(static_cast<std::size_t>(*before));
  if (!inflate(*stream, bytes)) return DecodeError::kBadDeflate;
  ByteReader inflated(bytes);
  if (const auto error = decode_form(inflated, form, out)) return error;
  return inflated.left().empty() ? std::nullopt : Outcome(DecodeError::kTrailing);
}

/// One segment into the front of `out`; returns its entries.
std::expected<std::uint64_t, DecodeError> decode_segment(ByteReader& reader, std::span<Generation> out) {
  const auto head = reader.byte();
  const auto count = reader.varint();
  if (!head || !count) return std::unexpected(DecodeError::kTruncated);
  if (*count == 0 || *count > out.size()) return std::unexpected(DecodeError::kBadCount);
  const auto form = static_cast<TableForm>(*head & ~kDeflated);
  const auto entries = out.first(static_cast<std::size_t>(*count));
  const auto error =
      (*head & kDeflated) != 0 ? decode_deflated(reader, form, entries) : decode_form(reader, form, entries);
  if (error) return std::unexpected(*error);
  return *count;
}

}  // namespace

PageNumber encode_table_piece(const GenerationTable& table, PageNumber first, const CodecOptions& options,
                              std::vector<std::byte>& out) {
  GW_ASSERT(options.bytes_max >= kPieceBytesMin);
  GW_ASSERT(first <= table.size());
  const auto entries = table.entries();
  std::vector<std::byte> body;
  std::vector<std::byte> segment;
  Contents contents;
  PageNumber at = first;
  while (at < table.size()) {
    take_runs(entries.subspan(at), contents);
    segment.clear();
    if (contents.runs.size() == 1) {
      put_byte(segment, static_cast<std::uint8_t>(TableForm::kConstant));
      put_varint(segment, contents.count);
      put_varint(segment, contents.runs[0].generation);
    } else {
      append_mixed(entries.subspan(at, contents.count), contents, options.deflate(), segment);
    }
    if (body.size() + segment.size() + kPieceHeadBytesMax > options.bytes_max) break;
    put_bytes(body, segment.data(), segment.size());
    at += contents.count;
  }
  GW_ASSERT(at > first || first == table.size());
  put_piece(out, first, at - first, body);
  return at;
}

std::expected<PageNumber, DecodeError> decode_table_piece(std::span<const std::byte> piece, PageNumber first,
                                                          GenerationTable& out) {
  ByteReader reader(piece);
  const auto count = read_piece_head(reader, first, out.size());
  if (!count) return std::unexpected(count.error());
  auto left = out.entries().subspan(first, *count);
  while (!left.empty()) {
    const auto decoded = decode_segment(reader, left);
    if (!decoded) return std::unexpected(decoded.error());
    left = left.subspan(*decoded);
  }
  if (!reader.left().empty()) return std::unexpected(DecodeError::kTrailing);
  return first + *count;
}

}  // namespace godwit::pages
