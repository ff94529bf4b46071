// Goal: messages arrive whole, in order and unchanged through any order of chunks, in bounded memory; a broken peer is
// noticed.

#include "dataplane/transport/message_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <random>
#include <vector>

namespace godwit::transport {
namespace {

using Bytes = std::vector<std::byte>;

Bytes message(std::mt19937_64& random, std::size_t size) {
  Bytes bytes(size);
  for (std::byte& b : bytes) {
    b = static_cast<std::byte>(random());
  }
  return bytes;
}

TEST(MessageStream, RandomLossAndOrder) {
  std::mt19937_64 random(11);
  MessageSender sender(4096);
  MessageReceiver receiver(4096);
  std::deque<Bytes> expected;
  std::vector<StreamChunk> flying;
  std::uint64_t pushed_bytes = 0;
  while (pushed_bytes < 20'000'000 || !expected.empty()) {  // the ring of 4 MiB wraps several times
    if (pushed_bytes < 20'000'000) {
      const Bytes next = message(random, random() % 4 == 0 ? random() % (kMessageBytesMax + 1) : random() % 50);
      if (sender.push(next)) {
        expected.push_back(next);
        pushed_bytes += next.size();
      }
    }
    while (flying.size() < 200 && sender.has_chunk()) {
      flying.push_back(*sender.take(1 + random() % 9000));
    }
    if (flying.empty()) {
      continue;
    }
    std::swap(flying[random() % flying.size()], flying.back());
    const StreamChunk chunk = flying.back();
    flying.pop_back();
    if (random() % 5 == 0) {
      sender.on_lost(chunk.offset, chunk.length);
      continue;
    }
    Bytes bytes(chunk.length);
    sender.read(chunk, bytes);
    ASSERT_TRUE(receiver.on_chunk(chunk.offset, bytes));
    while (const auto got = receiver.next()) {
      ASSERT_FALSE(expected.empty());
      ASSERT_TRUE(std::equal(got->begin(), got->end(), expected.front().begin(), expected.front().end()));
      expected.pop_front();
    }
    receiver.release();
    sender.on_acknowledged(chunk.offset, chunk.length);
  }
  EXPECT_TRUE(sender.all_acknowledged());
}

TEST(MessageStream, RoomIsTheWindow) {
  MessageSender sender(4096);
  const Bytes big(kMessageBytesMax);
  EXPECT_EQ(sender.room(), kMessageBytesMax);
  std::size_t pushed = 0;
  while (sender.room() == kMessageBytesMax) {
    ASSERT_TRUE(sender.push(big));
    ++pushed;
  }
  EXPECT_EQ(pushed, kStreamWindowBytes / (kMessageBytesMax + kMessageLengthBytes));
  EXPECT_FALSE(sender.push(big));
  const Bytes rest(sender.room());
  EXPECT_TRUE(sender.push(rest));
  EXPECT_EQ(sender.room(), 0U);
}

TEST(MessageStream, GivenOutMessagesStayUntilRelease) {
  MessageReceiver receiver(16);
  Bytes one(kMessageLengthBytes + 3, std::byte{0});
  one[0] = std::byte{3};
  one[6] = std::byte{42};
  ASSERT_TRUE(receiver.on_chunk(0, one));
  const auto first = receiver.next();
  ASSERT_TRUE(first.has_value());
  // The furthest byte that a peer may send takes no place of the message's.
  Bytes far(1, std::byte{0xff});
  ASSERT_TRUE(receiver.on_chunk(kStreamBufferBytes - 1, far));
  EXPECT_EQ((*first)[2], std::byte{42});
  EXPECT_FALSE(receiver.on_chunk(kStreamBufferBytes, far));
  EXPECT_TRUE(receiver.broken());
}

TEST(MessageStream, BrokenPeers) {
  MessageReceiver too_long(16);
  Bytes length(4, std::byte{0});
  length[2] = std::byte{2};
  EXPECT_TRUE(too_long.on_chunk(0, length));
  EXPECT_FALSE(too_long.next().has_value());
  EXPECT_TRUE(too_long.broken());
  EXPECT_FALSE(too_long.on_chunk(4, length));

  MessageReceiver too_many(2);
  const Bytes one(1);
  EXPECT_TRUE(too_many.on_chunk(10, one));
  EXPECT_TRUE(too_many.on_chunk(20, one));
  EXPECT_FALSE(too_many.on_chunk(30, one));
}

TEST(MessageStream, EmptyMessage) {
  MessageReceiver receiver(16);
  ASSERT_TRUE(receiver.on_chunk(0, Bytes(8)));
  EXPECT_EQ(receiver.next()->size(), 0U);
  EXPECT_EQ(receiver.next()->size(), 0U);
  EXPECT_FALSE(receiver.next().has_value());
}

}  // namespace
}  // namespace godwit::transport
