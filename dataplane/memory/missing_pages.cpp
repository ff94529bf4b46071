#include "dataplane/memory/missing_pages.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace godwit::memory {
namespace {

constexpr GuestStateFile::Kind kKind{0x676e697373696d67, 1, "file of missing pages"};  // "gmissing"
constexpr std::uint64_t kWordPages = 64;

std::size_t body_bytes(std::uint64_t page_count) {
  return (page_count + kWordPages - 1) / kWordPages * sizeof(std::uint64_t);
}

}  // namespace

std::expected<MissingPages, Error> MissingPages::create(const std::string& path, const MissingOf& of) {
  auto file = GuestStateFile::create(path, kKind, of, body_bytes(of.page_count));
  return file ? std::expected<MissingPages, Error>(MissingPages(std::move(*file))) : std::unexpected(file.error());
}

std::expected<MissingPages, Error> MissingPages::adopt(const std::string& path, const MissingOf& of) {
  auto file = GuestStateFile::adopt(path, kKind, of, body_bytes(of.page_count));
  if (!file) {
    return std::unexpected(file.error());
  }
  MissingPages missing(std::move(*file));
  const pages::Bitmap all = missing.all();
  const std::uint64_t tail = of.page_count % kWordPages;
  if (tail != 0 && all.words().back() >> tail != 0) {
    return std::unexpected(Error{ErrorCode::kBadArgument, path + ": it names pages that the guest does not have"});
  }
  missing.count_ = all.count();
  return missing;
}

MissingPages::MissingPages(MissingPages&& other) noexcept : file_(std::move(other.file_)), count_(other.count()) {}

std::atomic_ref<std::uint64_t> MissingPages::word_of(pages::PageNumber page) const {
  GW_ASSERT(page < page_count());
  auto* const words = reinterpret_cast<std::uint64_t*>(file_.body().data());
  return std::atomic_ref<std::uint64_t>(words[page / kWordPages]);
}

void MissingPages::add(pages::PageNumber first, std::uint64_t count) {
  for (const pages::PageNumber end = first + count; first < end;) {
    const std::uint64_t here = std::min(end - first, kWordPages - first % kWordPages);
    const std::uint64_t mask = (here == kWordPages ? ~std::uint64_t{0} : (std::uint64_t{1} << here) - 1)
                               << first % kWordPages;
    const std::uint64_t before = word_of(first).fetch_or(mask);
    count_ += static_cast<std::uint64_t>(std::popcount(mask & ~before));
    first += here;
  }
}

bool MissingPages::test(pages::PageNumber page) const { return (word_of(page).load() >> page % kWordPages & 1) != 0; }

bool MissingPages::clear(pages::PageNumber page) {
  const std::uint64_t bit = std::uint64_t{1} << page % kWordPages;
  const bool was = (word_of(page).fetch_and(~bit) & bit) != 0;
  count_ -= was ? 1U : 0U;
  return was;
}

pages::Bitmap MissingPages::all() const {
  pages::Bitmap all(page_count());
  for (pages::PageNumber page = 0; page < page_count(); page += kWordPages) {
    all.words()[page / kWordPages] = word_of(page).load();
  }
  return all;
}

}  // namespace godwit::memory
