// Frames of the device-state stream between two bridges. Input: pairs of length and bytes: how the stream was cut.
// Properties: however a stream is cut, the same frames come out and the same error; live marks never go back nor beyond
// the data; once failed, always failed.

#include "qemu-bridge/device-state/stream_frame.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

using bridge::FrameParser;

struct Parsed {
  std::vector<std::byte> data;
  std::vector<std::uint64_t> live;
  std::optional<FrameParser::Error> error;
  bool at_end = true;
  bool operator==(const Parsed&) const = default;
};

Parsed parse(const std::vector<Bytes>& pieces) {
  Parsed parsed;
  FrameParser parser({[&](Bytes bytes) {
                        FUZZ_CHECK(!bytes.empty() && bytes.size() <= bridge::kDataBytesMax);
                        parsed.data.insert(parsed.data.end(), bytes.begin(), bytes.end());
                      },
                      [&](std::uint64_t count) {
                        FUZZ_CHECK(count <= parsed.data.size());
                        FUZZ_CHECK(parsed.live.empty() || count >= parsed.live.back());
                        parsed.live.push_back(count);
                      }});
  for (const Bytes piece : pieces) {
    if (const auto consumed = parser.consume(piece); !consumed) {
      FUZZ_CHECK(!parsed.error || *parsed.error == consumed.error());
      parsed.error = consumed.error();
      FUZZ_CHECK(!bridge::text_of(consumed.error()).empty());
    } else {
      FUZZ_CHECK(!parsed.error);
    }
  }
  FUZZ_CHECK(parser.data_bytes() == parsed.data.size());
  parsed.at_end = parsed.error || parser.at_frame_end();
  return parsed;
}

void put(Output& out, std::string_view stream, std::size_t piece_bytes) {
  for (; !stream.empty(); stream.remove_prefix(std::min(piece_bytes, stream.size()))) {
    const auto piece = stream.substr(0, piece_bytes);
    out.number(static_cast<std::uint8_t>(piece.size())).text(piece);
  }
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  std::vector<Bytes> pieces;
  std::vector<std::byte> whole;
  while (!input.empty()) {
    pieces.push_back(input.bytes(input.number<std::uint8_t>()));
    whole.insert(whole.end(), pieces.back().begin(), pieces.back().end());
  }
  FUZZ_CHECK(parse(pieces) == parse({whole}));
}

std::vector<Seed> seeds() {
  std::string stream;
  const std::vector<std::byte> data(40, std::byte{0x42});
  stream += bridge::encode_data_frame(data);
  stream += bridge::encode_live_frame(40);
  stream += bridge::encode_data_frame(std::span(data).first(1));
  std::vector<Seed> out;
  for (const std::size_t piece_bytes : {1U, 7U, 200U}) {
    Output pieces;
    put(pieces, stream, piece_bytes);
    out.push_back({"by-" + std::to_string(piece_bytes), pieces.take()});
  }
  return out;
}

}  // namespace godwit::fuzz
