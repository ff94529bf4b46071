// Acknowledgements and loss recovery. Input: a sequence of steps (send, time, ack block, lost packets, probe) on one
// LossRecovery, beside a naive model: a map of what is outstanding.
// Properties: every packet's content comes back exactly once, as acknowledged or as lost; an ack block acknowledges
// just the numbers that it names; nothing at or above the largest acknowledged number is called lost; counters agree.

#include <map>

#include "dataplane/transport/loss_recovery.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

using transport::ContentKind;
using transport::LossRecovery;
using transport::SentContent;

enum class Step : std::uint8_t { kSend, kSendAck, kTime, kAck, kLost, kTakeOldest, kProbe, kCount };
constexpr std::size_t kStepsMax = 300;

class Model {
 public:
  void run(Input& input) {
    for (std::size_t i = 0; i < kStepsMax && !input.empty(); ++i) {
      step(static_cast<Step>(input.number<std::uint8_t>() % static_cast<std::uint8_t>(Step::kCount)), input);
      check();
    }
  }

 private:
  void step(Step step, Input& input) {
    switch (step) {
      case Step::kSend:
        return send(ContentKind::kProbe, input.number<std::uint8_t>() % 128);
      case Step::kSendAck:
        return send(ContentKind::kNone, 1);
      case Step::kTime:
        now_ = now_ + microseconds(input.number<std::uint16_t>());
        return;
      case Step::kAck:
        return acknowledge(input);
      case Step::kLost:
        return detect_lost();
      case Step::kTakeOldest:
        return take_oldest();
      case Step::kProbe:
        if (recovery_.probe_deadline() <= now_) {
          recovery_.on_probe_timeout();
        }
        if (recovery_.early_probe_deadline() <= now_) {
          recovery_.on_early_probe();
        }
        return;
      case Step::kCount:
        break;
    }
  }

  void send(ContentKind kind, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count && recovery_.has_room(); ++i) {
      const std::uint64_t number = recovery_.next_number();
      recovery_.on_sent(now_, {.kind = kind, .offset = number});
      if (kind != ContentKind::kNone) {
        outstanding_[number] = now_;
      }
    }
  }

  /// Any block that frames.h lets through and the lane accepts.
  void acknowledge(Input& input) {
    const std::uint64_t next = recovery_.next_number();
    wire::AckBlock ack;
    const auto below_next = input.number<std::uint16_t>();
    const auto below_largest = input.number<std::uint16_t>();
    if (next == 0) {
      return;
    }
    ack.largest = next - 1 - below_next % next;
    ack.floor = ack.largest + 1 - below_largest % (ack.largest + 2);
    ack.edge = ack.largest;
    ack.ack_delay_us = input.number<std::uint32_t>();
    ack.word_count =
        static_cast<std::uint8_t>(std::min<std::uint64_t>(input.below(wire::kAckWordsMax + 1), ack.largest / 64 + 1));
    for (std::size_t i = 0; i < ack.word_count; ++i) {
      ack.words[i] = input.number<std::uint64_t>();
    }
    if (ack.word_count > 0 && ack.largest % 64 != 63) {
      ack.words[0] &= (std::uint64_t{1} << (ack.largest % 64 + 1)) - 1;
    }
    std::vector<std::uint64_t> expected;
    for (const auto& [number, at] : outstanding_) {
      if (named(ack, number)) {
        expected.push_back(number);
      }
    }
    std::vector<std::uint64_t> acknowledged;
    const Duration waited = microseconds(input.number<std::uint16_t>());
    const auto outcome = recovery_.on_ack(now_, ack, waited,
                                          [&](const SentContent& content) { acknowledged.push_back(content.offset); });
    FUZZ_CHECK(acknowledged == expected);
    FUZZ_CHECK(outcome.acknowledged == expected.size());
    FUZZ_CHECK(!outcome.rtt || outcome.rtt->ns >= 0);
    forget(acknowledged);
    if (!acknowledged.empty()) {
      acknowledged_end_ = std::max(acknowledged_end_, acknowledged.back() + 1);
    }
    reported_end_ = std::max(reported_end_, ack.largest + 1);
  }

  static bool named(const wire::AckBlock& ack, std::uint64_t number) {
    if (number < ack.floor) {
      return true;
    }
    if (number > ack.largest) {
      return false;
    }
    const std::uint64_t word = ack.largest / 64 - number / 64;
    return word < ack.word_count && (ack.words[word] >> (number % 64) & 1) != 0;
  }

  void detect_lost() {
    std::vector<std::uint64_t> lost;
    const auto count = recovery_.detect_lost(now_, [&](const SentContent& content) { lost.push_back(content.offset); });
    FUZZ_CHECK(count == lost.size());
    for (const std::uint64_t number : lost) {
      FUZZ_CHECK(outstanding_.contains(number) && number < acknowledged_end_);
      FUZZ_CHECK(acknowledged_end_ - 1 - number >= recovery_.packet_threshold() || outstanding_.at(number) < now_);
    }
    forget(lost);
    // What reordering alone cannot explain is always found.
    for (const auto& [number, at] : outstanding_) {
      FUZZ_CHECK(number >= acknowledged_end_ || acknowledged_end_ - 1 - number < recovery_.packet_threshold());
    }
  }

  void take_oldest() {
    const auto content = recovery_.take_oldest();
    FUZZ_CHECK(content.has_value() == !outstanding_.empty());
    if (content) {
      FUZZ_CHECK(content->offset == outstanding_.begin()->first);
      outstanding_.erase(outstanding_.begin());
    }
  }

  void forget(const std::vector<std::uint64_t>& numbers) {
    for (const std::uint64_t number : numbers) {
      FUZZ_CHECK(outstanding_.erase(number) == 1);
    }
  }

  void check() {
    FUZZ_CHECK(recovery_.outstanding() == outstanding_.size());
    FUZZ_CHECK(recovery_.floor() == (outstanding_.empty() ? recovery_.next_number() : outstanding_.begin()->first));
    FUZZ_CHECK(recovery_.reported_end() == reported_end_);
    FUZZ_CHECK((recovery_.probe_deadline() == kNever) == outstanding_.empty());
    FUZZ_CHECK(recovery_.packet_threshold() <= transport::kPacketThresholdMax);
    FUZZ_CHECK(recovery_.rtt().smoothed().ns >= 0 && recovery_.rtt().variation().ns >= 0);
  }

  LossRecovery recovery_{milliseconds(2)};
  std::map<std::uint64_t, Instant> outstanding_;
  std::uint64_t acknowledged_end_ = 0;
  std::uint64_t reported_end_ = 0;
  Instant now_{1'000'000};
};

Output& put(Output& out, Step step) { return out.number(static_cast<std::uint8_t>(step)); }

void put_ack(Output& out, std::uint16_t below_next, std::uint16_t below_largest, std::uint64_t word) {
  put(out, Step::kAck).number(below_next).number(below_largest).number<std::uint32_t>(30).number<std::uint32_t>(1);
  out.number(word);
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  Model().run(input);
}

std::vector<Seed> seeds() {
  Output plain;
  put(plain, Step::kSend).number<std::uint8_t>(100);
  put(plain, Step::kTime).number<std::uint16_t>(500);
  put_ack(plain, 0, 0, 0);
  Output losses;
  for (int i = 0; i < 4; ++i) {
    put(losses, Step::kSend).number<std::uint8_t>(90);
    put(losses, Step::kTime).number<std::uint16_t>(700);
    put_ack(losses, 3, 80, 0xf0f0f0f0f0f0f0f0);
    put(losses, Step::kLost);
    put(losses, Step::kSendAck);
    put_ack(losses, 0, 200, ~std::uint64_t{0});  // late: these were no losses
    put(losses, Step::kTakeOldest);
    put(losses, Step::kTime).number<std::uint16_t>(60000);
    put(losses, Step::kProbe);
  }
  return {{"plain", plain.take()}, {"losses", losses.take()}};
}

}  // namespace godwit::fuzz
