#pragma once
// Adds one to an eventfd that another process has as well, and never waits. write() would: O_NONBLOCK belongs to both,
// so the other may take it off and fill the counter. What the kernel adds when an asynchronous operation is done does
// not wait for room (io_submit(2), IOCB_FLAG_RESFD); the operation is to read a byte of an empty file.
// Owner and thread: one. Failure: valid() is false, with errno, if the kernel has no more contexts (fs.aio-max-nr);
// raise() does nothing to what is no eventfd.

#include <linux/aio_abi.h>

#include "base/unique_fd.h"

namespace godwit::port {

class EventSignal {
 public:
  EventSignal();
  ~EventSignal();
  EventSignal(const EventSignal&) = delete;
  EventSignal& operator=(const EventSignal&) = delete;

  [[nodiscard]] bool valid() const { return context_ != 0; }
  /// Requires valid().
  void raise(int eventfd) const;

 private:
  UniqueFd empty_;
  aio_context_t context_ = 0;
};

}  // namespace godwit::port
