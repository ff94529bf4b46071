// Messages: bytes and back, and that no bytes of a stranger do more than be refused.

#include "dataplane/wire/messages.h"

#include <gtest/gtest.h>

#include "simulation/network.h"

namespace godwit::wire {
namespace {

const std::vector<std::byte> kBytes(100, std::byte{5});

std::vector<Message> examples() {
  return {Hello{.verify = VerifyLevel::kFull,
                .mode = TransferMode::kHybrid,
                .keeps_stores = true,
                .epoch_base = 7,
                .epoch_count = 9,
                .regions = {{"ram0", 5}, {"", 6}}},
          HelloReply{true, true, 0x123456789},
          TablePiece{true, kBytes},
          RoundBegin{3, 77},
          RoundAck{3},
          DeviceState{kBytes},
          DeviceStateEnd{},
          AllPlaced{4, 5, 6, {7, 8}},
          Verified{},
          ChunkDigests{true, 2, {{1, 2}, {3, 4}}},
          Abort{"because"},
          Keepalive{},
          PageSetPiece{2, PageSet::kZero, true, kBytes},
          PageSetAck{1},
          AllAnnounced{4, 5, 5, 6, {7, 8}},
          DemandRequest{true, {1, 2, 3}},
          AllSent{},
          Complete{5, {1, 2}},
          Completed{true},
          Resume{},
          StoredPages{.last = true, .version_next = 9, .pages = {{4, 7, 1, 11, false}, {6, 8, 2, 12, true}}}};
}

TEST(Messages, EveryKindComesBackAsItWas) {
  for (const Message& message : examples()) {
    const auto bytes = encode_message(message);
    const auto back = decode_message(bytes);
    ASSERT_TRUE(back) << message_name(message) << ": " << back.error();
    EXPECT_EQ(back->index(), message.index());
    EXPECT_EQ(encode_message(*back), bytes) << message_name(message);
  }
  const auto hello = std::get<Hello>(*decode_message(encode_message(examples()[0])));
  EXPECT_EQ(hello.regions[0], (RegionShape{"ram0", 5}));
  EXPECT_EQ(hello.verify, VerifyLevel::kFull);
}

TEST(Messages, CutOrExtendedOnesAreRefused) {
  for (const Message& message : examples()) {
    const bool open_ended = std::holds_alternative<TablePiece>(message) ||
                            std::holds_alternative<DeviceState>(message) || std::holds_alternative<Abort>(message) ||
                            std::holds_alternative<PageSetPiece>(message);
    auto bytes = encode_message(message);
    if (open_ended) {
      continue;  // their length is the message's
    }
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_FALSE(decode_message(std::span(bytes).first(length))) << message_name(message) << " cut to " << length;
    }
    bytes.push_back(std::byte{0});
    EXPECT_FALSE(decode_message(bytes)) << message_name(message);
  }
}

TEST(Messages, ValuesOutOfRangeAreRefused) {
  const auto changed = [](const Message& message, std::size_t at, std::uint8_t value) {
    auto bytes = encode_message(message);
    bytes.at(at) = std::byte{value};
    return decode_message(bytes);
  };
  const auto all = examples();
  EXPECT_FALSE(changed(all[0], 0, 0));
  EXPECT_FALSE(changed(all[0], 0, 200));
  EXPECT_FALSE(changed(all[0], 3, 3)) << "verify level";
  EXPECT_FALSE(changed(all[0], 4, 3)) << "mode";
  EXPECT_FALSE(changed(all[0], 4, 0)) << "stores are kept in pre-copy";
  EXPECT_FALSE(changed(all[0], 5, 2)) << "flag";
  EXPECT_FALSE(changed(all[0], 30, 0)) << "no regions";
  EXPECT_FALSE(changed(all[0], 38, 0xff)) << "2^56 pages";
  EXPECT_FALSE(changed(all[1], 1, 2)) << "flag";
  EXPECT_FALSE(changed(all[1], 2, 2)) << "flag";
  EXPECT_FALSE(changed(all[3], 1, 0)) << "round 0";
  EXPECT_FALSE(changed(all[12], 1, 0)) << "a set of a round without one";
  EXPECT_FALSE(changed(all[12], 5, 2)) << "a set of no round with one";
  EXPECT_FALSE(changed(all[12], 5, 4)) << "a set of no round with one";
  EXPECT_FALSE(changed(all[12], 5, 5)) << "kind of set";
  EXPECT_FALSE(changed(all[12], 6, 2)) << "flag";
  EXPECT_FALSE(changed(all[13], 1, 0)) << "round 0";
  EXPECT_FALSE(changed(all[14], 13, 3)) << "last round before the open one";
  EXPECT_FALSE(changed(all[14], 13, 6)) << "last round two after the open one";
  EXPECT_FALSE(changed(all[15], 1, 2)) << "flag";
  EXPECT_FALSE(changed(all[15], 2, 0)) << "no pages";
  EXPECT_FALSE(changed(all[15], 3, 0x80)) << "32,771 pages";
  EXPECT_FALSE(changed(all[15], 11, 1)) << "page 2^56";
  EXPECT_FALSE(changed(all[17], 8, 1)) << "2^56 pages";
  EXPECT_FALSE(changed(all[18], 1, 2)) << "flag";
  EXPECT_FALSE(changed(all[20], 1, 2)) << "flag";
  EXPECT_FALSE(changed(all[20], 2, 0)) << "no version is below 0";
  EXPECT_FALSE(changed(all[20], 2, 8)) << "a version that is not below the next";
  EXPECT_FALSE(changed(all[20], 8, 1)) << "version 2^48 as the next";
  EXPECT_FALSE(changed(all[20], 12, 6)) << "the same page twice";
  EXPECT_FALSE(changed(all[20], 17, 1)) << "page 2^40";
  EXPECT_FALSE(changed(all[20], 20, 0)) << "version 0";
  EXPECT_FALSE(changed(all[20], 38, 2)) << "flag";
  EXPECT_FALSE(decode_message(encode_message(StoredPages{.last = true})));
  EXPECT_TRUE(decode_message(encode_message(StoredPages{.last = true, .version_next = 1})));
  EXPECT_FALSE(decode_message(std::vector<std::byte>(kMessageBytesMax + 1)));
  EXPECT_FALSE(decode_message({}));
}

TEST(Messages, AnotherVersionIsReadAsFarAsItsNumber) {
  auto bytes = encode_message(examples()[0]);
  bytes[1] = std::byte{9};
  bytes.resize(10);
  const auto message = decode_message(bytes);
  ASSERT_TRUE(message);
  EXPECT_EQ(std::get<Hello>(*message).version, 9);
}

TEST(Messages, TextOfAStrangerIsPrintable) {
  const std::string nasty = "a\n\x1b[31mb" + std::string(1000, 'x');
  const auto message = decode_message(encode_message(Abort{nasty}));
  ASSERT_TRUE(message);
  const std::string& text = std::get<Abort>(*message).text;
  EXPECT_EQ(text.size(), kAbortTextBytesMax);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(text.find('\n'), std::string::npos);
}

TEST(Messages, GarbageNeverGetsThroughUnread) {
  simulation::Random random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::vector<std::byte> bytes(random.below(200));
    for (std::byte& byte : bytes) {
      byte = static_cast<std::byte>(random.next());
    }
    if (!bytes.empty()) {
      bytes[0] = static_cast<std::byte>(random.between(0, std::variant_size_v<Message> + 1));
    }
    if (const auto message = decode_message(bytes);
        message && !std::holds_alternative<Hello>(*message) && !std::holds_alternative<Resume>(*message)) {
      EXPECT_EQ(encode_message(*message).size(), bytes.size());
    }
  }
}

}  // namespace
}  // namespace godwit::wire
