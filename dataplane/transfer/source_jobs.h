#pragma once
// What the source has done by jobs, off the lcore: scans, the comparison of tables, sorting out zero pages, hashing.
// Each job owns its input and result and touches nothing else but the guest's memory and table, and no two run at once.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/pages/access_history.h"
#include "dataplane/pages/generation_table.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/transfer/guest.h"
#include "dataplane/transfer/kept_stores.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

/// The guest as jobs see it.
struct JobGuest {
  GuestMemory& memory;
  pages::GenerationTable& table;
};

/// Pages that one job looks at for zeros: some 30 ms of cold memory, so that a scan does not wait longer for its turn.
inline constexpr std::uint64_t kSortPagesMax = 65536;
/// But no more jobs than this a round: each costs a pass over a bitmap of the whole guest.
inline constexpr std::uint64_t kSortJobsMax = 64;
inline constexpr std::uint64_t kHashPagesMax = 4096;

/// Of a guest that is split. Nobody reads `away` here; of those the destination lacks `told`, and knows where they are,
/// or that they are apart.
struct StoredSets {
  pages::Bitmap away, told;
  pages::Bitmap written;  // by the first scan, of a guest of which something is apart
};

/// Scan 1: brings the table up to this visit and finds what the destination cannot reuse.
struct CompareJob {
  std::uint32_t epoch_now = 0;
  std::uint64_t link_bps = 0;
  bool has_retained = false;
  std::vector<std::vector<std::byte>> retained_pieces;
  const pages::AccessHistory* accesses = nullptr;
  KeptStores* stores = nullptr;
  bool at_rest = true;  // the stores
  std::uint64_t stored_there_max = 0;
  // ---- result ----
  StoredSets stored;    // not in to_send
  pages::Bitmap often;  // accessed, as far as history says
  pages::Bitmap to_send;
  std::vector<std::vector<std::byte>> messages;  // TablePiece, then StoredPages or what is apart, encoded
  std::optional<std::string> guest_error, peer_error;
};
void run(CompareJob& job, JobGuest guest);

/// Scan r >= 2. Few written pages are sorted at once. `lists`: the first after stores have come to rest; what was apart
/// is in `stored`.
struct ScanJob {
  std::uint32_t round = 0;
  std::uint32_t epoch = 0;
  std::optional<pages::Bitmap> also;  // pages that count as written whatever the scan says
  pages::Bitmap before;               // that the scan before this has found; result: that this one has, without `also`
  KeptStores* stores = nullptr;
  StoredSets stored;  // result: those that still are
  bool lists = false;
  // ---- result ----
  pages::Bitmap likely;  // to be written again: found by both, and not in `also`
  std::uint64_t likely_count = 0;
  std::uint64_t found_count = 0;  // written, without `also`
  pages::Bitmap written, zero;
  std::uint64_t written_count = 0, zero_count = 0;
  bool sorted = false;
  std::vector<std::vector<std::byte>> messages;  // StoredPages, of one that lists
  std::optional<std::string> guest_error;
};
void run(ScanJob& job, JobGuest guest);

/// Which of `among` read as zero.
struct SortJob {
  pages::Bitmap among;
  std::uint32_t connection = 0;  // post-copy
  // ---- result ----
  pages::Bitmap zero;
  std::optional<std::string> guest_error;
};
void run(SortJob& job, JobGuest guest);

/// Pages that are announced instead of sent; a page that is in two is of the later one.
struct AnnouncedSet {
  std::uint32_t round = 0;
  pages::Bitmap missing, zero;  // what is in both is zero
  bool told = false;            // ahead
  bool hashed = false;          // so that the hashes say so already
};
/// The messages of sets; and what is missing, and which hashes both ends know, once they are told.
struct AnnounceJob {
  std::vector<AnnouncedSet> sets;  // by round
  std::uint64_t link_bps = 0;
  bool ahead = false;
  pages::Bitmap missing;
  pages::PageHashes hashes;  // none if there are none
  // ---- result ----
  std::vector<std::vector<std::byte>> messages;
};
void run(AnnounceJob& job, JobGuest guest);

/// A set of pages that the destination has sent.
struct DecodeJob {
  std::vector<std::vector<std::byte>> pieces;
  wire::PageSet kind{};
  std::uint32_t connection = 0;
  // ---- result ----
  pages::Bitmap set;
  std::uint64_t count = 0;
  std::optional<std::string> peer_error;
};
void run(DecodeJob& job, JobGuest guest);

struct HashJob {
  std::vector<pages::PageNumber> pages;
  // ---- result ----
  std::vector<pages::PageHash> hashes;
};
void run(HashJob& job, JobGuest guest);

}  // namespace godwit::transfer
