// GuestRam: which pages hold memory, and which read as zero.

#include <sys/stat.h>
#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

#include "dataplane/memory/guest_ram.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;
constexpr std::uint64_t kBlockPages = 4096;  // a task; whole words of the bitmaps, so that tasks never share one
constexpr std::uint64_t kFewPages = 2048;    // read by one thread sooner than others are woken

/// Calls f(first, count) for every stretch of [first, first + count) of `region` that may hold data.
template <class F>
std::expected<void, Error> for_each_data(const Region& region, pages::PageNumber first, std::uint64_t count, F&& f) {
  if (region.page_bytes == kHugePageSize) {
    // hugetlbfs calls all of a file data. An empty file is the one case that it can tell.
    struct stat status {};
    if (fstat(region.file, &status) != 0) {
      return std::unexpected(kernel_error("fstat", "RAM file of region '" + region.name + "'", errno));
    }
    if (status.st_blocks != 0) {
      f(first, count);
    }
    return {};
  }
  const std::uint64_t begin = (first - region.first_page) * kPage;
  const std::uint64_t end = begin + count * kPage;
  for (std::uint64_t at = begin; at < end;) {
    const off_t data = lseek(region.file, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
      return {};  // nothing but a hole up to the end of the file
    }
    const off_t hole = data < 0 ? data : lseek(region.file, data, SEEK_HOLE);
    if (data < 0 || (hole < 0 && errno != ENXIO)) {
      return std::unexpected(kernel_error("lseek", "RAM file of region '" + region.name + "'", errno));
    }
    if (hole < 0) {
      at = static_cast<std::uint64_t>(data);  // punched between the two calls
      continue;
    }
    const std::uint64_t data_begin = std::max(begin, static_cast<std::uint64_t>(data) / kPage * kPage);
    const std::uint64_t data_end = std::min(end, (static_cast<std::uint64_t>(hole) + kPage - 1) / kPage * kPage);
    if (data_begin < data_end) {
      f(region.first_page + data_begin / kPage, (data_end - data_begin) / kPage);
    }
    at = std::max(at + kPage, static_cast<std::uint64_t>(hole));
  }
  return {};
}

/// First page at or after `page` that may hold data, `end` if there is none before it. Never looks for the end of data:
/// that search walks every page up to the next hole, however far.
std::expected<pages::PageNumber, Error> next_data(const Region& region, pages::PageNumber page, pages::PageNumber end) {
  if (region.page_bytes == kHugePageSize) {
    return page;  // hugetlbfs calls all of a file data
  }
  const std::uint64_t at = (page - region.first_page) * kPage;
  const off_t data = lseek(region.file, static_cast<off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) {
    return end;
  }
  if (data < 0) {
    return std::unexpected(kernel_error("lseek", "RAM file of region '" + region.name + "'", errno));
  }
  return std::min(end, region.first_page + static_cast<std::uint64_t>(data) / kPage);
}

/// Pages of `among` in [first, first + count) of one region that read as zero.
std::expected<void, Error> find_zero_in(const GuestRam& ram, const Region& region, pages::PageNumber first,
                                        std::uint64_t count, const pages::Bitmap& among, pages::Bitmap& out) {
  constexpr std::uint64_t kBatch = 16;
  std::array<std::byte, kBatch * kPage> buffer;
  const pages::PageNumber end = first + count;
  for (pages::PageNumber page = among.next_set(first, end); page < end;) {
    const auto data = next_data(region, page, end);
    if (!data) {
      return std::unexpected(data.error());
    }
    for (; page < *data; page = among.next_set(page + 1, end)) {
      out.set(page);
    }
    if (page != *data) {
      continue;  // what is asked for next lies behind where data begins
    }
    const std::uint64_t batch = among.next_clear(page, std::min(end, page + kBatch)) - page;
    const auto bytes = std::span(buffer).first(batch * kPage);
    if (auto read = ram.read_pages(page, bytes); !read) {
      return read;
    }
    for (std::uint64_t i = 0; i < batch; ++i) {
      if (pages::is_zero_page(bytes.subspan(i * kPage).first<kPage>())) {
        out.set(page + i);
      }
    }
    page = among.next_set(page + batch, end);
  }
  return {};
}

}  // namespace

std::expected<void, Error> GuestRam::find_present(pages::Bitmap& out) const {
  GW_ASSERT(out.size() == page_count_);
  out.clear_all();
  for (const Region& region : regions_) {
    auto done = for_each_data(region, region.first_page, region.page_count,
                              [&](pages::PageNumber first, std::uint64_t count) { out.set_range(first, count); });
    if (!done) {
      return done;
    }
  }
  return check_whole();  // beyond the end of a file everything looks like a hole
}

std::expected<bool, Error> GuestRam::is_hole(PageRange pages) const {
  const Region& region = region_of(pages.first);
  const pages::PageNumber end = pages.first + pages.count;
  const auto data = next_data(region, pages.first, end);
  return data ? std::expected<bool, Error>(*data == end) : std::unexpected(data.error());
}

std::expected<void, Error> GuestRam::find_zero(const pages::Bitmap& among, pages::Bitmap& out) const {
  GW_ASSERT(among.size() == page_count_ && out.size() == page_count_);
  out.clear_all();
  std::mutex mutex;
  std::optional<Error> failed;
  const std::uint64_t blocks = (page_count_ + kBlockPages - 1) / kBlockPages;
  const tbb::blocked_range<std::uint64_t> all(0, blocks, 1);
  const auto look = [&](const tbb::blocked_range<std::uint64_t>& range) {
    const pages::PageNumber end = std::min(range.end() * kBlockPages, page_count_);
    for (pages::PageNumber page = range.begin() * kBlockPages; page < end;) {
      const Region& region = region_of(page);
      const std::uint64_t here = std::min(end, region.first_page + region.page_count) - page;
      if (auto done = find_zero_in(*this, region, page, here, among, out); !done) {
        const std::lock_guard lock(mutex);
        failed = done.error();
        return;
      }
      page += here;
    }
  };
  among.count() <= kFewPages ? look(all) : tbb::parallel_for(all, look);
  if (failed) {
    return std::unexpected(*failed);
  }
  return check_whole();
}

}  // namespace godwit::memory
