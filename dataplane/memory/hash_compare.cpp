#include "dataplane/memory/hash_compare.h"

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

#include "dataplane/pages/page_digest.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;
constexpr std::uint64_t kBlockPages = 1024;  // a task; whole words of the bitmaps, so that tasks never share one
constexpr std::uint64_t kBatch = 16;

/// Calls f(page, hash) for every page of `among`, from several threads; f may touch what belongs to words of its page
/// only.
template <class F>
std::expected<void, Error> hash_each(const GuestRam& ram, const pages::Bitmap& among, F&& f) {
  pages::Bitmap present(ram.page_count());
  // A page that is a hole here and filled a moment later was zero when this call looked: the write belongs to the next
  // call.
  if (auto done = ram.find_present(present); !done) {
    return done;
  }
  const std::uint64_t zero_hash = pages::zero_page_hash();
  std::mutex mutex;
  std::optional<Error> failed;
  const std::uint64_t blocks = (ram.page_count() + kBlockPages - 1) / kBlockPages;
  tbb::parallel_for(tbb::blocked_range<std::uint64_t>(0, blocks, 4), [&](const auto& range) {
    std::array<std::byte, kBatch * kPage> buffer;
    const pages::PageNumber end = std::min(range.end() * kBlockPages, ram.page_count());
    for (pages::PageNumber page = among.next_set(range.begin() * kBlockPages); page < end;) {
      if (!present.test(page)) {
        f(page, zero_hash);
        page = among.next_set(page + 1);
        continue;
      }
      const std::uint64_t batch =
          std::min({kBatch, end - page, among.next_clear(page) - page, present.next_clear(page) - page});
      const auto bytes = std::span(buffer).first(batch * kPage);
      if (auto read = ram.read_pages(page, bytes); !read) {
        const std::lock_guard lock(mutex);
        failed = read.error();
        return;
      }
      for (std::uint64_t i = 0; i < batch; ++i) {
        f(page + i, pages::hash_page(bytes.subspan(i * kPage).template first<kPage>()));
      }
      page = among.next_set(page + batch);
    }
  });
  if (failed) {
    return std::unexpected(*failed);
  }
  return {};
}

}  // namespace

std::expected<void, Error> find_changed(const GuestRam& ram, const pages::Bitmap& among, KnownHashes& hashes,
                                        pages::Bitmap& out) {
  return hash_each(ram, among, [&](pages::PageNumber page, std::uint64_t hash) {
    const std::uint64_t known = hashes.get(page);
    if (known == KnownHashes::kUnknown || known != hash) {
      out.set(page);
      hashes.set(page, hash);
    }
  });
}

std::expected<void, Error> learn_unknown(const GuestRam& ram, const pages::Bitmap& among, KnownHashes& hashes) {
  pages::Bitmap unknown(among.size());
  for (pages::PageNumber page = among.next_set(0); page < among.size(); page = among.next_set(page + 1)) {
    if (hashes.get(page) == KnownHashes::kUnknown) {
      unknown.set(page);
    }
  }
  return hash_each(ram, unknown, [&](pages::PageNumber page, std::uint64_t hash) { hashes.set(page, hash); });
}

}  // namespace godwit::memory
