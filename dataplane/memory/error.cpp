#include "dataplane/memory/error.h"

#include <cstring>

namespace godwit::memory {

Error kernel_error(const std::string& call, const std::string& object, int error_number) {
  ErrorCode code = ErrorCode::kKernel;
  std::string hint;
  switch (error_number) {
    case ESRCH:
      code = ErrorCode::kProcessGone;
      hint = " (QEMU has exited)";
      break;
    case ENOSPC:
      code = ErrorCode::kNoMemory;
      hint = " (the file system of the RAM file is full, or the huge page pool is empty)";
      break;
    case ENOMEM:
      code = ErrorCode::kNoMemory;
      break;
    default:
      break;
  }
  return {code, call + " of " + object + ": " + std::strerror(error_number) + hint};
}

}  // namespace godwit::memory
