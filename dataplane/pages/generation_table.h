#pragma once
// The generations of all pages of one VM, as one host knows them: a u32 a page, 1 MiB for 1 GiB of guest.
//
// Owns its memory: 64-byte aligned, on huge pages where the kernel gives them. Owned by one thread at a time; no locks.
// Copying is a deep copy (retaining a table), moving is free. Running out of memory throws std::bad_alloc, as a vector
// does.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "base/check.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/page.h"

namespace godwit::pages {

class GenerationTable {
 public:
  GenerationTable() = default;
  explicit GenerationTable(std::uint64_t page_count, Generation initial = kNeverWritten);
  GenerationTable(const GenerationTable& other);
  GenerationTable& operator=(const GenerationTable& other);
  GenerationTable(GenerationTable&& other) noexcept;
  GenerationTable& operator=(GenerationTable&& other) noexcept;
  ~GenerationTable() = default;

  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] Generation get(PageNumber page) const {
    GW_ASSERT(page < size_);
    return entries_[page];
  }
  void set(PageNumber page, Generation generation) {
    GW_ASSERT(page < size_);
    entries_[page] = generation;
  }
  void set_range(PageNumber first, std::uint64_t count, Generation generation);
  void fill(Generation generation) { set_range(0, size_, generation); }
  /// Every page set in `written` (of the same size) gets generation `epoch`; the others keep theirs.
  void set_written(const Bitmap& written, Generation epoch);
  /// Every page set in `pages` takes its generation from `from`; all of the same size.
  void set_from(const Bitmap& pages, const GenerationTable& from);
  /// Pages of exactly this generation.
  [[nodiscard]] std::uint64_t count(Generation generation) const;

  bool operator==(const GenerationTable& other) const;

  /// 64-byte aligned. The allocation behind it is a whole number of 64 entries; those past size() are zero.
  [[nodiscard]] std::span<const Generation> entries() const { return {entries_.get(), size_}; }
  [[nodiscard]] std::span<Generation> entries() { return {entries_.get(), size_}; }

 private:
  struct Free {
    void operator()(Generation* memory) const { std::free(memory); }
  };
  std::uint64_t size_ = 0;
  std::unique_ptr<Generation[], Free> entries_;
};

}  // namespace godwit::pages
