#pragma once
// Keeps a store that fills up from being full: once little is left of its budget, pages that nobody has put or got for
// a while are compressed, a few at a time, so that the thread that answers is never held up for long nor much.
//
// Owner: whoever has the store, which outlives this. Thread: the store's. No failure.

#include <cstdint>

#include "base/time.h"
#include "dataplane/memserver/page_store.h"

namespace godwit::memserver {

class ColdPages {
 public:
  /// Some 40 us each where there is something to compress: 6 % of a core.
  static constexpr std::uint64_t kRecordsAtOnce = 8;
  static constexpr Duration kEvery = milliseconds(5);

  explicit ColdPages(PageStore& store) : store_(store) {}

  /// Not between two calls of PageStore::for_some().
  void turn(Instant now) {
    if (now < at_ || !worthwhile()) {
      return;
    }
    at_ = now + kEvery;
    looked_at_ += kRecordsAtOnce;
    found_ += store_.compress_cold(kRecordsAtOnce);
    // The first time round only tells which pages are cold.
    if (looked_at_ >= 2 * store_.records_end()) {
      rests_ = found_ == 0;
      changes_ = store_.changes();
      looked_at_ = found_ = 0;
    }
  }
  [[nodiscard]] Instant deadline() const { return worthwhile() ? at_ : kNever; }

 private:
  /// Three quarters full, and something may be found that was not there the last time.
  [[nodiscard]] bool worthwhile() const {
    return store_.units_in_use() >= store_.units() / 4 * 3 && !(rests_ && changes_ == store_.changes());
  }

  PageStore& store_;
  Instant at_{};
  std::uint64_t looked_at_ = 0, found_ = 0;
  bool rests_ = false;
  std::uint64_t changes_ = 0;  // when it began to rest
};

}  // namespace godwit::memserver
