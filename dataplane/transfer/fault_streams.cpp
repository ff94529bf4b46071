#include "dataplane/transfer/fault_streams.h"

#include <algorithm>
#include <cstdlib>

namespace godwit::transfer {

/// The first page that it has not handed out, or one before: that one was late.
bool FaultStreams::Stream::foresaw(std::int64_t page) const {
  if (last == INT64_MIN || stride == 0 || (page - last) % stride != 0) {
    return false;
  }
  const std::int64_t steps = (page - last) / stride;
  return steps >= 1 && steps <= static_cast<std::int64_t>(window) + 1;
}

void FaultStreams::Stream::go_on(std::int64_t page) {
  window = std::min(window * 2, kAheadMax);
  last = page;
  next = stride > 0 ? std::max(next, page + stride) : std::min(next, page + stride);
  const auto handed_out = static_cast<std::uint64_t>((next - page) / stride - 1);
  ahead = window - std::min(window, handed_out);
}

/// Two faults make a stride, and one page is foreseen: the next fault there shows whether it holds.
void FaultStreams::Stream::begin(std::int64_t page) {
  stride = last == INT64_MIN ? 0 : page - last;
  last = page;
  next = page + stride;
  window = ahead = stride != 0 ? 1 : 0;
}

/// Whose place a new one takes: the oldest. One that holds has few faults, so it looks old beside many that are none.
FaultStreams::Stream& FaultStreams::oldest() {
  const auto guess = [](const Stream& stream) { return !stream.holds(); };
  const bool spare = std::ranges::count_if(streams_, guess) > static_cast<std::ptrdiff_t>(kStreamsMax / 2);
  return spare ? *std::find_if(streams_.rbegin(), streams_.rend(), guess) : streams_.back();
}

/// The one that foresaw this page, else the nearest that does not hold, else a new one; it comes first.
FaultStreams::Stream& FaultStreams::stream_of(std::int64_t page) {
  auto found = std::ranges::find_if(streams_, [page](const Stream& stream) { return stream.foresaw(page); });
  if (found == streams_.end()) {
    std::int64_t nearest = kStrideMax + 1;
    for (auto at = streams_.begin(); at != streams_.end() && at->last != INT64_MIN; ++at) {
      if (!at->holds() && std::abs(page - at->last) < nearest) {
        nearest = std::abs(page - at->last);
        found = at;
      }
    }
  }
  if (found == streams_.end()) {
    found = &oldest();
    *found = {};
  }
  std::rotate(streams_.begin(), found, found + 1);
  return streams_.front();
}

void FaultStreams::on_fault(pages::PageNumber page) {
  const auto at = static_cast<std::int64_t>(page);
  Stream& stream = stream_of(at);
  stream.foresaw(at) ? stream.go_on(at) : stream.begin(at);
}

PageRun FaultStreams::next(const pages::Bitmap& left, std::uint64_t pages_max) {
  const auto end = static_cast<std::int64_t>(left.size());
  for (Stream& stream : streams_) {
    while (stream.ahead != 0) {
      const std::int64_t page = stream.next;
      if (page < 0 || page >= end) {
        stream.ahead = 0;
        break;
      }
      const bool wanted = left.test(static_cast<pages::PageNumber>(page));
      const std::uint64_t room = std::min(pages_max, static_cast<std::uint64_t>(end - page));
      const std::uint64_t count = wanted && stream.stride == 1 ? std::min(stream.ahead, room) : 1;
      stream.next += stream.stride * static_cast<std::int64_t>(count);
      stream.ahead -= count;
      if (wanted) {
        return {static_cast<pages::PageNumber>(page), count};
      }
    }
  }
  return {};
}

}  // namespace godwit::transfer
