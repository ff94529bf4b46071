#include "dataplane/port/event_signal.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <ctime>

namespace godwit::port {

EventSignal::EventSignal() : empty_(memfd_create("godwit-empty", MFD_CLOEXEC)) {
  if (empty_.valid() && syscall(SYS_io_setup, 1, &context_) != 0) {
    context_ = 0;
  }
}

EventSignal::~EventSignal() {
  if (valid()) {
    syscall(SYS_io_destroy, context_);
  }
}

void EventSignal::raise(int eventfd) const {
  std::byte nothing{};
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_PREAD;
  request.aio_fildes = static_cast<std::uint32_t>(empty_.get());
  request.aio_buf = reinterpret_cast<std::uintptr_t>(&nothing);
  request.aio_nbytes = sizeof nothing;
  request.aio_flags = IOCB_FLAG_RESFD;
  request.aio_resfd = static_cast<std::uint32_t>(eventfd);
  iocb* requests = &request;
  if (syscall(SYS_io_submit, context_, 1, &requests) == 1) {
    // Done already: memory is read at once.
    io_event done{};
    timespec none{};
    syscall(SYS_io_getevents, context_, 1, 1, &done, &none);
  }
}

}  // namespace godwit::port
