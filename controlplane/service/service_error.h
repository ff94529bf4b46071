#pragma once
// Why the control plane did not do what it was asked: a kind, which becomes a gRPC status, and one line for a person.
// A value; any thread.

#include <cstdint>
#include <string>

namespace godwit::controlplane {

struct ServiceError {
  enum class Code : std::uint8_t {
    kInvalid,       // the request itself: malformed, or a value that is never allowed
    kNotFound,      // what it names does not exist
    kExists,        // what it would make exists already
    kNotNow,        // not in the present state; the text says which
    kNotAvailable,  // this version cannot
    kHostGone,      // not connected, or lost before it answered
    kTimeout,       // the host did not answer in time; what became of the command is not known
    kRefused,       // the host said no
    kStore,         // the store failed: nothing is decided
  };
  Code code;
  std::string text;
};

}  // namespace godwit::controlplane
