// The messages of a migration. Input: one message.
// Properties: what is accepted encodes to the same bytes again (but for what the decoder is meant to leave out: text
// made printable, the rest of a Hello or Resume of another version); a byte less never gives the same message.

#include "dataplane/wire/messages.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

Seed seed(std::string name, const wire::Message& message) { return {std::move(name), wire::encode_message(message)}; }

}  // namespace

void run(Bytes input) {
  const auto message = wire::decode_message(input);
  if (!message) {
    FUZZ_CHECK(!message.error().empty());
    return;
  }
  if (const auto* hello = std::get_if<wire::Hello>(&*message);
      hello != nullptr && hello->version != wire::kTransferVersion) {
    return;
  }
  if (const auto* resume = std::get_if<wire::Resume>(&*message);
      resume != nullptr && resume->version != wire::kTransferVersion) {
    return;
  }
  const std::vector<std::byte> encoded = wire::encode_message(*message);
  if (const auto* abort = std::get_if<wire::Abort>(&*message)) {
    FUZZ_CHECK(abort->text.size() == input.size() - 1);
    for (const char c : abort->text) {
      FUZZ_CHECK(c >= 0x20 && c < 0x7f);
    }
    const auto again = wire::decode_message(encoded);
    FUZZ_CHECK(again && std::get<wire::Abort>(*again).text == abort->text);
    return;
  }
  FUZZ_CHECK(same(encoded, input));
  const auto shorter = wire::decode_message(input.first(input.size() - 1));
  FUZZ_CHECK(!shorter || !same(wire::encode_message(*shorter), input));
}

std::vector<Seed> seeds() {
  const std::vector<std::byte> bytes(50, std::byte{0x17});
  const std::vector<pages::PageDigest> digests(3, pages::PageDigest{1, 2});
  return {
      seed("hello", wire::Hello{.verify = wire::VerifyLevel::kSent,
                                .mode = wire::TransferMode::kHybrid,
                                .epoch_base = 5,
                                .epoch_count = 100,
                                .regions = {{"ram0", 262144}, {"ram1", 512}}}),
      seed("hello-reply", wire::HelloReply{true, true, 0x123456789}),
      seed("table-piece", wire::TablePiece{.last = true, .bytes = bytes}),
      seed("round-begin", wire::RoundBegin{.round = 2, .pages_before = 77}),
      seed("round-ack", wire::RoundAck{2}),
      seed("device-state", wire::DeviceState{bytes}),
      seed("device-state-end", wire::DeviceStateEnd{}),
      seed("all-placed", wire::AllPlaced{.round = 3, .pages = 9, .pages_checked = 8, .digest = {1, 2}}),
      seed("verified", wire::Verified{}),
      seed("chunk-digests", wire::ChunkDigests{.last = true, .first_chunk = 4, .digests = digests}),
      seed("abort", wire::Abort{"the disk is full"}),
      seed("keepalive", wire::Keepalive{}),
      seed("page-set-piece",
           wire::PageSetPiece{.round = 2, .kind = wire::PageSet::kZero, .last = true, .bytes = bytes}),
      seed("page-set-ack", wire::PageSetAck{1}),
      seed("all-announced",
           wire::AllAnnounced{.round = 3, .pages = 9, .last_round = 4, .pages_checked = 8, .digest = {1, 2}}),
      seed("demand-request", wire::DemandRequest{.again = true, .pages = {3, 77}}),
      seed("all-sent", wire::AllSent{}),
      seed("complete", wire::Complete{.pages = 3, .digest = {1, 2}}),
      seed("completed", wire::Completed{true}),
      seed("resume", wire::Resume{}),
  };
}

}  // namespace godwit::fuzz
