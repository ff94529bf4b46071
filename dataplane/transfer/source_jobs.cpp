#include "dataplane/transfer/source_jobs.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "dataplane/pages/compare.h"
#include "dataplane/pages/table_codec.h"
#include "dataplane/transfer/page_sets.h"

namespace godwit::transfer {
namespace {

/// Collects what was written and enters it into the table, in one job: what is armed again is never forgotten.
bool scan(JobGuest guest, std::uint32_t epoch, pages::Bitmap& written, std::optional<std::string>& error) {
  const auto collected = guest.memory.collect_written(written);
  if (!collected) {
    // Some pages may have been armed again and not reported: nothing is known of any page any more.
    guest.table.fill(pages::kUnknownGeneration);
    error = collected.error().text;
    return false;
  }
  guest.table.set_written(written, epoch);
  return true;
}

bool decode_retained(CompareJob& job, pages::GenerationTable& retained) {
  pages::PageNumber at = 0;
  for (const auto& piece : job.retained_pieces) {
    const auto next = pages::decode_table_piece(piece, at, retained);
    if (!next) {
      job.peer_error =
          "retained table, from page " + std::to_string(at) + ": " + std::string(pages::to_string(next.error()));
      return false;
    }
    at = *next;
  }
  if (at != retained.size()) {
    job.peer_error = "retained table ends at page " + std::to_string(at) + " of " + std::to_string(retained.size());
    return false;
  }
  return true;
}

void encode_stored(std::span<const wire::StoredPage> pages, std::uint64_t version_next,
                   std::vector<std::vector<std::byte>>& messages) {
  do {
    const auto some = pages.first(std::min(pages.size(), wire::kStoredPagesMax));
    pages = pages.subspan(some.size());
    messages.push_back(wire::encode_message(
        wire::StoredPages{.last = pages.empty(), .version_next = version_next, .pages = {some.begin(), some.end()}}));
  } while (!pages.empty());
}

/// What the stores have is not sent but told of, where the destination does not have it, or has no room for it.
bool list_stored(CompareJob& job, const pages::Bitmap& written) {
  const auto listed = job.stores->list(written);
  if (!listed) {
    job.guest_error = listed.error().text;
    return false;
  }
  job.stored = {.away = pages::Bitmap(job.to_send.size()), .told = pages::Bitmap(job.to_send.size()), .written = {}};
  std::vector<wire::StoredPage> told;
  for (const wire::StoredPage& stored : listed->pages) {
    job.stored.away.set(stored.page);
    if (job.stored_there_max > 0 && !job.to_send.test(stored.page)) {
      --job.stored_there_max;
      continue;
    }
    job.stored.told.set(stored.page);
    told.push_back(stored);
  }
  encode_stored(told, listed->version_next, job.messages);
  job.to_send.and_not(job.stored.away);
  return true;
}

/// The same while pages leave for stores. What the destination has of these counts for nothing once it is told.
bool set_apart(CompareJob& job, pages::Bitmap written) {
  auto apart = job.stores->set_apart();
  if (!apart) {
    job.guest_error = apart.error().text;
    return false;
  }
  job.stored = {.away = std::move(*apart), .told = {}, .written = std::move(written)};
  job.stored.told = job.stored.away;
  for (auto page = job.stored.told.next_set(0); job.stored_there_max > 0 && page < job.to_send.size();
       page = job.stored.told.next_set(page + 1)) {
    if (!job.to_send.test(page)) {
      job.stored.told.clear(page);
      --job.stored_there_max;
    }
  }
  encode_page_set(job.stored.told, 0, wire::PageSet::kApart, job.link_bps, job.messages);
  job.to_send.and_not(job.stored.away);
  return true;
}

/// What has become of what was apart. What the stores have is told of, unless the destination has it as it is; what is
/// here goes on as if it had come back.
bool list_apart(ScanJob& job, const pages::Bitmap& doubtful) {
  const auto listed = job.stores->list(doubtful);
  if (!listed) {
    job.guest_error = listed.error().text;
    return false;
  }
  std::vector<wire::StoredPage> told;
  for (const wire::StoredPage& stored : listed->pages) {
    const bool written = job.written.test(stored.page);
    if (written || !job.stored.away.test(stored.page) || job.stored.told.test(stored.page)) {
      told.push_back(stored);
      told.back().written = written;
      job.stored.told.set(stored.page);
    }
    job.stored.away.set(stored.page);
  }
  encode_stored(told, listed->version_next, job.messages);
  return true;
}

/// A page that came back counts as written, unless the destination has it; one that did not is not sent, whatever else
/// is said of it.
bool look_for_stored(ScanJob& job, const pages::Bitmap& doubtful) {
  pages::Bitmap here = job.stored.away;
  if (const auto kept = job.stores->keep_stored(job.stored.away, doubtful); !kept) {
    job.guest_error = kept.error().text;
    return false;
  }
  here.and_not(job.stored.away);
  here &= job.stored.told;
  job.stored.told.and_not(here);
  job.written.and_not(job.stored.away);
  if (here.any() || job.also) {
    job.also = job.also ? std::move(*job.also) : pages::Bitmap(here.size());
    *job.also |= here;
    job.also->and_not(job.stored.away);
  }
  return true;
}

bool look_at_stores(ScanJob& job) {
  if (!job.lists) {
    return look_for_stored(job, job.written);
  }
  // What the first scan has found may have been in place already then, and be called missing to this day.
  pages::Bitmap doubtful = std::exchange(job.stored.written, {});
  doubtful |= job.written;
  return list_apart(job, doubtful) && look_for_stored(job, doubtful);
}

pages::Bitmap accessed_often(const pages::AccessHistory& history) {
  pages::Bitmap often(history.page_count());
  const auto heat = history.heat();
  for (pages::PageNumber page = 0; page < heat.size(); ++page) {
    if (std::popcount(heat[page]) * 2 >= static_cast<int>(pages::AccessHistory::kScans)) {
      often.set(page);
    }
  }
  return often;
}

void encode_table(CompareJob& job, const pages::GenerationTable& table) {
  std::vector<std::byte> piece;
  pages::PageNumber at = 0;
  do {
    at = pages::encode_table_piece(table, at, {.link_bps = job.link_bps}, piece);
    job.messages.push_back(wire::encode_message(wire::TablePiece{.last = at == table.size(), .bytes = piece}));
  } while (at < table.size());
}

}  // namespace

void run(CompareJob& job, JobGuest guest) {
  pages::Bitmap written(guest.table.size());
  if (!scan(guest, job.epoch_now, written, job.guest_error)) {
    return;
  }
  const auto entries = guest.table.entries();
  std::replace(entries.begin(), entries.end(), pages::kUnknownGeneration, job.epoch_now);
  job.to_send = pages::Bitmap(guest.table.size());
  if (job.has_retained) {
    pages::GenerationTable retained(guest.table.size(), pages::kUnknownGeneration);
    if (!decode_retained(job, retained)) {
      return;
    }
    pages::find_not_reusable(retained, guest.table, job.to_send);
  } else {
    job.to_send.set_all();
  }
  encode_table(job, guest.table);
  if (job.stores != nullptr && !(job.at_rest ? list_stored(job, written) : set_apart(job, std::move(written)))) {
    return;
  }
  job.often = job.accesses != nullptr ? accessed_often(*job.accesses) : pages::Bitmap(guest.table.size());
}

void run(ScanJob& job, JobGuest guest) {
  job.written = pages::Bitmap(guest.table.size());
  job.zero = pages::Bitmap(guest.table.size());
  if (!scan(guest, job.epoch, job.written, job.guest_error)) {
    return;
  }
  if (job.stores != nullptr && !look_at_stores(job)) {
    return;
  }
  job.found_count = job.written.count();
  job.likely = std::exchange(job.before, job.written);
  job.likely &= job.written;
  if (job.also) {
    guest.table.set_written(*job.also, job.epoch);
    job.written |= *job.also;
    job.likely.and_not(*job.also);
  }
  job.likely_count = job.likely.count();
  job.written_count = job.written.count();
  if (job.written_count <= kSortPagesMax) {
    job.sorted = true;
    if (job.written_count != 0) {
      const auto found = guest.memory.find_zero(job.written, job.zero);
      if (!found) {
        job.guest_error = found.error().text;
      }
      job.zero_count = job.zero.count();
    }
  }
}

void run(SortJob& job, JobGuest guest) {
  job.zero = pages::Bitmap(job.among.size());
  const auto found = guest.memory.find_zero(job.among, job.zero);
  if (!found) {
    job.guest_error = found.error().text;
  }
}

void run(AnnounceJob& job, JobGuest) {
  for (AnnouncedSet& set : job.sets) {
    set.missing.and_not(set.zero);
    job.missing |= set.missing;
    job.missing.and_not(set.zero);
    if (!set.told) {
      encode_page_set(set.missing, set.round, wire::PageSet::kMissing, job.link_bps, job.messages);
      encode_page_set(set.zero, set.round, wire::PageSet::kZero, job.link_bps, job.messages);
    }
    if (job.hashes.size() != 0 && !set.hashed) {
      forget_announced(job.hashes, set.missing, set.zero);
    }
  }
}

void run(DecodeJob& job, JobGuest guest) {
  auto set = decode_page_set(job.pieces, guest.table.size());
  if (!set) {
    job.peer_error = set.error();
    return;
  }
  job.set = std::move(*set);
  job.count = job.set.count();
}

void run(HashJob& job, JobGuest guest) {
  job.hashes.reserve(job.pages.size());
  std::array<std::byte, pages::kPageSize> bytes;
  for (const pages::PageNumber page : job.pages) {
    guest.memory.read_page(page, 0, bytes);
    job.hashes.push_back(pages::hash_page(bytes));
  }
}

}  // namespace godwit::transfer
