#pragma once
// A file in RAM (tmpfs or hugetlbfs), mapped at its full size, of which memory is taken chunk by chunk as it is needed:
// what a page store keeps, so that it outlives the process.
//
// Owns descriptor, lock and mapping. Thread: one. Units: bytes. Failure: Error; false where memory is short. No access
// to what need() said true of ever fails. Two processes cannot have one file.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"

namespace godwit::memserver {

class GrowingFile {
 public:
  /// Of `bytes`, a multiple of `chunk_bytes`. `fresh`: in place of any former file; else one of another size is
  /// refused.
  static std::expected<GrowingFile, memory::Error> open(const std::string& path, std::uint64_t bytes,
                                                        std::uint64_t chunk_bytes, bool fresh);
  GrowingFile(GrowingFile&& other) noexcept;
  GrowingFile& operator=(GrowingFile&&) = delete;
  ~GrowingFile();

  [[nodiscard]] std::byte* data() const { return data_; }
  /// There is memory for these bytes, if need be from now on.
  [[nodiscard]] bool need(std::uint64_t offset, std::uint64_t bytes);
  /// Something was written in the chunk; never asked of hugetlbfs, which cannot tell.
  [[nodiscard]] bool has_data(std::uint64_t chunk) const;
  /// Gives the memory of a chunk back; it reads as zero.
  void give_back(std::uint64_t chunk);
  [[nodiscard]] std::uint64_t chunk_bytes() const { return chunk_bytes_; }
  /// By allocated blocks.
  [[nodiscard]] std::uint64_t allocated_bytes() const;

 private:
  GrowingFile(UniqueFd file, std::byte* data, std::uint64_t bytes, std::uint64_t chunk_bytes);
  UniqueFd file_;
  std::byte* data_;
  std::uint64_t bytes_;
  std::uint64_t chunk_bytes_;
  std::vector<bool> there_;  // by chunk: known to have memory
};

}  // namespace godwit::memserver
