#include "dataplane/daemon/migration_session.h"

#include <utility>

#include "base/log.h"

namespace godwit::daemon {

void EventRelay::post(api::Event event) {
  control_.post([deliver = deliver_, event = std::move(event)] { deliver(event); });
}

void EventRelay::fill(const transfer::Stats& stats, api::MigrationStats& out) {
  to_api(stats, out);
  to_api(stats, paging_.get(), *out.mutable_paging());
  const std::uint64_t faults = out.paging().faults();
  if (const std::uint64_t us = stats.elapsed_us - elapsed_us_before_; stats.elapsed_us > elapsed_us_before_) {
    out.mutable_paging()->set_faults_per_s((faults - faults_before_) * 1'000'000 / us);
    elapsed_us_before_ = stats.elapsed_us;
    faults_before_ = faults;
  }
}

void EventRelay::on_progress(const transfer::Stats& stats) {
  api::Event event;
  event.mutable_progress()->set_migration_id(migration_id_);
  fill(stats, *event.mutable_progress()->mutable_stats());
  post(std::move(event));
}

void EventRelay::on_ready_to_switch(Duration estimated_downtime) {
  api::Event event;
  event.mutable_ready_to_switch()->set_migration_id(migration_id_);
  event.mutable_ready_to_switch()->set_estimated_downtime_us(static_cast<std::uint64_t>(estimated_downtime.us()));
  post(std::move(event));
}

void EventRelay::on_source_done(const transfer::Stats& stats) {
  api::Event event;
  event.mutable_source_done()->set_migration_id(migration_id_);
  to_api(stats, *event.mutable_source_done()->mutable_stats());
  post(std::move(event));
}

void EventRelay::on_device_state(std::span<const std::byte> data, bool end) {
  api::Event event;
  event.mutable_device_state()->set_migration_id(migration_id_);
  event.mutable_device_state()->set_data(data.data(), data.size());
  event.mutable_device_state()->set_end(end);
  post(std::move(event));
}

void EventRelay::on_memory_guarded() {
  api::Event event;
  event.mutable_memory_guarded()->set_migration_id(migration_id_);
  post(std::move(event));
}

void EventRelay::on_memory_ready(std::uint64_t pages_checked) {
  api::Event event;
  event.mutable_memory_ready()->set_migration_id(migration_id_);
  event.mutable_memory_ready()->set_pages_checked(pages_checked);
  if (paging_ && paging_->armed()) {
    event.mutable_memory_ready()->set_pages_missing(paging_->missing_count());
  }
  post(std::move(event));
}

void EventRelay::on_failed(transfer::Failure failure, const std::string& text) {
  api::Event event;
  event.mutable_migration_failed()->set_migration_id(migration_id_);
  event.mutable_migration_failed()->mutable_error()->set_code(to_api(failure));
  event.mutable_migration_failed()->mutable_error()->set_text(printable(text, kTextBytesMax));
  post(std::move(event));
}

void EventRelay::on_connection_lost(const std::string& text) {
  api::Event event;
  event.mutable_connection_lost()->set_migration_id(migration_id_);
  event.mutable_connection_lost()->set_reason(printable(text, kTextBytesMax));
  post(std::move(event));
}

void EventRelay::on_complete(const transfer::Stats& stats, bool equal) {
  api::Event event;
  event.mutable_complete()->set_migration_id(migration_id_);
  fill(stats, *event.mutable_complete()->mutable_stats());
  if (!equal) {
    event.mutable_complete()->mutable_error()->set_code(api::Error::VERIFY_FAILED);
    event.mutable_complete()->mutable_error()->set_text(
        "what came after the guest differs from what was sent; check the hosts' memory and network cards");
  }
  post(std::move(event));
}

api::PagingStatus MigrationSession::paging_status() const {
  api::PagingStatus status;
  status.set_migration_id(id.to_bytes());
  status.set_vm_uuid(vm_uuid.to_bytes());
  status.set_role(role);
  status.set_ownership(ownership);
  status.set_connected(state == State::kStarted && lost.empty());
  status.set_reason(lost);
  status.set_complete(complete.has_value());
  *status.mutable_stats() = paging;
  return status;
}

}  // namespace godwit::daemon
