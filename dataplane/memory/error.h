#pragma once
// What goes wrong in memory/: a code to act on and one line for a person. Pure.

#include <cerrno>
#include <cstdint>
#include <string>

namespace godwit::memory {

enum class ErrorCode : std::uint8_t {
  kBadArgument,  // what the caller passed on from outside cannot be: the text names the field
  kProcessGone,  // QEMU has exited
  kUnsupported,  // this kernel, or this descriptor, does not offer it
  kNoMemory,     // the file system of the RAM files is full, or the huge page pool is empty
  kLost,         // guest RAM that was there is there no more
  kKernel,       // any other refused system call; the text names call, object, errno
};

struct Error {
  ErrorCode code = ErrorCode::kKernel;
  std::string text;
};

/// "CALL of OBJECT: errno text", with the code that fits the errno (ESRCH: kProcessGone, ENOSPC and ENOMEM: kNoMemory).
Error kernel_error(const std::string& call, const std::string& object, int error_number);

}  // namespace godwit::memory
