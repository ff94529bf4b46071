#pragma once
// Finds an MTU black hole: a path that drops large packets in silence and carries small ones. No ICMP is trusted.
// Owner: one lane; its lcore; no failure.
//
// One piece of evidence is: large packets were given up, none was acknowledged since, and a small one was. kEvidence of
// them in a row is a black hole, as RFC 8899 §5.1.3 (MAX_PROBES = 3) has it. Where loss is random a large packet gets
// through in between. A path that carries nothing is no black hole, it is a dead one.

#include <cstdint>

namespace godwit::transport {

class MtuWatch {
 public:
  static constexpr std::uint32_t kEvidence = 3;

  void on_large_acknowledged() { *this = {}; }
  void on_small_acknowledged() { small_passed_ = true; }
  void on_large_lost() { large_lost_ = true; }
  /// After what an acknowledgement or a timer gave up has been told; true: only small packets pass.
  [[nodiscard]] bool is_black_hole() {
    if (large_lost_ && small_passed_) {
      large_lost_ = small_passed_ = false;
      ++evidence_;
    }
    return evidence_ >= kEvidence;
  }

 private:
  std::uint32_t evidence_ = 0;
  bool large_lost_ = false;
  bool small_passed_ = false;
};

}  // namespace godwit::transport
