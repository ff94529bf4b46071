// The frames between bridges, and both stream ends over real sockets: what is held, what is let through, and when.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <random>

#include "qemu-bridge/device-state/destination_stream.h"
#include "qemu-bridge/device-state/source_stream.h"
#include "qemu-bridge/device-state/stream_frame.h"
#include "qemu-bridge/device-state/stream_socket.h"

namespace godwit::bridge {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string read_exactly(int fd, std::size_t count) {
  std::string out(count, 0);
  std::size_t done = 0;
  while (done < count) {
    const ssize_t got = ::read(fd, out.data() + done, count - done);
    if (got <= 0) {
      break;
    }
    done += static_cast<std::size_t>(got);
  }
  out.resize(done);
  return out;
}

std::string read_all(int fd) {
  std::string out;
  char buffer[4096];
  ssize_t got = 0;
  while ((got = ::read(fd, buffer, sizeof(buffer))) > 0) {
    out.append(buffer, static_cast<std::size_t>(got));
  }
  return out;
}

TEST(StreamFrame, AnyCutGivesTheSameStream) {
  std::mt19937 random(7);
  std::string wire;
  std::string expected;
  for (int i = 0; i < 200; ++i) {
    std::string part(1 + random() % 2000, static_cast<char>('a' + i % 26));
    expected += part;
    wire += encode_data_frame(bytes_of(part));
    if (i % 10 == 0) {
      wire += encode_live_frame(expected.size());
    }
  }
  for (const std::size_t cut : {1ul, 3ul, 7ul, 4096ul, wire.size()}) {
    std::string got;
    std::uint64_t live = 0;
    FrameParser parser(
        {.on_data = [&](auto data) { got.append(reinterpret_cast<const char*>(data.data()), data.size()); },
         .on_live = [&](std::uint64_t count) { live = count; }});
    for (std::size_t at = 0; at < wire.size(); at += cut) {
      ASSERT_TRUE(parser.consume(bytes_of(wire.substr(at, cut))));
    }
    EXPECT_EQ(got, expected) << "cut " << cut;
    EXPECT_TRUE(parser.at_frame_end());
    EXPECT_GT(live, 0u);
  }
}

struct BadFrame {
  std::string bytes;
  FrameParser::Error error;
};
class BadFrames : public testing::TestWithParam<BadFrame> {};

TEST_P(BadFrames, AreRefusedAndStayRefused) {
  FrameParser parser({.on_data = [](auto) {}, .on_live = [](auto) {}});
  auto parsed = parser.consume(bytes_of(GetParam().bytes));
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error(), GetParam().error);
  EXPECT_FALSE(parser.consume(bytes_of(encode_data_frame(bytes_of("x")))));
}

INSTANTIATE_TEST_SUITE_P(
    Frames, BadFrames,
    testing::Values(BadFrame{std::string("\x00", 1), FrameParser::Error::kUnknownKind},
                    BadFrame{"\x03", FrameParser::Error::kUnknownKind},
                    BadFrame{std::string("\x01\0\0\0\0", 5), FrameParser::Error::kBadLength},
                    BadFrame{std::string("\x01\xff\xff\xff\xff", 5), FrameParser::Error::kBadLength},
                    BadFrame{std::string("\x02\x07\0\0\0", 5), FrameParser::Error::kBadLength},
                    BadFrame{encode_live_frame(1), FrameParser::Error::kBadLiveCount},
                    BadFrame{encode_data_frame(bytes_of("abc")) + encode_live_frame(2) + encode_live_frame(1),
                             FrameParser::Error::kBadLiveCount}));

class Destination : public testing::Test {
 protected:
  void SetUp() override {
    auto sockets = make_stream_sockets();
    ASSERT_TRUE(sockets);
    qemu_ = std::move(sockets->qemu);
    stream_ = std::make_unique<DestinationStream>(std::move(sockets->ours),
                                                  [this](std::string text) { failure_.set_value(std::move(text)); });
  }
  UniqueFd qemu_;
  std::promise<std::string> failure_;
  std::unique_ptr<DestinationStream> stream_;
};

TEST_F(Destination, PoursOnlyTheLivePartBeforeTheMemoryIsReady) {
  const auto wire = encode_data_frame(bytes_of("live")) + encode_live_frame(4) + encode_data_frame(bytes_of("devices"));
  stream_->arrive(bytes_of(wire), true);
  EXPECT_EQ(read_exactly(qemu_.get(), 4), "live");
  char byte = 0;
  EXPECT_LT(::recv(qemu_.get(), &byte, 1, MSG_DONTWAIT), 0) << "device state was let through before release";
  while (stream_->poured() != 4u) {  // counted just after it was sent
    std::this_thread::yield();
  }
  stream_->release();
  EXPECT_EQ(read_all(qemu_.get()), "devices");
}

TEST_F(Destination, TheEndWaitsForTheMemoryThatIsOnlyGuarded) {
  const std::string state(100, 's'), end(DestinationStream::kEndBytes, 'e');
  stream_->release_all_but_end();
  stream_->arrive(bytes_of(encode_data_frame(bytes_of(state + end))), true);
  EXPECT_EQ(read_exactly(qemu_.get(), state.size()), state);
  char byte = 0;
  EXPECT_LT(::recv(qemu_.get(), &byte, 1, MSG_DONTWAIT), 0) << "the load could complete";
  while (stream_->poured() != state.size()) {  // counted just after it was sent
    std::this_thread::yield();
  }
  stream_->release();
  EXPECT_EQ(read_all(qemu_.get()), end);
}

TEST_F(Destination, NoEndUnlessItCame) {
  stream_->release();
  stream_->arrive(bytes_of(encode_data_frame(bytes_of("half"))), false);
  EXPECT_EQ(read_exactly(qemu_.get(), 4), "half");
  char byte = 0;
  EXPECT_LT(::recv(qemu_.get(), &byte, 1, MSG_DONTWAIT), 0);
  EXPECT_EQ(errno, EAGAIN);
}

TEST_F(Destination, EndInsideAFrameFails) {
  const auto frame = encode_data_frame(bytes_of("whole"));
  stream_->arrive(bytes_of(frame.substr(0, 6)), true);
  EXPECT_NE(failure_.get_future().get().find("ends inside"), std::string::npos);
}

TEST_F(Destination, MoreAfterTheEndFails) {
  stream_->arrive({}, true);
  stream_->arrive(bytes_of(encode_data_frame(bytes_of("x"))), false);
  EXPECT_NE(failure_.get_future().get().find("after its end"), std::string::npos);
}

TEST_F(Destination, AQemuThatWentAwayFails) {
  qemu_.reset();
  stream_->release();
  stream_->arrive(bytes_of(encode_data_frame(bytes_of("x"))), true);
  EXPECT_NE(failure_.get_future().get().find("does not take it"), std::string::npos);
}

TEST(SourceStream, EndToEndWithMarks) {
  auto up = make_stream_sockets();
  auto down = make_stream_sockets();
  ASSERT_TRUE(up && down);
  DestinationStream destination(std::move(down->ours), [](const std::string& text) { ADD_FAILURE() << text; });
  std::promise<std::uint64_t> ended;
  std::promise<void> asked_twice;
  std::atomic<int> asked = 0;
  SourceStream source(std::move(up->ours), {.forward =
                                                [&](std::string chunk) {
                                                  EXPECT_LE(chunk.size(), kChunkBytesMax);
                                                  destination.arrive(bytes_of(chunk), false);
                                                  return true;
                                                },
                                            .guest_runs = [&] { return ++asked == 1; },
                                            .on_end = [&](auto result) { ended.set_value(result.value_or(0)); }});
  const std::string live(100'000, 'l');
  ASSERT_EQ(::write(up->qemu.get(), live.data(), live.size()), static_cast<ssize_t>(live.size()));
  // Marked once while the guest "runs": at least the first read of it goes through unreleased.
  EXPECT_EQ(read_exactly(down->qemu.get(), 1), "l");
  source.guest_stopped();
  const std::string rest(300'000, 'd');
  ASSERT_EQ(::write(up->qemu.get(), rest.data(), rest.size()), static_cast<ssize_t>(rest.size()));
  up->qemu.reset();
  EXPECT_EQ(ended.get_future().get(), live.size() + rest.size());
  EXPECT_LE(destination.poured(), live.size());
  destination.release();
  destination.arrive({}, true);
  EXPECT_EQ(read_all(down->qemu.get()), (live + rest).substr(1));
}

TEST(SourceStream, AnAnswerThatComesAfterTheEndMarksNothing) {
  auto up = make_stream_sockets();
  ASSERT_TRUE(up);
  std::promise<void> asked, ended;
  auto answer = ended.get_future();
  std::atomic<bool> has_ended{false};
  std::atomic<int> late{0};
  {
    const SourceStream source(std::move(up->ours), {.forward =
                                                        [&](const std::string&) {
                                                          late += has_ended ? 1 : 0;
                                                          return true;
                                                        },
                                                    .guest_runs =
                                                        [&] {
                                                          asked.set_value();
                                                          answer.wait();
                                                          return true;
                                                        },
                                                    .on_end =
                                                        [&](const auto&) {
                                                          has_ended = true;
                                                          ended.set_value();
                                                        }});
    ASSERT_EQ(::write(up->qemu.get(), "x", 1), 1);
    asked.get_future().wait();
    up->qemu.reset();
    answer.wait();
  }
  EXPECT_EQ(late, 0);
}

TEST(SourceStream, ARefusedChunkEndsTheStreamAndQemusWrite) {
  auto up = make_stream_sockets();
  ASSERT_TRUE(up);
  std::promise<bool> refused;
  SourceStream source(
      std::move(up->ours),
      {.forward = [](const std::string&) { return false; },
       .guest_runs = [] { return false; },
       .on_end = [&](auto result) { refused.set_value(!result && result.error() == SourceStream::Error::kRefused); }});
  ASSERT_EQ(::write(up->qemu.get(), "x", 1), 1);
  EXPECT_TRUE(refused.get_future().get());
  EXPECT_LT(::send(up->qemu.get(), "x", 1, MSG_NOSIGNAL), 0);
}

}  // namespace
}  // namespace godwit::bridge
