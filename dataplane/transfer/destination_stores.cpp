// What a destination does with pages that stay with the page stores of a split guest, or may (kept_stores.h).

#include <utility>

#include "dataplane/transfer/destination_impl.h"

namespace godwit::transfer {

void Destination::Impl::on_apart(const wire::PageSetPiece& message) {
  const bool expected =
      phase_ == Phase::kTables && is_split() && table_ended_ && stored_come_.empty() && !stored_ended_;
  if (!expected || apart_come_) {
    return protocol_error("pages that are apart, which nobody expects");
  }
  if (const std::string wrong = pieces_.add(message); !wrong.empty()) {
    return protocol_error(wrong);
  }
  totals_.table_bytes += message.bytes.size();
  if (pieces_.complete()) {
    apart_come_ = true;
    take_apart(pieces_.take());
  }
}

void Destination::Impl::take_apart(std::vector<std::vector<std::byte>> pieces) {
  struct Job {
    pages::Bitmap apart;
    std::expected<void, GuestError> cleared;
    std::string peer_error;
  };
  auto job = std::make_shared<Job>();
  executor_.submit(
      [self = shared_from_this(), job, pieces = std::move(pieces)] {
        auto apart = decode_page_set(pieces, self->page_count_);
        if (!apart) {
          job->peer_error = apart.error();
          return;
        }
        job->apart = std::move(*apart);
        job->cleared = self->clear_stored(job->apart);
      },
      [weak = weak_from_this(), job] {
        const auto self = weak.lock();
        if (!self || self->phase_ == Phase::kFailed) {
          return;
        }
        if (!job->peer_error.empty()) {
          return self->protocol_error(job->peer_error);
        }
        if (!job->cleared) {
          return self->fail(Failure::kGuestMemory, job->cleared.error().text);
        }
        self->stored_ = std::move(job->apart);
        self->apart_taken_ = self->wake_ = true;
      });
}

std::expected<void, GuestError> Destination::Impl::clear_stored(const pages::Bitmap& pages) {
  std::expected<void, GuestError> cleared;
  if (!failed_.load(std::memory_order_relaxed)) {
    table_.set_written(pages, pages::kUnknownGeneration);
    pages.for_each_run([&](pages::PageNumber first, std::uint64_t count) {
      cleared = cleared ? memory_.zero_pages(first, count) : cleared;
    });
  }
  return cleared;
}

void Destination::Impl::on(const wire::StoredPages& message) {
  const bool expected = apart_come_ ? phase_ == Phase::kRounds && round_ == 1 && acknowledged_ && coming_.round == 0
                                    : phase_ == Phase::kTables && table_ended_ && pieces_.idle();
  if (!expected || !is_split() || stored_ended_) {
    return protocol_error("pages of stores that nobody expects");
  }
  for (const wire::StoredPage& stored : message.pages) {
    if (stored.page >= page_count_ || (!stored_come_.empty() && stored.page <= stored_come_.back().page)) {
      return protocol_error("pages of stores out of order, or that the guest does not have");
    }
    if (stored.written && !apart_come_) {
      return protocol_error("a page of a store that was written after the table, without having been apart");
    }
    stored_come_.push_back(stored);
  }
  totals_.pages_stored = stored_come_.size();
  if (message.last) {
    stored_ended_ = true;
    version_next_ = message.version_next;
    take_stored();
  }
}

void Destination::Impl::take_stored() {
  // Round 1 may have brought some of them: first it is noted that it has.
  place();
  pump();
  if (phase_ == Phase::kFailed) {
    return;
  }
  for (const wire::StoredPage& stored : stored_come_) {
    stored_.set(stored.page);
    stored_listed_.set(stored.page);
    if (stored.written) {
      stored_written_.set(stored.page);
    }
  }
  submit_for(&Impl::stored_taken_,
             [stored = std::move(stored_come_), pages = stored_listed_, unhashed = take_unhashed()](Impl& self) {
               if (!self.failed_.load(std::memory_order_relaxed)) {
                 self.stores_->note(stored);
                 if (self.hashes()) {
                   hash_runs(self.memory_, unhashed, *self.hashes_);
                   self.hashes_->forget(pages);
                 }
               }
               return self.clear_stored(pages);
             });
}

}  // namespace godwit::transfer
