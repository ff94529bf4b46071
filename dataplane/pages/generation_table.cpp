#include "dataplane/pages/generation_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>

namespace godwit::pages {

namespace {

constexpr std::size_t kHugePage = 2 << 20;
constexpr std::uint64_t kEntriesPerLine = 64;  // a bitmap word's worth, and a multiple of every vector width
constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 40;

std::uint64_t padded(std::uint64_t page_count) {
  return (page_count + kEntriesPerLine - 1) / kEntriesPerLine * kEntriesPerLine;
}

Generation* allocate(std::uint64_t page_count) {
  if (page_count == 0) return nullptr;
  if (page_count > kPagesMax) throw std::bad_alloc();
  const std::size_t bytes = padded(page_count) * sizeof(Generation);
  const bool huge = bytes >= kHugePage;
  const std::size_t alignment = huge ? kHugePage : 64;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  // A streamed comparison misses the TLB 512 times less often. Where the kernel refuses, small pages do.
  if (huge) ::madvise(memory, bytes, MADV_HUGEPAGE);
  auto* entries = static_cast<Generation*>(memory);
  std::fill(entries + page_count, entries + padded(page_count), Generation{0});
  return entries;
}

}  // namespace

GenerationTable::GenerationTable(std::uint64_t page_count, Generation initial)
    : size_(page_count), entries_(allocate(page_count)) {
  fill(initial);
}

GenerationTable::GenerationTable(const GenerationTable& other) : size_(other.size_), entries_(allocate(other.size_)) {
  std::copy_n(other.entries_.get(), size_, entries_.get());
}

GenerationTable& GenerationTable::operator=(const GenerationTable& other) {
  if (this != &other) *this = GenerationTable(other);
  return *this;
}

GenerationTable::GenerationTable(GenerationTable&& other) noexcept
    : size_(std::exchange(other.size_, 0)), entries_(std::move(other.entries_)) {}

GenerationTable& GenerationTable::operator=(GenerationTable&& other) noexcept {
  size_ = std::exchange(other.size_, 0);
  entries_ = std::move(other.entries_);
  return *this;
}

void GenerationTable::set_range(PageNumber first, std::uint64_t count, Generation generation) {
  GW_ASSERT(first <= size_ && count <= size_ - first);
  std::fill_n(entries_.get() + first, count, generation);
}

void GenerationTable::set_written(const Bitmap& written, Generation epoch) {
  GW_ASSERT(written.size() == size_);
  written.for_each_run([&](PageNumber first, std::uint64_t count) { set_range(first, count, epoch); });
}

void GenerationTable::set_from(const Bitmap& pages, const GenerationTable& from) {
  GW_ASSERT(pages.size() == size_ && from.size_ == size_);
  pages.for_each_run([&](PageNumber first, std::uint64_t count) {
    std::copy_n(from.entries_.get() + first, count, entries_.get() + first);
  });
}

std::uint64_t GenerationTable::count(Generation generation) const {
  const auto all = entries();
  return static_cast<std::uint64_t>(std::count(all.begin(), all.end(), generation));
}

bool GenerationTable::operator==(const GenerationTable& other) const {
  return std::ranges::equal(entries(), other.entries());
}

}  // namespace godwit::pages
