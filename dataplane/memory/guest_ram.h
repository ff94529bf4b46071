#pragma once
// The RAM of one guest as this process sees it: its RAM files, mapped, and the numbering of their pages.
//
// Owns descriptors and mappings. Thread: reads, writes and punches of different pages may run at once from any thread;
// two writers of one page are the caller's to prevent. Units: bytes unless the name says pages. Failure: error values;
// a full file system is kNoMemory, because RAM is reached by pread/pwritev (a read through a mapping of tmpfs would
// allocate a page for a hole) and a huge page is allocated before it is written through the mapping.
//
// Who runs QEMU may cut the RAM file short at any time. No call and no access to a mapping dies of it: calls give
// kLost, the mapping gives zeros from then on and damaged() says so. Nothing here makes such a file whole again, so the
// check_whole() at the end of a piece of work finds what happened during it. (A file that its owner has cut and grown
// again in between holds zeros like holes; the owner may write any byte of it anyway.)

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/memory/guarded_mapping.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/page.h"

namespace godwit::memory {

inline constexpr std::uint32_t kHugePageSize = 2U << 20;
inline constexpr std::uint64_t kPagesPerHugePage = kHugePageSize / pages::kPageSize;

/// One RAM backend as it was handed over. `file` is open for reading and writing.
struct RegionFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::uint32_t page_bytes = 0;    // 4096 or 2 MiB
  std::uint64_t qemu_address = 0;  // where QEMU maps it
  std::string path;                // "" for a memfd
  UniqueFd file;
};

/// A region with its place in the numbering of the VM's pages.
struct Region {
  std::string name;
  std::uint64_t bytes = 0;
  std::uint32_t page_bytes = 0;
  std::uint64_t qemu_address = 0;
  std::string path;
  pages::PageNumber first_page = 0;
  std::uint64_t page_count = 0;
  int file = -1;                 // owned by GuestRam
  std::byte* mapping = nullptr;  // owned by GuestRam; touching a hole of tmpfs through it allocates; see damaged()
};

/// Bytes that belong at `offset` of a page; whole pages unless fragments arrived.
struct PageWrite {
  pages::PageNumber page = 0;
  std::uint32_t offset = 0;
  std::span<const std::byte> bytes;
  bool present = false;  // the page is known to hold memory: a speed hint, never wrong to leave out
};

struct PageRange {
  pages::PageNumber first = 0;
  std::uint64_t count = 0;
};

/// Addresses of QEMU's.
struct QemuRange {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
};

class GuestRam {
 public:
  /// Checks every region against its file (size, kind of file system, page size) and maps it.
  static std::expected<GuestRam, Error> open(std::vector<RegionFile> files);
  GuestRam(GuestRam&&) noexcept = default;
  GuestRam& operator=(GuestRam&&) noexcept = default;

  [[nodiscard]] std::span<const Region> regions() const { return regions_; }
  [[nodiscard]] std::uint64_t page_count() const { return page_count_; }
  [[nodiscard]] bool any_huge() const;
  [[nodiscard]] const Region& region_of(pages::PageNumber page) const;
  /// Where QEMU addresses these pages of one region.
  [[nodiscard]] QemuRange qemu_range(PageRange pages) const;
  /// The page where it is mapped: see Region::mapping.
  [[nodiscard]] std::span<std::byte, pages::kPageSize> mapped(pages::PageNumber page) const {
    const Region& region = region_of(page);
    return std::span<std::byte, pages::kPageSize>(region.mapping + (page - region.first_page) * pages::kPageSize,
                                                  pages::kPageSize);
  }
  /// The pages that QEMU addresses [address, address + bytes) touch in the region where they begin; nothing if in none.
  [[nodiscard]] PageRange pages_at(std::uint64_t address, std::uint64_t bytes) const;

  /// Copies bytes [offset, offset + out.size()) of the page as they are now; a hole reads as zero and stays one.
  std::expected<void, Error> read(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) const;
  /// Copies out.size() / 4096 consecutive pages, which may span regions.
  std::expected<void, Error> read_pages(pages::PageNumber first, std::span<std::byte> out) const;
  /// Puts bytes in place: contiguous ones in one pwritev on tmpfs; through the mapping on hugetlbfs, and on tmpfs for
  /// long runs of pages that are present.
  std::expected<void, Error> write(std::span<const PageWrite> writes);
  /// Makes pages read as zero and gives their memory back as far as the page size allows.
  std::expected<void, Error> punch(pages::PageNumber first, std::uint64_t count);

  /// Sets in `out` the pages that may hold memory. Exact on tmpfs; on hugetlbfs the kernel tells no holes, so every
  /// page of a region that holds any memory is set.
  std::expected<void, Error> find_present(pages::Bitmap& out) const;
  /// The file has none of these pages of one region on tmpfs: neither content nor zeros put in its place.
  [[nodiscard]] std::expected<bool, Error> is_hole(PageRange pages) const;
  /// Sets in `out` exactly the pages among `among` that read as zero now; touches no hole. Parallel.
  std::expected<void, Error> find_zero(const pages::Bitmap& among, pages::Bitmap& out) const;
  /// An access to a mapping has met memory that is not there; for good. A load a region.
  [[nodiscard]] bool damaged() const;
  /// kLost when damaged() or a RAM file is shorter than its region. A system call a region.
  [[nodiscard]] std::expected<void, Error> check_whole() const;
  /// Memory that the RAM files hold now, by allocated blocks.
  [[nodiscard]] std::expected<std::uint64_t, Error> resident_bytes() const;

 private:
  struct Owned {
    UniqueFd file;
    GuardedMapping mapping;
  };
  GuestRam() = default;
  std::expected<void, Error> write_run(const Region& region, std::span<const PageWrite> run);
  std::expected<void, Error> write_allocating(const Region& region, std::span<const PageWrite> run);
  std::expected<void, Error> write_mapped(const Region& region, std::span<const PageWrite> run);
  std::expected<void, Error> punch_huge(const Region& region, std::uint64_t offset, std::uint64_t bytes);

  std::vector<Region> regions_;
  std::vector<Owned> owned_;
  std::uint64_t page_count_ = 0;
};

}  // namespace godwit::memory
