#pragma once
// Guest RAM as QEMU would have it: a shared mapping of a RAM file with a userfaultfd and a pagemap, all of this
// process. The test writes through data() as a vCPU would. Tests only; valid() is false where the kernel refuses a
// step, with the reason in error().

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane.pb.h"

namespace godwit::tests {

class FakeQemu {
 public:
  FakeQemu(std::string path, std::uint64_t bytes);
  ~FakeQemu();
  FakeQemu(const FakeQemu&) = delete;
  FakeQemu& operator=(const FakeQemu&) = delete;

  [[nodiscard]] bool valid() const { return error_.empty(); }
  [[nodiscard]] const std::string& error() const { return error_; }
  [[nodiscard]] std::span<std::byte> data() const { return {memory_, bytes_}; }
  [[nodiscard]] std::vector<int> descriptors() const { return {file_.get(), userfaultfd_.get(), pagemap_.get()}; }
  /// The userfaultfd flags that the kernel shows on the RAM's mapping ("um": missing, "uw": write protection); empty:
  /// none.
  [[nodiscard]] std::string armed() const;
  void describe(dataplane::v1::AttachGuest& request) const;
  /// Whoever waits for a page goes on without it: of a guest that is lost.
  void give_up_waiting();

 private:
  const std::string path_;
  const std::uint64_t bytes_;
  std::string error_;
  UniqueFd file_;
  UniqueFd userfaultfd_;
  UniqueFd pagemap_;
  std::byte* memory_ = nullptr;
};

}  // namespace godwit::tests
